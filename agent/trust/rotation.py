"""Rotation statements: an agent's old key and its new key say together that they are one agent.

A DSSE envelope with two signatures over one payload, the old key's first and the new key's second. Both must hold: the old
key hands on what it may do, the new one shows that its holder wants it. With both public keys inside it can be checked alone.

Source: docs/contracts/roster.md, "Rotation".
"""

from datetime import datetime
from typing import Annotated, Final

from msgspec import Meta, Struct

from agent.domain.ids import KeyIdField, is_wire_time, wire_time
from agent.domain.strict_json import decode, encode
from agent.errors import AgentError, BadRotation
from agent.trust.envelope import WireSignature, pae
from agent.trust.keys import PublicKey, SigningKey, decode_base64, encode_base64

ROTATION_TYPE: Final = "application/vnd.dc-compute.rotation.v1+json"
MAX_ROTATION_BYTES: Final = 4 << 10


class Rotation(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What both keys sign. `until`: the old key no longer holds from then on, whatever a roster says."""

    old: KeyIdField
    old_public_key: str
    new: KeyIdField
    new_public_key: str
    issued: datetime
    until: datetime

    def __post_init__(self) -> None:
        if (self.old_key.keyid, self.new_key.keyid) != (self.old, self.new):
            raise ValueError("a key id is not the sha256 of its public key")
        if self.old == self.new:
            raise ValueError("the old key and the new one are the same")
        if not (is_wire_time(self.issued) and is_wire_time(self.until)):
            raise ValueError("times are RFC 3339 in UTC with Z, whole seconds")
        if self.until <= self.issued:
            raise ValueError("`until` must lie after `issued`")

    @property
    def old_key(self) -> PublicKey:
        """The key that goes."""
        return PublicKey.from_base64(self.old_public_key)

    @property
    def new_key(self) -> PublicKey:
        """The key that comes."""
        return PublicKey.from_base64(self.new_public_key)


class _WireRotation(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    payload_type: str
    payload: str
    signatures: Annotated[tuple[WireSignature, ...], Meta(min_length=2, max_length=2)]


def sign_rotation(old: SigningKey, new: SigningKey, *, issued: datetime, until: datetime) -> str:
    """The statement, as the JSON text that a roster entry carries. Raises: ValueError for one that nobody would accept."""
    told = Rotation(
        old=old.keyid,
        old_public_key=old.public.base64,
        new=new.keyid,
        new_public_key=new.public.base64,
        issued=wire_time(issued),
        until=wire_time(until),
    )
    payload = encode(told)
    signed = pae(ROTATION_TYPE, payload)
    return encode(
        _WireRotation(
            payload_type=ROTATION_TYPE,
            payload=encode_base64(payload),
            signatures=tuple(
                WireSignature(keyid=key.keyid, sig=encode_base64(key.sign(signed))) for key in (old, new)
            ),
        )
    ).decode()


def open_rotation(text: str) -> Rotation:
    """What this statement says, once both keys were found to have signed it. Nobody's roster is asked. Raises: BadRotation."""
    try:
        wire = decode(
            text.encode(), _WireRotation, limit_bytes=MAX_ROTATION_BYTES, what="the rotation statement"
        )
        if wire.payload_type != ROTATION_TYPE:
            raise BadRotation(f"{wire.payload_type[:120]!r} is no rotation statement")
        payload = decode_base64(wire.payload)
        told = decode(payload, Rotation, limit_bytes=MAX_ROTATION_BYTES, what="the rotation statement")
        by_old, by_new = wire.signatures
        if (by_old.keyid, by_new.keyid) != (told.old, told.new):
            raise BadRotation("the old key signs first and the new one second, and nobody else")
        signed = pae(ROTATION_TYPE, payload)
        told.old_key.verify(decode_base64(by_old.sig), signed)
        told.new_key.verify(decode_base64(by_new.sig), signed)
    except BadRotation:
        raise
    except (AgentError, ValueError) as cause:
        raise BadRotation(f"this is no rotation statement that holds: {cause}") from cause
    return told
