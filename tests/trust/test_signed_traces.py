"""The trace of a signed request: believed when the signature covers it, else not there."""

import pytest

from agent.domain.traces import TraceId, traceparent
from agent.errors import BadRequestSignature
from agent.trust.http_signatures import HttpRequest, sign_request
from tests.trust.people import AGENT, NOW
from tests.trust.test_http_signatures import forge, unsigned, verify, with_headers

TRACE = TraceId("4bf92f3577b34da6a3ce929d0e0e4736")
FIELD = traceparent(TRACE, "00f067aa0ba902b7")


def traced(field: str = FIELD) -> HttpRequest:
    """A request with this field, signed as we sign."""
    request = with_headers(unsigned(), {"Traceparent": field})
    return with_headers(request, sign_request(request, AGENT, now=NOW, has_body=True))


def test_a_trace_is_signed_and_believed() -> None:
    request = traced()

    assert '"traceparent"' in dict(request.headers)["Signature-Input"]
    assert verify(request).trace == TRACE


def test_a_request_without_one_tells_none() -> None:
    request = unsigned()

    signature = sign_request(request, AGENT, now=NOW, has_body=True)

    assert "traceparent" not in signature["Signature-Input"]
    assert verify(with_headers(request, signature)).trace is None


def test_one_that_somebody_on_the_way_put_in_tells_nothing_and_does_no_harm() -> None:
    request = forge(unsigned())

    assert verify(with_headers(request, {"traceparent": FIELD})).trace is None


def test_one_that_somebody_on_the_way_changed_is_refused_with_the_request() -> None:
    altered = with_headers(traced(), {"Traceparent": traceparent(TraceId("f" * 32), "00f067aa0ba902b7")})

    with pytest.raises(BadRequestSignature):
        verify(altered)


def test_one_that_was_taken_out_is_refused_with_the_request() -> None:
    headers = {name: value for name, value in dict(traced().headers).items() if name != "Traceparent"}

    with pytest.raises(BadRequestSignature):
        verify(HttpRequest("POST", unsigned().url, headers))


@pytest.mark.parametrize("field", ["", "00-short", FIELD.upper(), FIELD + "-x", "ff" + FIELD[2:]])
def test_a_malformed_one_is_as_none_though_it_is_signed(field: str) -> None:
    assert verify(traced(field)).trace is None


def test_one_that_stands_twice_is_as_none() -> None:
    other = traceparent(TraceId("f" * 32), "00f067aa0ba902b7")
    pairs = (*dict(unsigned().headers).items(), ("traceparent", FIELD), ("traceparent", other))
    request = HttpRequest("POST", unsigned().url, tuple(pairs))
    signature = sign_request(request, AGENT, now=NOW, has_body=True)

    verified = verify(HttpRequest("POST", request.url, (*pairs, *signature.items())))

    assert verified.trace is None
