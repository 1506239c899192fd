"""Reports and results: what is a report, what is not, and the mean of scores."""

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.domain.reports import (
    MAX_REPORT_BYTES,
    ReportBody,
    ReportState,
    ResultBody,
    envelope_bytes,
    envelope_object,
    is_mean_of,
    mean_of,
    parse_report,
    parse_result,
)
from agent.domain.strict_json import encode
from agent.errors import BadJson, BadReport, OrderError, TooLarge
from tests.builders import NOW, as_json, consortium, digest_named, uuid_of

WORLD = consortium()
ORDER = WORLD.order()
RECEIPT = WORLD.chain(ORDER, 1)[0]
REPORT = ReportBody(
    order=ORDER.digest,
    position=0,
    state=ReportState.DONE,
    attempt=1,
    max_attempts=3,
    receipt=envelope_object(RECEIPT.envelope),
    at=NOW,
)
RESULT = ResultBody(
    order=ORDER.digest,
    receipts=(envelope_object(RECEIPT.envelope),),
    scores={uuid_of("d"): "0.5"},
    mean="0.5",
    model=None,
)


def changed(value: Any, **changes: Any) -> bytes:
    return json.dumps(as_json(value) | changes).encode()


def test_a_report_survives_the_wire() -> None:
    assert parse_report(encode(REPORT)) == REPORT


def test_a_result_survives_the_wire() -> None:
    assert parse_result(encode(RESULT)) == RESULT


def test_the_receipt_in_a_report_is_the_envelope_that_was_put_in() -> None:
    told = parse_report(encode(REPORT))

    assert told.receipt is not None
    assert json.loads(envelope_bytes(told.receipt)) == json.loads(RECEIPT.envelope)


@pytest.mark.parametrize(
    "changes",
    [
        {"order": "sha256:00"},
        {"position": -1},
        {"position": 1000},
        {"state": "finished"},
        {"attempt": 1.5},
        {"score": "1,5"},
        {"score": "NaN"},
        {"at": "2026-03-01T12:00:00+01:00"},
        {"at": "2026-03-01T12:00:00.5Z"},
        {"receipt": "text"},
        {"receipt": None},  # a done one without a receipt
        {"unknown": 1},
        {"next_agent": "x" * 64},
        {"reason": "x" * 201},
    ],
)
def test_a_report_that_the_contract_does_not_know_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(BadReport):
        parse_report(changed(REPORT, **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"receipts": []},
        {"scores": {"not a uuid": "1"}},
        {"scores": {uuid_of("d"): 0.5}},
        {"scores": {uuid_of("d"): "1e999999999999999999999"}},
        {"model": {"digest": digest_named("model")}},
        {"mean": "high"},
        {"mean": "1e999999999999999999999"},
    ],
)
def test_a_result_that_the_contract_does_not_know_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(BadReport):
        parse_result(changed(RESULT, **changes))


def test_a_report_over_the_limit_is_refused_unread() -> None:
    with pytest.raises(TooLarge):
        parse_report(b" " * (MAX_REPORT_BYTES + 1))


@pytest.mark.parametrize("body", [b"", b"{", b'{"a": 1, "a": 1}', b"\xff", b"[" * 100_000, b'{"at": NaN}'])
def test_what_is_not_strict_json_is_refused(body: bytes) -> None:
    with pytest.raises(BadJson):
        parse_report(body)


@given(st.binary(max_size=300))
def test_no_bytes_make_the_parser_crash(body: bytes) -> None:
    with suppress(OrderError):
        parse_report(body)


# ------------------------------------------------------------------ the mean


def test_the_mean_is_the_arithmetic_one() -> None:
    assert mean_of({"a": "0.25", "b": "0.75"}) == "0.50"
    assert mean_of({"a": "1", "b": "0", "c": "0"}) == "0.33333333333333333"
    assert mean_of({}) is None


def test_a_mean_that_another_program_rounded_is_the_same_mean() -> None:
    scores = {"a": "1", "b": "0", "c": "0"}

    assert is_mean_of("0.3333333333333333", scores)  # a double, as most languages print it
    assert not is_mean_of("0.333", scores)
    assert not is_mean_of(None, scores)
    assert is_mean_of(None, {})
    assert not is_mean_of("0", {})


@given(st.dictionaries(st.text(max_size=3), st.floats(-1e6, 1e6).map(repr), min_size=1, max_size=8))
def test_the_mean_is_always_a_mean(scores: dict[str, str]) -> None:
    assert is_mean_of(mean_of(scores), scores)
