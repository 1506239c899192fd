"""Signed requests and answers. `forge` writes RFC 9421 signatures by hand: whatever a hostile peer may send."""

import base64
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from agent.errors import (
    AgentError,
    BadAnswer,
    BadRequestSignature,
    DigestMismatch,
    KeyNotValid,
    StaleRequest,
    UnknownKey,
    UnsignedRequest,
)
from agent.trust.http_signature_base import verify_signature
from agent.trust.http_signatures import (
    ContentDigest,
    HttpAnswer,
    HttpRequest,
    VerifiedRequest,
    authority_of,
    check_body,
    content_digest,
    sign_answer,
    sign_request,
    verify_answer,
    verify_request,
)
from agent.trust.keys import PublicKey, SigningKey
from agent.trust.roster import Role, Roster
from tests.trust.people import AGENT, NOW, ORCHESTRATOR, ROSTER, STRANGER, YEAR, entry_of, roster_with

VECTORS = Path(__file__).parent.parent / "vectors"
SKEW = timedelta(seconds=30)
HERE = "agent-b.example:8443"
URL = f"https://{HERE}/v1/handoffs?wait=1&x=%20y"
BODY = b'{"order": {}}'
T = int(NOW.timestamp())

BARE = ("@method", "@authority", "@path", "@query")
WITH_BODY = (*BARE, "content-type", "content-length", "content-digest")


def unsigned(body: bytes | None = BODY, *, method: str = "POST", url: str = URL) -> HttpRequest:
    if body is None:
        return HttpRequest(method, url, {"Accept": "application/json"})
    headers = {
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "Content-Digest": content_digest(body),
    }
    return HttpRequest(method, url, headers)


def with_headers(request: HttpRequest, added: Mapping[str, str]) -> HttpRequest:
    return HttpRequest(request.method, request.url, {**dict(request.headers), **added})


def signed(body: bytes | None = BODY, *, key: SigningKey = AGENT, now: datetime = NOW) -> HttpRequest:
    request = unsigned(body)
    return with_headers(request, sign_request(request, key, now=now, has_body=body is not None))


def good_parameters(key: SigningKey = AGENT) -> dict[str, int | str]:
    return {
        "created": T,
        "expires": T + 60,
        "nonce": "0123456789abcdef",
        "keyid": key.keyid,
        "alg": "ed25519",
        "tag": "dc-compute-v1",
    }


def component_value(request: HttpRequest, name: str) -> str:
    authority, _, rest = request.url.removeprefix("https://").partition("/")
    path, _, query = rest.partition("?")
    derived = {
        "@method": request.method,
        "@authority": authority,
        "@path": f"/{path}",
        "@query": f"?{query}",
    }
    fields = {field.lower(): value for field, value in dict(request.headers).items()}
    return derived[name] if name in derived else fields[name]


def forge(
    request: HttpRequest,
    *,
    components: Iterable[str] = WITH_BODY,
    parameters: Mapping[str, int | str] | None = None,
    key: SigningKey = AGENT,
    label: str = "sig1",
) -> HttpRequest:
    """The request with a signature that holds, over any components and parameters."""
    told = good_parameters() if parameters is None else parameters
    inner = "(" + " ".join(f'"{name}"' for name in components) + ")"
    for name, value in told.items():
        inner += f";{name}={value}" if isinstance(value, int) else f';{name}="{value}"'
    lines = [f'"{name}": {component_value(request, name)}' for name in components]
    base = "\n".join([*lines, f'"@signature-params": {inner}'])
    signature = base64.b64encode(key.sign(base.encode())).decode()
    return with_headers(
        request, {"Signature-Input": f"{label}={inner}", "Signature": f"{label}=:{signature}:"}
    )


def verify(request: HttpRequest, *, roster: Roster = ROSTER, now: datetime = NOW) -> VerifiedRequest:
    return verify_request(request, roster, now=now, skew=SKEW, authorities={HERE})


# ------------------------------------------------------------------ the RFC's own vector


