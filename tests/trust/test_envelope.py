"""Envelopes: the DSSE vectors, the one form of base64, and everything that is not exactly one signed payload."""

import base64
import hashlib
import json
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from hypothesis import example, given
from hypothesis import strategies as st

from agent.domain.ids import digest_of
from agent.domain.orders import LEARNUPLET_TYPE, MAX_ORDER_BYTES
from agent.domain.receipts import RECEIPT_TYPE
from agent.errors import (
    BadEnvelope,
    BadJson,
    BadSignature,
    KeyNotValid,
    OrderError,
    TooLarge,
    TrustError,
    UnknownKey,
    UnknownPayloadType,
    WrongRole,
)
from agent.trust.envelope import Opened, open_envelope, pae, parse_envelope, sign_envelope
from agent.trust.keys import SigningKey
from agent.trust.roster import PAYLOAD_ROLES, ROSTER_TYPE, Role
from tests.builders import DAY, NOW, changed, consortium, key_of, read_envelope

WORLD = consortium()
LIMIT = 1000


def opened(envelope: bytes, **changes: Any) -> Opened:
    """Open an envelope as a receipt's receiver would."""
    given: dict[str, Any] = {"role": Role.AGENT, "types": {RECEIPT_TYPE}, "at": NOW, "roster": WORLD.roster}
    given |= changes
    return open_envelope(envelope, given.pop("roster"), limit_bytes=LIMIT, **given)


def spoilt(**changes: Any) -> bytes:
    """A good envelope by agent a with fields of its JSON changed."""
    return json.dumps(read_envelope(GOOD) | changes).encode()


GOOD = sign_envelope(RECEIPT_TYPE, b"hello world", WORLD.agent("a"))


# ------------------------------------------------------------------ the vectors


def test_the_vector_of_the_dsse_protocol_document() -> None:
    signed_bytes = pae("http://example.com/HelloWorld", b"hello world")

    assert signed_bytes == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"


def test_the_signature_of_the_dsse_protocol_document_is_over_our_pae() -> None:
    """The document signs with ECDSA over P-256; the key and the signature are its own."""
    x = 46950820868899156662930047687818585632848591499744589407958293238635476079160
    y = 5640078356564379163099075877009565129882514886557779369047442380624545832820
    sig = "A3JqsQGtVsJ2O2xqrI5IcnXip5GToJ3F+FnZ+O88SjtR6rDAajabZKciJTfUiHqJPcIAriEGAHTVeCUjW2JIZA=="
    raw = base64.b64decode(sig)
    der = encode_dss_signature(int.from_bytes(raw[:32]), int.from_bytes(raw[32:]))

    public = ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()

    public.verify(der, pae("http://example.com/HelloWorld", b"hello world"), ec.ECDSA(SHA256()))


@pytest.mark.parametrize(
    ("payload_type", "payload", "sig"),
    [
        (
            "application/vnd.in-toto+json",
            b'{"_type":"https://in-toto.io/Statement/v1"}',
            "2WAfaHm5jluo0w+0rk8uVkluELJYWjSmU9x7EUzx+AyteDGJ4/nqyJXfmAUVFIAoQafWm7AxBZNw5M9ixNHiCA==",
        ),
        (
            "application/vnd.exämple+json",
            b'{"_type":"https://in-toto.io/Statement/v1"}',
            "xmSk/ug66ysT7ayhkCIjhAq42zgZXSsEWuzUaNL7w2eGAdF/NU6/fRXPtmfN+5DNSAs5/i2lUnHjbbjPsu0tAw==",
        ),
        (
            "application/vnd.in-toto+json",
            b"",
            "gSggCAaTLTYyRH6FIDBem6meyIynsYy8RTHVzwx9tnTb7Bg/1jMWnuVgI/gffqmbsC2VX5/jHfkkDqsj7CDbDg==",
        ),
    ],
    ids=["plain", "length-in-bytes", "empty"],
)
def test_ed25519_over_dsse_gives_these_signatures(payload_type: str, payload: bytes, sig: str) -> None:
    """Key: RFC 8032, section 7.1, test 1. Signatures: recomputed from the definition of PAE alone."""
    seed = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    key = SigningKey(Ed25519PrivateKey.from_private_bytes(seed))

    envelope = read_envelope(sign_envelope(payload_type, payload, key))

    assert envelope == {
        "payloadType": payload_type,
        "payload": base64.b64encode(payload).decode(),
        "signatures": [{"keyid": hashlib.sha256(key.public.raw).hexdigest(), "sig": sig}],
    }


# ------------------------------------------------------------------ the one form


def test_an_envelope_opens_to_what_was_signed() -> None:
    assert opened(GOOD) == Opened(
        RECEIPT_TYPE, b"hello world", WORLD.agent("a").keyid, digest_of(b"hello world")
    )


def test_white_space_and_the_order_of_fields_do_not_change_the_digest() -> None:
    shuffled = dict(reversed(read_envelope(GOOD).items()))

    assert opened(json.dumps(shuffled, indent=3).encode()) == opened(GOOD)


