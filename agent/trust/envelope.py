"""DSSE envelopes: signed bytes that outlive one connection. One payload, one type, one Ed25519 signature.

The verifier hashes and parses the payload bytes as they came and never re-serialises, so no canonical JSON is
needed. The digest of a signed thing is that of its decoded payload: white space in the envelope, the order of
its fields and the choice between the two base64 alphabets change nothing; every other spelling of base64 is
refused.

Source: the DSSE protocol and envelope documents, v1.0; docs/contracts/chain.md.
"""

import re
from collections.abc import Collection
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Final

from msgspec import Meta, Struct

from agent.domain.ids import Digest, KeyId, KeyIdField, digest_of
from agent.domain.strict_json import decode, encode
from agent.errors import BadEnvelope, BadOrder, TooLarge, UnknownPayloadType
from agent.trust.keys import SIGNATURE_BYTES, SigningKey, decode_base64, encode_base64

if TYPE_CHECKING:  # the roster itself comes in an envelope
    from agent.trust.roster import Role, Roster

MAX_FRAME_BYTES: Final = 4096  # all that an envelope may hold beside its payload, white space too


class WireSignature(Struct, frozen=True, forbid_unknown_fields=True):
    """The one signature: whose, and its 64 bytes in base64."""

    keyid: KeyIdField
    sig: Annotated[str, Meta(min_length=88, max_length=88)]


class WireEnvelope(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """An envelope as JSON has it.

    Shape: {"payloadType": text, "payload": base64, "signatures": [{"keyid": hex, "sig": base64}]}
    """

    payload_type: Annotated[str, Meta(min_length=1, max_length=200)]
    payload: str
    signatures: Annotated[tuple[WireSignature, ...], Meta(min_length=1, max_length=1)]


class Envelope(Struct, frozen=True):
    """A parsed envelope, nothing verified: `keyid` is who is said to have signed, `digest` the payload's."""

    payload_type: str
    payload: bytes
    keyid: KeyId
    signature: bytes
    digest: Digest


class Opened(Struct, frozen=True):
    """A payload whose signer was known, of the right role, and really signed it."""

    payload_type: str
    payload: bytes
    signer: KeyId
    digest: Digest


def pae(payload_type: str, payload: bytes) -> bytes:
    """The bytes that are signed: "DSSEv1" SP length SP type SP length SP payload, lengths in bytes."""
    kind = payload_type.encode("utf-8")
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def sign_envelope(payload_type: str, payload: bytes, key: SigningKey) -> bytes:
    """The envelope, as JSON bytes, of this payload signed by this key."""
    signature = key.sign(pae(payload_type, payload))
    return encode(
        WireEnvelope(
            payload_type=payload_type,
            payload=encode_base64(payload),
            signatures=(WireSignature(keyid=key.keyid, sig=encode_base64(signature)),),
        )
    )


def parse_envelope(data: bytes, *, limit_bytes: int) -> Envelope:
    """The parts of an envelope, not yet verified. `limit_bytes` bounds the decoded payload.

    Raises: TooLarge; BadJson when it is not strict JSON; BadEnvelope when it is not one envelope with one
    signature.
    """
    limit_of_text = 4 * -(-limit_bytes // 3) + MAX_FRAME_BYTES
    try:
        wire = decode(data, WireEnvelope, limit_bytes=limit_of_text, what="the envelope")
    except BadOrder as cause:
        raise BadEnvelope(cause.detail) from cause
    payload = _decode_either("payload", wire.payload)
    if len(payload) > limit_bytes:
        raise TooLarge(f"the payload has {len(payload)} bytes, the limit is {limit_bytes}")
    signature = _decode_either("sig", wire.signatures[0].sig)
    if len(signature) != SIGNATURE_BYTES:
        raise BadEnvelope(f"an Ed25519 signature has {SIGNATURE_BYTES} bytes, this one {len(signature)}")
    return Envelope(wire.payload_type, payload, wire.signatures[0].keyid, signature, digest_of(payload))


def open_envelope(
    data: bytes,
    roster: "Roster",
    *,
    role: "Role | None",
    types: Collection[str],
    at: datetime | None,
    limit_bytes: int,
) -> Opened:
    """The payload, once its type is one of `types` and a key that may sign that type signed it.

    The table PAYLOAD_ROLES of the roster says which role that is; `role` may name it once more. `at`: the
    moment at which the key's dates must hold; None only where the caller judges them itself, when the payload
    is read. A revoked key is refused in any case.
    Raises: as parse_envelope; UnknownPayloadType, UnknownKey, WrongRole, KeyNotValid, BadSignature.
    """
    envelope = parse_envelope(data, limit_bytes=limit_bytes)
    if envelope.payload_type not in types:
        raise UnknownPayloadType(f"the payload type {envelope.payload_type!r} is not expected here")
    signer = roster.require_signer(envelope.payload_type, envelope.keyid, role=role, at=at)
    signer.public_key.verify(envelope.signature, pae(envelope.payload_type, envelope.payload))
    return Opened(envelope.payload_type, envelope.payload, signer.keyid, envelope.digest)


_URL_SAFE = re.compile(r"[-_]")
_TO_STANDARD = str.maketrans("-_", "+/")


def _decode_either(name: str, text: str) -> bytes:
    """The bytes of canonical base64, standard or URL-safe (DSSE wants both), never a mixture of the two."""
    try:
        if _URL_SAFE.search(text):
            if "+" in text or "/" in text:
                raise ValueError("two base64 alphabets are mixed")
            text = text.translate(_TO_STANDARD)
        return decode_base64(text)
    except ValueError as cause:
        raise BadEnvelope(f"`{name}` of the envelope: {cause}") from cause