def rfc_vector() -> tuple[HttpRequest, PublicKey]:
    vector = json.loads((VECTORS / "rfc9421-b.2.6.json").read_bytes())
    raw = base64.urlsafe_b64decode(vector["public_key_x"] + "=")
    return HttpRequest(vector["method"], vector["url"], vector["headers"]), PublicKey(raw)


def test_the_ed25519_signature_of_rfc_9421_appendix_b_2_6_holds() -> None:
    request, key = rfc_vector()

    sound = verify_signature(request, {"test-key-ed25519": key}.get)

    assert sound.parameters == {"created": 1618884473, "keyid": "test-key-ed25519"}
    assert sound.components['"@path"'] == "/foo"


def test_the_signature_of_rfc_9421_appendix_b_2_6_is_what_our_base_gives() -> None:
    vector = json.loads((VECTORS / "rfc9421-b.2.6.json").read_bytes())
    request, key = rfc_vector()

    signature = base64.b64decode(vector["headers"]["Signature"].removeprefix("sig-b26=:").removesuffix(":"))

    key.verify(signature, vector["signature_base"].encode())
    assert verify_signature(request, lambda _: key).components['"date"'] in vector["signature_base"]


def test_the_rfc_signature_fails_when_a_covered_field_changes() -> None:
    request, key = rfc_vector()
    changed = with_headers(request, {"Date": "Tue, 20 Apr 2021 02:07:56 GMT"})

    with pytest.raises(BadRequestSignature):
        verify_signature(changed, lambda _: key)


def test_the_rfc_signature_is_no_request_of_ours() -> None:
    request, _ = rfc_vector()

    with pytest.raises(UnknownKey):
        verify(request)


# ------------------------------------------------------------------ what is accepted


def test_a_signed_request_tells_who_sent_it_and_what_the_ledger_must_keep() -> None:
    verified = verify(signed())

    assert verified.keyid == AGENT.keyid
    assert verified.role is Role.AGENT
    assert verified.created == NOW
    assert verified.expires == NOW + timedelta(seconds=60)
    assert len(verified.nonce) == 24
    assert verified.has_digest
    assert verified.content_digest == content_digest(BODY)


def test_a_get_without_a_body_and_with_a_query_is_accepted() -> None:
    request = unsigned(None, method="GET")

    verified = verify(with_headers(request, sign_request(request, AGENT, now=NOW, has_body=False)))

    assert not verified.has_digest


def test_a_post_without_a_body_may_say_content_length_0() -> None:
    request = with_headers(unsigned(None), {"Content-Length": "0"})

    verified = verify(with_headers(request, sign_request(request, AGENT, now=NOW, has_body=False)))

    assert verified.content_digest is None


def test_each_request_has_a_nonce_of_its_own() -> None:
    assert verify(signed()).nonce != verify(signed()).nonce


def test_a_signature_written_by_hand_after_the_contract_is_accepted() -> None:
    assert verify(forge(unsigned())).nonce == "0123456789abcdef"


def test_covering_more_than_is_asked_for_is_accepted() -> None:
    request = with_headers(unsigned(), {"Date": "Tue, 06 May 2031 07:08:09 GMT"})

    assert verify(forge(request, components=(*WITH_BODY, "date"))).keyid == AGENT.keyid


def test_the_port_443_and_the_case_of_a_host_do_not_matter() -> None:
    request = unsigned(None, url="https://Agent-B.example:443/x")
    request = with_headers(request, sign_request(request, AGENT, now=NOW, has_body=False))

    verified = verify_request(request, ROSTER, now=NOW, skew=SKEW, authorities={"agent-b.example"})

    assert verified.keyid == AGENT.keyid


def test_fields_may_come_as_pairs() -> None:
    request = signed()

    assert verify(HttpRequest(request.method, request.url, tuple(dict(request.headers).items()))).has_digest


def test_time_is_the_argument_and_not_the_wall_clock() -> None:
    long_ago = datetime(2001, 2, 3, tzinfo=UTC)
    roster = roster_with(entry_of(AGENT, Role.AGENT, valid_from=long_ago - YEAR))

    assert verify(signed(now=long_ago), roster=roster, now=long_ago).created == long_ago