def test_the_url_safe_alphabet_is_the_same_envelope() -> None:
    payload = b"\xfb\xff\xbf>?" * 9
    standard = sign_envelope(RECEIPT_TYPE, payload, WORLD.agent("a"))
    fields = read_envelope(standard)
    fields["payload"] = base64.urlsafe_b64encode(payload).decode()
    fields["signatures"][0]["sig"] = fields["signatures"][0]["sig"].translate(str.maketrans("+/", "-_"))

    assert opened(json.dumps(fields).encode()) == opened(standard)


@pytest.mark.parametrize(
    "payload",
    [
        "aGVsbG8gd29ybGQ",  # no padding
        "aGVsbG8gd29ybGR=",  # unused bits set
        "aGVsbG8gd29y\nbGQ=",
        " aGVsbG8gd29ybGQ=",
        "aGVsbG8gd29ybGQ=\n",
        "aGVsbG8gd29ybGQ==",
        "aGVsbG8gd29ybGQ=aGVs",
        "aGVsbG8+d29-bGQ=",  # both alphabets
        "aGVsbG8gd29ybGQä",
        "aGVsbG8*gd29ybGQ=",
        "=",
        None,
        11,
        ["aGVsbG8gd29ybGQ="],
    ],
)
def test_any_other_spelling_of_the_payload_is_refused(payload: object) -> None:
    with pytest.raises(BadEnvelope):
        opened(spoilt(payload=payload))


def signature(**changes: Any) -> dict[str, Any]:
    """The good envelope's signature with changes."""
    first: dict[str, Any] = read_envelope(GOOD)["signatures"][0]
    return first | changes


SIG = signature()["sig"]


@pytest.mark.parametrize(
    "signatures",
    [
        [],
        [signature(), signature()],
        [signature(), {"keyid": key_of("x").keyid, "sig": SIG}],
        None,
        {},
        [signature(sig=SIG[:-1])],
        [signature(sig=SIG[:-4] + "A===")],
        [signature(sig=base64.b64encode(b"x" * 65).decode())],
        [signature(sig=base64.b64encode(b"x" * 63).decode())],
        [signature(sig="")],
        [signature(keyid=signature()["keyid"].upper())],
        [signature(keyid=signature()["keyid"] + "\n")],
        [signature(keyid="")],
        [{"sig": SIG}],
        [{"keyid": signature()["keyid"]}],
        [signature(alg="none")],
        [signature(cert="-----BEGIN")],
    ],
)
def test_anything_but_exactly_one_ed25519_signature_is_refused(signatures: object) -> None:
    with pytest.raises(BadEnvelope):
        opened(spoilt(signatures=signatures))


@pytest.mark.parametrize(
    "envelope",
    [
        spoilt(more=1),
        spoilt(payloadType=None),
        spoilt(payloadType=""),
        spoilt(payloadType="x" * 201),
        b"[]",
        b"null",
        b'""',
        b"{}",
        json.dumps({k: v for k, v in read_envelope(GOOD).items() if k != "payload"}).encode(),
    ],
)
def test_json_that_is_no_envelope_is_refused(envelope: bytes) -> None:
    with pytest.raises(BadEnvelope):
        opened(envelope)


@pytest.mark.parametrize(
    "envelope",
    [
        b"",
        b"\xff" + GOOD,
        GOOD + b"{}",
        GOOD[:-1],
        b"\xef\xbb\xbf" + GOOD,
        GOOD[:-1] + b',"payload":"aGVsbG8gd29ybGQ="}',
        b"[" * 5000,
        b'{"payload":' + b"[" * 5000,
        GOOD[:-1] + b',"more":NaN}',
        GOOD[:-1] + b',"more":"\\ud800"}',
    ],
    ids=["empty", "not utf-8", "two", "cut", "bom", "key twice", "deep", "deep in", "nan", "surrogate"],
)
def test_anything_but_strict_json_is_refused(envelope: bytes) -> None:
    with pytest.raises(BadJson):
        opened(envelope)


def test_a_payload_over_its_limit_is_refused_whatever_the_envelope_measures() -> None:
    just = sign_envelope(RECEIPT_TYPE, b"x" * LIMIT, WORLD.agent("a"))
    over = sign_envelope(RECEIPT_TYPE, b"x" * (LIMIT + 1), WORLD.agent("a"))

    assert len(opened(just).payload) == LIMIT
    with pytest.raises(TooLarge):
        opened(over)


def test_an_envelope_full_of_white_space_is_refused() -> None:
    with pytest.raises(TooLarge):
        opened(GOOD + b" " * 1_000_000)


@given(st.binary(max_size=300))
@example(b"\x00")
def test_no_bytes_at_all_do_anything_but_parse_or_be_refused(data: bytes) -> None:
    with suppress(OrderError, TrustError):  # anything else is a 500
        parse_envelope(data, limit_bytes=LIMIT)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@given(field=st.sampled_from(["payloadType", "payload", "signatures", "other"]), value=_json)
