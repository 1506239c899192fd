"""The lines of the audit log and the chain they form: each names the digest of the one before.

A line is one JSON object without a line break, its members in the order of `Line`; its digest is that of its bytes. So
whoever holds the digest of the newest line holds all of them: none can be altered, taken out, put in or moved but the
digests after it change. What this shows and what not: SECURITY.md, "The audit log".
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from agent.domain.chain import images_for, task_at
from agent.domain.ids import Digest, DigestField, KeyIdField, OrderId, digest_of
from agent.domain.orders import SignedOrder
from agent.domain.prepared import prepared
from agent.domain.strict_json import encode

Plain = str | int | float | None

CHECKPOINT: Final = "audit.checkpoint"  # a line that holds a signed head of everything before it
# The first line that is written anew after a restore: those before it come from a backup, later ones of that time are not here.
RESTORED: Final = "ledger.restored"
FIRST: Final = 1  # the number of the first line
MAX_LINE_BYTES: Final = 64 << 10
MAX_HEAD_BYTES: Final = 4 << 10

SignHead = Callable[[int, Digest | None], str]
"""(number, digest) of the newest line: the signed head that says so, as text."""


class NewEvent(Struct, frozen=True, kw_only=True):
    """A line to be written: what happened, to which order, position and dataset, with plain values. Never payloads or keys."""

    name: str
    order_id: OrderId | None = None
    position: int | None = None
    dataset: str | None = None
    values: dict[str, Plain] = {}


class Line(Struct, frozen=True):
    """One line as it is hashed. The order of these members is that of the bytes, and never changes.

    `values` is kept as it was written: nobody re-serialises it. `previous` is None in the first line.
    """

    seq: int
    at: datetime
    name: str
    order: OrderId | None
    position: int | None
    dataset: str | None
    values: msgspec.Raw
    previous: Digest | None

    @property
    def told(self) -> dict[str, Plain]:
        """Its values, read. Raises: msgspec.MsgspecError when somebody wrote what is no flat object."""
        return msgspec.json.decode(self.values, type=prepared(dict[str, Plain]))


class Head(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What an agent signs of its log: the lines from `first` to `seq` are there, and the last of them has this digest.

    `is_newest`: whether it was the newest line at that time. An empty log has `seq` 0 and no digest.
    """

    agent: KeyIdField
    first: Annotated[int, Meta(ge=1)]
    seq: Annotated[int, Meta(ge=0)]
    digest: DigestField | None
    is_newest: bool
    at: datetime


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(prepared(Line))


def bytes_of(line: Line) -> bytes:
    """The bytes of a line, which its digest is over."""
    return _encoder.encode(line)


def parse_line(data: bytes) -> Line:
    """A line of an export; its digest is that of these very bytes. Raises: msgspec.MsgspecError when it is none."""
    return _decoder.decode(data)


def digest_of_line(line: Line) -> Digest:
    """The digest that the next line names."""
    return digest_of(bytes_of(line))


def next_line(event: NewEvent, now: datetime, last_seq: int, last_digest: Digest | None) -> Line:
    """The line of this event after the newest one; (0, None) when there is none yet."""
    return Line(
        seq=last_seq + 1,
        at=now.astimezone(UTC),
        name=event.name,
        order=event.order_id,
        position=event.position,
        dataset=event.dataset,
        values=msgspec.Raw(encode(event.values)),
        previous=last_digest,
    )


# ------------------------------------------------------------------ what lines tell


def told_of_task(signed: SignedOrder, position: int) -> dict[str, Plain]:
    """What the first line of a task tells beside its dataset: who wants what done on which version, by which images."""
    task = task_at(signed.order, position)
    about: dict[str, Plain] = {"kind": task.kind, "version": task.dataset.version}
    images: dict[str, Plain] = {f"{role}_image": image for role, image in images_for(signed.order, task)}
    return about | {"orchestrator": signed.signer, "order": signed.digest} | images


def is_told(tries: int) -> bool:
    """Whether the nth try of a delivery gets a line of its own: the first three, then each power of two.

    A receiver that is away for weeks must not fill the disk; the last line of a delivery counts all its tries.
    """
    return tries <= 3 or tries & (tries - 1) == 0