@pytest.mark.parametrize(
    ("url", "authority"),
    [
        ("https://A.example", "a.example"),
        ("https://a.example:443/x", "a.example"),
        ("https://a.example:8443/x?y", "a.example:8443"),
        ("https://[::1]:8443/", "[::1]:8443"),
        ("https://10.0.0.1/", "10.0.0.1"),
    ],
)
def test_the_authority_of_a_url(url: str, authority: str) -> None:
    assert authority_of(url) == authority


@pytest.mark.parametrize("url", ["http://a.example", "a.example", "https://", "https://a.example:http"])
def test_what_is_not_an_https_url_has_no_authority(url: str) -> None:
    with pytest.raises(ValueError, match=r"not an absolute https URL|Port"):
        authority_of(url)


# ------------------------------------------------------------------ (1) one signature


def test_an_unsigned_request_is_refused() -> None:
    with pytest.raises(UnsignedRequest):
        verify(unsigned())


@pytest.mark.parametrize("field", ["Signature", "Signature-Input"])
def test_a_request_with_half_a_signature_is_refused(field: str) -> None:
    headers = {name: value for name, value in dict(signed().headers).items() if name != field}

    with pytest.raises(UnsignedRequest):
        verify(HttpRequest("POST", URL, headers))


def test_a_request_with_two_labels_is_refused() -> None:
    one, two = dict(forge(unsigned()).headers), dict(forge(unsigned(), label="sig2").headers)
    both = {name: f"{one[name]}, {two[name]}" for name in ("Signature", "Signature-Input")}

    with pytest.raises(BadRequestSignature):
        verify(with_headers(unsigned(), both))


def test_a_second_label_of_another_application_is_refused() -> None:
    one = dict(forge(unsigned()).headers)
    two = dict(forge(unsigned(), label="sig2", parameters={**good_parameters(), "tag": "proxy"}).headers)
    both = {name: f"{one[name]}, {two[name]}" for name in ("Signature", "Signature-Input")}

    with pytest.raises(BadRequestSignature):
        verify(with_headers(unsigned(), both))


@pytest.mark.parametrize("field", ["Signature", "Signature-Input"])
def test_a_signature_field_on_two_lines_is_refused(field: str) -> None:
    request = forge(unsigned())
    pairs = (*dict(request.headers).items(), (field.lower(), dict(request.headers)[field]))

    with pytest.raises(BadRequestSignature, match="once"):
        verify(HttpRequest(request.method, request.url, pairs))


def test_a_huge_signature_field_is_refused_unread() -> None:
    with pytest.raises(BadRequestSignature, match="8 KiB"):
        verify(with_headers(signed(), {"Signature-Input": "dc=(" + '"a" ' * 3000 + ")"}))


# ------------------------------------------------------------------ (2) whose key, (3) the signature


def test_a_key_that_is_not_in_the_roster_is_refused() -> None:
    with pytest.raises(UnknownKey):
        verify(signed(key=STRANGER))


def test_a_keyid_that_is_none_is_refused() -> None:
    with pytest.raises(UnknownKey):
        verify(forge(unsigned(), parameters={**good_parameters(), "keyid": "agent-a"}))


def test_a_revoked_key_is_refused() -> None:
    roster = roster_with(entry_of(AGENT, Role.AGENT, revoked_at=NOW - YEAR))

    with pytest.raises(KeyNotValid):
        verify(signed(), roster=roster)


def test_a_key_that_has_run_out_is_refused() -> None:
    roster = roster_with(entry_of(AGENT, Role.AGENT, valid_until=NOW))

    with pytest.raises(KeyNotValid):
        verify(signed(), roster=roster)


def test_a_signature_by_another_key_under_a_known_keyid_is_refused() -> None:
    with pytest.raises(BadRequestSignature):
        verify(forge(unsigned(), key=STRANGER))


