"""Names of things on the wire: digests, key ids, order ids, and the times between them."""

import hashlib
import re
from datetime import UTC, datetime
from typing import Annotated, NewType

from msgspec import Meta

Digest = NewType("Digest", str)  # "sha256:" + 64 lowercase hex digits
KeyId = NewType("KeyId", str)  # 64 lowercase hex digits: sha256 of the raw Ed25519 public key
OrderId = NewType("OrderId", str)  # canonical lowercase uuid, given by the orchestrator
JobId = NewType("JobId", str)  # "<order id>.<position>": an order's stay at one position on this host

# Length bounds beside the patterns: `$` alone would let a trailing line break through.
DigestField = Annotated[Digest, Meta(pattern=r"^sha256:[0-9a-f]{64}$", min_length=71, max_length=71)]
KeyIdField = Annotated[KeyId, Meta(pattern=r"^[0-9a-f]{64}$", min_length=64, max_length=64)]
UuidField = Annotated[
    str, Meta(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$", min_length=36, max_length=36)
]
OrderIdField = Annotated[
    OrderId, Meta(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$", min_length=36, max_length=36)
]
VersionField = Annotated[
    str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(?!\n)$", min_length=1, max_length=64)
]

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_KEYID = re.compile(r"[0-9a-f]{64}")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def digest_of(data: bytes) -> Digest:
    """The digest of these bytes as every contract writes it."""
    return Digest("sha256:" + hashlib.sha256(data).hexdigest())


def digest_from_hex(hex_digest: str) -> Digest:
    """A digest from the hex of a sha256 that was computed while streaming. Raises: ValueError."""
    return parse_digest("sha256:" + hex_digest)


def hex_of(digest: Digest) -> str:
    """The 64 hex digits of a digest, for file names and in-toto subjects."""
    return digest.removeprefix("sha256:")


def parse_digest(text: str) -> Digest:
    """Text that came from outside, as a digest. Raises: ValueError."""
    if not _DIGEST.fullmatch(text):
        raise ValueError(f"{text[:80]!r} is not sha256: and 64 lowercase hex digits")
    return Digest(text)


def parse_keyid(text: str) -> KeyId:
    """Text that came from outside, as a key id. Raises: ValueError."""
    if not _KEYID.fullmatch(text):
        raise ValueError(f"{text[:80]!r} is not 64 lowercase hex digits")
    return KeyId(text)


def parse_order_id(text: str) -> OrderId:
    """Text that came from outside, as an order id. Raises: ValueError."""
    if not _UUID.fullmatch(text):
        raise ValueError(f"{text[:80]!r} is not a lowercase uuid")
    return OrderId(text)


def job_id(order: OrderId, position: int) -> JobId:
    """The name of an order's stay at one position on this host."""
    return JobId(f"{order}.{position}")


def wire_time(moment: datetime) -> datetime:
    """A moment as the contracts write it: aware UTC, whole seconds."""
    return moment.astimezone(UTC).replace(microsecond=0)


def is_wire_time(moment: datetime) -> bool:
    """Whether a parsed moment was written as the contracts ask: UTC, whole seconds."""
    return moment.tzinfo is not None and moment.utcoffset() == UTC.utcoffset(None) and moment.microsecond == 0