def test_no_field_of_any_kind_does_anything_but_parse_or_be_refused(field: str, value: object) -> None:
    with suppress(OrderError, TrustError):  # anything else is a 500
        opened(spoilt(**{field: value}))


@given(payload=st.binary(max_size=200), payload_type=st.text(min_size=1, max_size=40))
def test_what_is_signed_is_what_is_parsed(payload: bytes, payload_type: str) -> None:
    envelope = parse_envelope(sign_envelope(payload_type, payload, key_of("any")), limit_bytes=LIMIT)

    assert (envelope.payload_type, envelope.payload, envelope.digest) == (
        payload_type,
        payload,
        digest_of(payload),
    )


@given(
    st.tuples(st.text(max_size=9), st.binary(max_size=9)),
    st.tuples(st.text(max_size=9), st.binary(max_size=9)),
)
def test_two_signed_things_never_share_their_signed_bytes(one: Any, other: Any) -> None:
    try:
        same = pae(*one) == pae(*other)
    except UnicodeEncodeError:
        return

    assert same == (one == other)


# ------------------------------------------------------------------ who signed


def test_another_payload_under_the_old_signature_is_refused() -> None:
    with pytest.raises(BadSignature):
        opened(spoilt(payload=base64.b64encode(b"hello worle").decode()))


def test_the_payload_type_is_signed_too() -> None:
    envelope = json.loads(sign_envelope("application/vnd.other+json", b"hello world", WORLD.agent("a")))
    envelope["payloadType"] = RECEIPT_TYPE

    with pytest.raises(BadSignature):
        opened(json.dumps(envelope).encode())


def test_a_signature_under_another_rostered_agents_keyid_is_refused() -> None:
    with pytest.raises(BadSignature):
        opened(spoilt(signatures=[signature(keyid=WORLD.agent("b").keyid)]))


def test_a_key_that_is_not_in_the_roster_is_refused() -> None:
    with pytest.raises(UnknownKey):
        opened(sign_envelope(RECEIPT_TYPE, b"x", key_of("stranger")))


@pytest.mark.parametrize("payload_type", sorted(PAYLOAD_ROLES))
def test_each_payload_type_admits_one_role(payload_type: str) -> None:
    keys = {
        Role.AGENT: WORLD.agent("a"),
        Role.ORCHESTRATOR: WORLD.orchestrator,
        Role.OWNER: WORLD.owner,
        Role.STORAGE: WORLD.storage("a"),
    }
    admitted = keys.pop(PAYLOAD_ROLES[payload_type])

    opened(sign_envelope(payload_type, b"x", admitted), types={payload_type}, role=None)

    for other in keys.values():
        with pytest.raises(WrongRole):
            opened(sign_envelope(payload_type, b"x", other), types={payload_type}, role=None)


def test_a_role_that_the_table_does_not_give_the_type_is_refused() -> None:
    with pytest.raises(WrongRole):
        opened(GOOD, role=Role.ORCHESTRATOR)


@pytest.mark.parametrize(
    ("payload_type", "types"),
    [
        (RECEIPT_TYPE, {LEARNUPLET_TYPE}),
        (RECEIPT_TYPE, set()),
        ("application/vnd.dc-compute.learnuplet.v2+json", {LEARNUPLET_TYPE}),
        (LEARNUPLET_TYPE.upper(), {LEARNUPLET_TYPE}),
        ("application/vnd.other+json", {"application/vnd.other+json"}),
        (ROSTER_TYPE, {ROSTER_TYPE}),
    ],
)
def test_a_payload_type_that_is_not_expected_or_has_no_role_is_refused(
    payload_type: str, types: set[str]
) -> None:
    with pytest.raises(UnknownPayloadType):
        opened(sign_envelope(payload_type, b"x", WORLD.agent("a")), types=types, role=None)


def test_a_key_outside_its_dates_or_revoked_is_refused() -> None:
    keyid = WORLD.agent("a").keyid
    second = timedelta(seconds=1)

    opened(GOOD, at=NOW - DAY)
    opened(GOOD, at=NOW + 365 * DAY - second)
    for at in (NOW - DAY - second, NOW + 365 * DAY):
        with pytest.raises(KeyNotValid):
            opened(GOOD, at=at)
    for at_or_none in (NOW, NOW - timedelta(hours=1), None):
        with pytest.raises(KeyNotValid):
            opened(GOOD, at=at_or_none, roster=changed(WORLD.roster, keyid, revoked_at=NOW))


def test_a_large_order_fits_its_limit() -> None:
    payload = b"x" * MAX_ORDER_BYTES
    envelope = sign_envelope(LEARNUPLET_TYPE, payload, WORLD.orchestrator)

    assert parse_envelope(envelope, limit_bytes=MAX_ORDER_BYTES).digest == digest_of(payload)