@pytest.mark.parametrize(
    "changed",
    [
        HttpRequest("PUT", URL),
        HttpRequest("POST", URL.replace("handoffs", "orders")),
        HttpRequest("POST", URL.replace("wait=1", "wait=2")),
        HttpRequest("POST", URL.partition("?")[0]),
        HttpRequest("POST", URL.replace("agent-b", "agent-c")),
        HttpRequest("POST", URL.replace("8443", "8444")),
    ],
    ids=["method", "path", "query", "no query", "host", "port"],
)
def test_a_request_altered_after_signing_is_refused(changed: HttpRequest) -> None:
    request = HttpRequest(changed.method, changed.url, signed().headers)

    with pytest.raises(BadRequestSignature):
        verify_request(
            request,
            ROSTER,
            now=NOW,
            skew=SKEW,
            authorities={HERE, "agent-c.example:8443", "agent-b.example:8444"},
        )


@pytest.mark.parametrize("field", ["Content-Type", "Content-Length", "Content-Digest"])
def test_a_request_with_an_altered_field_is_refused(field: str) -> None:
    other = {"Content-Type": "text/plain", "Content-Length": "1", "Content-Digest": content_digest(b"x")}

    with pytest.raises(BadRequestSignature):
        verify(with_headers(signed(), {field: other[field]}))


def test_an_altered_parameter_is_refused() -> None:
    request = signed()
    later = dict(request.headers)["Signature-Input"].replace(f"expires={T + 60}", f"expires={T + 61}")

    with pytest.raises(BadRequestSignature):
        verify(with_headers(request, {"Signature-Input": later}))


# ------------------------------------------------------------------ (4) parameters


@pytest.mark.parametrize("name", sorted(good_parameters()))
def test_a_signature_without_one_of_its_parameters_is_refused(name: str) -> None:
    parameters = {key: value for key, value in good_parameters().items() if key != name}

    with pytest.raises(BadRequestSignature):
        verify(forge(unsigned(), parameters=parameters))


@pytest.mark.parametrize(
    "wrong",
    [
        {"tag": "dc-compute-v2"},
        {"tag": ""},
        {"alg": "hmac-sha256"},
        {"nonce": ""},
        {"nonce": "0123456789abcde"},
        {"nonce": "n" * 65},
        {"nonce": "0123456789abcde/"},
        {"context": "admin"},
        {"created": "now"},
    ],
    ids=str,
)
def test_a_signature_with_a_wrong_parameter_is_refused(wrong: dict[str, int | str]) -> None:
    with pytest.raises(BadRequestSignature):
        verify(forge(unsigned(), parameters={**good_parameters(), **wrong}))


# ------------------------------------------------------------------ (5) components


@pytest.mark.parametrize("missing", WITH_BODY)
def test_a_signature_that_leaves_a_component_out_is_refused(missing: str) -> None:
    components = [name for name in WITH_BODY if name != missing]

    with pytest.raises(BadRequestSignature, match=missing):
        verify(forge(unsigned(), components=components))


def test_a_component_that_is_covered_only_in_part_is_not_covered() -> None:
    request = forge(unsigned())
    inner = dict(request.headers)["Signature-Input"].removeprefix("sig1=")
    inner = inner.replace('"content-digest"', '"content-digest";key="sha-256"')
    digest = content_digest(BODY).removeprefix("sha-256=")
    lines = [f'"{name}": {component_value(request, name)}' for name in WITH_BODY[:-1]]
    base = "\n".join([*lines, f'"content-digest";key="sha-256": {digest}', f'"@signature-params": {inner}'])
    signature = base64.b64encode(AGENT.sign(base.encode())).decode()
    request = with_headers(request, {"Signature-Input": f"sig1={inner}", "Signature": f"sig1=:{signature}:"})

    with pytest.raises(BadRequestSignature, match="does not cover"):
        verify(request)


def test_a_component_that_is_covered_twice_is_refused() -> None:
    with pytest.raises(BadRequestSignature):
        verify(forge(unsigned(), components=(*WITH_BODY, "@method")))


@pytest.mark.parametrize(
    "added",
    [
        {"Content-Length": "5"},
        {"Content-Type": "application/json"},
        {"Content-Digest": content_digest(b"hello")},
        {"Transfer-Encoding": "chunked"},
    ],
    ids=str,
)
def test_a_body_announced_on_a_request_signed_without_one_is_refused(added: dict[str, str]) -> None:
    with pytest.raises(BadRequestSignature):
        verify(with_headers(signed(None), added))


def test_a_transfer_encoding_beside_a_signed_length_is_refused() -> None:
    with pytest.raises(BadRequestSignature, match="Transfer-Encoding"):
        verify(with_headers(signed(), {"Transfer-Encoding": "chunked"}))


@pytest.mark.parametrize("name", ["content-type", "content-length", "content-digest"])
def test_a_covered_field_that_stands_twice_is_refused(name: str) -> None:
    """RFC 9421 joins the lines, so `a` and `b` on two lines sign like `a, b` on one; readers take one of them."""
    request = unsigned()
    value = component_value(request, name)
    joined = {
        key: f"{old}, {old}" if key.lower() == name else old for key, old in dict(request.headers).items()
    }
    forged = dict(forge(HttpRequest(request.method, request.url, joined)).headers)
    signature = [(key, forged[key]) for key in ("Signature", "Signature-Input")]
    pairs = (*dict(request.headers).items(), (name, value), *signature)

    with pytest.raises(BadRequestSignature, match="once"):
        verify(HttpRequest(request.method, request.url, pairs))


# ------------------------------------------------------------------ (6) time


def at(created_s: int, expires_s: int) -> HttpRequest:
    return forge(unsigned(), parameters={**good_parameters(), "created": created_s, "expires": expires_s})


@pytest.mark.parametrize(
    ("created_s", "expires_s"),
    [
        (T, T + 121),
        (T, T),
        (T, T - 1),
        (T + 31, T + 91),
        (T - 90, T - 30),
        (T - 120, T - 31),
        (0, 60),
        (-5, 10**14),
        (-(10**15) + 1, 10**15 - 1),
        (10**15 - 61, 10**15 - 1),
    ],
)
def test_a_signature_that_lives_too_long_or_at_another_time_is_refused(
    created_s: int, expires_s: int
) -> None:
    with pytest.raises(StaleRequest):
        verify(at(created_s, expires_s))


@pytest.mark.parametrize(
    ("created_s", "expires_s"), [(T, T + 120), (T + 30, T + 90), (T - 89, T - 29), (T - 90, T + 30)]
)
def test_a_signature_at_the_edge_of_its_time_is_accepted(created_s: int, expires_s: int) -> None:
    assert verify(at(created_s, expires_s)).expires.timestamp() == expires_s


# ------------------------------------------------------------------ (7) the addressee


def test_a_request_to_another_host_is_refused_here() -> None:
    with pytest.raises(BadRequestSignature, match="not to this host"):
        verify_request(signed(), ROSTER, now=NOW, skew=SKEW, authorities={"agent-c.example:8443"})


def test_a_request_without_tls_is_refused() -> None:
    request = unsigned(None, url=URL.replace("https", "http"))
    request = with_headers(request, sign_request(request, AGENT, now=NOW, has_body=False))

    with pytest.raises(BadRequestSignature, match="https"):
        verify(request)


# ------------------------------------------------------------------ the body


def digest_of_pieces(*pieces: bytes) -> ContentDigest:
    digest = ContentDigest()
    for piece in pieces:
        digest.update(piece)
    return digest


def test_the_digest_of_a_streamed_body_is_that_of_the_whole() -> None:
    digest = digest_of_pieces(BODY[:3], b"", BODY[3:])

    assert digest.header == content_digest(BODY)
    assert digest.length == len(BODY)


def test_the_digest_is_the_one_of_rfc_9530() -> None:
    body = b'{"hello": "world"}\n'

    assert content_digest(body) == "sha-256=:RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDg=:"


def test_the_announced_body_is_accepted() -> None:
    check_body(verify(signed()), digest_of_pieces(BODY))


@pytest.mark.parametrize("body", [b"", BODY + b" ", BODY.replace(b"{}", b"[]")])
def test_another_body_is_refused(body: bytes) -> None:
    with pytest.raises(DigestMismatch):
        check_body(verify(signed()), digest_of_pieces(body))


def test_a_body_on_a_request_signed_without_one_is_refused() -> None:
    verified = verify(signed(None))

    check_body(verified, digest_of_pieces())
    with pytest.raises(DigestMismatch):
        check_body(verified, digest_of_pieces(b"x"))


@pytest.mark.parametrize(
    "field",
    [
        "",
        "sha-512=:" + "A" * 86 + "==:",
        content_digest(BODY) + ", md5=:AAAA:",
        content_digest(BODY).upper(),
        content_digest(BODY).replace("=:", "=: "),
        "ſha-256=:é:",
    ],
)
def test_only_one_form_of_content_digest_matches(field: str) -> None:
    assert not digest_of_pieces(BODY).matches(field)


# ------------------------------------------------------------------ our own mistakes are told at once


def test_signing_with_a_body_needs_its_fields() -> None:
    with pytest.raises(ValueError, match="disagree"):
        sign_request(unsigned(None), AGENT, now=NOW, has_body=True)
    with pytest.raises(ValueError, match="cannot be signed"):
        sign_request(HttpRequest("POST", URL, {"Content-Type": "a/b"}), AGENT, now=NOW, has_body=True)


def test_signing_without_a_body_refuses_the_fields_of_one() -> None:
    with pytest.raises(ValueError, match="disagree"):
        sign_request(unsigned(), AGENT, now=NOW, has_body=False)


# ------------------------------------------------------------------ answers

ANSWER_BODY = b'{"id": "x"}'


def answer_to(
    request: HttpRequest, *, key: SigningKey = ORCHESTRATOR, now: datetime = NOW, status: int = 202
) -> HttpAnswer:
    answer = HttpAnswer(status, {"Content-Digest": content_digest(ANSWER_BODY)})
    return HttpAnswer(status, {**dict(answer.headers), **sign_answer(answer, request, key, now=now)})


def check(
    answer: HttpAnswer, request: HttpRequest, *, roster: Roster = ROSTER, now: datetime = NOW
) -> ContentDigest:
    verified = verify_answer(answer, request, roster, expected=ORCHESTRATOR.keyid, now=now, skew=SKEW)
    digest = digest_of_pieces(ANSWER_BODY)
    check_body(verified, digest)
    return digest


def forge_answer(
    request: HttpRequest,
    *,
    components: Iterable[tuple[str, str]] | None = None,
    parameters: Mapping[str, int | str] | None = None,
) -> HttpAnswer:
    """An answer with a signature of the orchestrator that holds, over any components and parameters."""
    wanted = components_of_answer(request) if components is None else components
    told = answer_parameters() if parameters is None else parameters
    inner = "(" + " ".join(name for name, _ in wanted) + ")"
    for name, value in told.items():
        inner += f";{name}={value}" if isinstance(value, int) else f';{name}="{value}"'
    base = "\n".join([*(f"{name}: {value}" for name, value in wanted), f'"@signature-params": {inner}'])
    signature = base64.b64encode(ORCHESTRATOR.sign(base.encode())).decode()
    digest = content_digest(ANSWER_BODY)
    headers = {"Content-Digest": digest, "Signature-Input": f"a={inner}", "Signature": f"a=:{signature}:"}
    return HttpAnswer(202, headers)


def answer_parameters() -> dict[str, int | str]:
    return {"created": T, "keyid": ORCHESTRATOR.keyid, "alg": "ed25519", "tag": "dc-compute-v1"}


def components_of_answer(request: HttpRequest) -> list[tuple[str, str]]:
    signature = dict(request.headers)["Signature"].removeprefix("dc=")
    return [
        ('"@status"', "202"),
        ('"content-digest"', content_digest(ANSWER_BODY)),
        ('"signature";req;key="dc"', signature),
    ]


def test_a_signed_answer_is_accepted() -> None:
    request = signed()

    assert check(answer_to(request), request).length == len(ANSWER_BODY)


def test_an_answer_written_by_hand_after_the_contract_is_accepted() -> None:
    request = signed()

    check(forge_answer(request), request)


def test_an_answer_to_a_request_under_another_label_is_accepted() -> None:
    request = forge(unsigned(), label="*sig.1-x_")

    check(answer_to(request), request)


def test_an_answer_for_another_request_is_refused() -> None:
    first, second = signed(), signed()

    with pytest.raises(BadAnswer):
        check(answer_to(first), second)


@pytest.mark.parametrize("left_out", [0, 1, 2])
def test_an_answer_that_leaves_a_component_out_is_refused(left_out: int) -> None:
    request = signed()
    components = components_of_answer(request)
    del components[left_out]

    with pytest.raises(BadAnswer, match="does not cover"):
        check(forge_answer(request, components=components), request)


@pytest.mark.parametrize("name", sorted(answer_parameters()))
def test_an_answer_without_one_of_its_parameters_is_refused(name: str) -> None:
    request = signed()
    parameters = {key: value for key, value in answer_parameters().items() if key != name}

    with pytest.raises(BadAnswer):
        check(forge_answer(request, parameters=parameters), request)


@pytest.mark.parametrize("wrong", [{"tag": "x"}, {"expires": T + 60}, {"alg": "rsa"}], ids=str)
def test_an_answer_with_a_wrong_parameter_is_refused(wrong: dict[str, int | str]) -> None:
    request = signed()

    with pytest.raises(BadAnswer):
        check(forge_answer(request, parameters={**answer_parameters(), **wrong}), request)


def test_an_answer_by_somebody_else_of_the_roster_is_refused() -> None:
    request = signed()

    with pytest.raises(BadAnswer, match="signed by"):
        check(answer_to(request, key=AGENT), request)


def test_an_answer_by_a_revoked_key_is_refused() -> None:
    request = signed()
    roster = roster_with(entry_of(ORCHESTRATOR, Role.ORCHESTRATOR, revoked_at=NOW))

    with pytest.raises(BadAnswer, match="revoked"):
        check(answer_to(request), request, roster=roster)


def test_an_answer_with_another_status_is_refused() -> None:
    request = signed()
    answer = answer_to(request, status=403)

    with pytest.raises(BadAnswer):
        check(HttpAnswer(202, answer.headers), request)


def test_an_answer_with_another_body_is_refused() -> None:
    request = signed()
    verified = verify_answer(
        answer_to(request), request, ROSTER, expected=ORCHESTRATOR.keyid, now=NOW, skew=SKEW
    )

    with pytest.raises(DigestMismatch):
        check_body(verified, digest_of_pieces(b"{}"))


def test_an_answer_with_another_digest_is_refused() -> None:
    request = signed()
    headers = {**dict(answer_to(request).headers), "Content-Digest": content_digest(b"{}")}

    with pytest.raises(BadAnswer):
        check(HttpAnswer(202, headers), request)


def test_an_answer_whose_digest_stands_twice_is_refused() -> None:
    request = signed()
    digest = content_digest(ANSWER_BODY)
    components = components_of_answer(request)
    components[1] = ('"content-digest"', f"{digest}, {digest}")
    answer = forge_answer(request, components=components)
    pairs = (*dict(answer.headers).items(), ("content-digest", digest))

    with pytest.raises(BadAnswer, match="once"):
        check(HttpAnswer(202, pairs), request)


def test_an_unsigned_answer_is_refused() -> None:
    with pytest.raises(BadAnswer, match="missing"):
        check(HttpAnswer(202, {"Content-Digest": content_digest(ANSWER_BODY)}), signed())


@pytest.mark.parametrize("seconds", [-31, 151])
def test_an_answer_of_another_time_is_refused(seconds: int) -> None:
    request = signed()

    with pytest.raises(BadAnswer, match="s old"):
        check(answer_to(request), request, now=NOW + timedelta(seconds=seconds))


@pytest.mark.parametrize("seconds", [-30, 0, 150])
def test_an_answer_at_the_edge_of_its_time_is_accepted(seconds: int) -> None:
    request = signed()

    check(answer_to(request), request, now=NOW + timedelta(seconds=seconds))


def test_nobody_signs_an_answer_to_an_unsigned_request() -> None:
    answer = HttpAnswer(200, {"Content-Digest": content_digest(b"")})

    with pytest.raises(ValueError, match="no signature"):
        sign_answer(answer, unsigned(), ORCHESTRATOR, now=NOW)
    with pytest.raises(BadAnswer):
        check(answer_to(signed()), unsigned())


def test_nobody_signs_an_answer_without_a_digest() -> None:
    with pytest.raises(ValueError, match="Content-Digest"):
        sign_answer(HttpAnswer(200), signed(), ORCHESTRATOR, now=NOW)


def test_a_signed_answer_is_no_request_and_a_signed_request_no_answer() -> None:
    request = signed()

    with pytest.raises(BadRequestSignature):
        verify(with_headers(unsigned(), dict(answer_to(request).headers)))
    with pytest.raises(BadAnswer):
        verify_answer(
            HttpAnswer(202, request.headers), request, ROSTER, expected=AGENT.keyid, now=NOW, skew=SKEW
        )


# ------------------------------------------------------------------ whatever comes, only our errors leave

WORD = st.text(st.sampled_from('abc=:;()",\\ \t?*-01.@\r\n\x00é'), max_size=40)
PARTS = st.sampled_from(
    [
        'dc=("@method" "@authority" "@path" "@query")',
        f";created={T};expires={T + 60}",
        ';nonce="0123456789abcdef"',
        f';keyid="{AGENT.keyid}"',
        ';alg="ed25519";tag="dc-compute-v1"',
        "dc=:AAAA:",
        "dc=:" + "A" * 86 + "==:",
        "dc=(" + '"@query-param";name="x" ' + '"signature";req)',
        ';created=999999999999999;expires="x"',
        "?1",
        "@1659578233",
        '%"x"',
        ",",
    ]
)
FIELD = st.lists(st.one_of(WORD, PARTS), max_size=6).map("".join)
NAMES = ["Signature", "Signature-Input", "Content-Digest", "Content-Length", "Content-Type"]


@given(
    fields=st.lists(st.tuples(st.sampled_from(NAMES), FIELD), max_size=7),
    method=st.sampled_from(["GET", "POST", "get", "", "é"]),
    url=st.one_of(st.just(URL), st.text(max_size=30).map(lambda text: f"https://{HERE}/{text}"), st.text()),
)
def test_malformed_requests_raise_only_errors_of_ours(
    fields: list[tuple[str, str]], method: str, url: str
) -> None:
    with pytest.raises(AgentError):
        verify(HttpRequest(method, url, tuple(fields)))


@given(position=st.integers(0, 400), character=st.characters(), field=st.sampled_from(NAMES[:2]))
def test_no_single_altered_character_of_a_signature_is_accepted(
    position: int, character: str, field: str
) -> None:
    request = forge(unsigned())
    value = dict(request.headers)[field]
    place = position % len(value)
    altered = value[:place] + character + value[place + 1 :]
    unused_bits = len(value) - 4 if field == "Signature" else -1  # base64 of 64 bytes has four
    assume(character != value[place] and place != unused_bits)

    with pytest.raises(AgentError):
        verify(with_headers(request, {field: altered}))


@given(fields=st.lists(st.tuples(st.sampled_from(NAMES), FIELD), max_size=7), status=st.integers())
def test_malformed_answers_raise_only_bad_answer(fields: list[tuple[str, str]], status: int) -> None:
    with pytest.raises(BadAnswer):
        check(HttpAnswer(status, tuple(fields)), signed())
