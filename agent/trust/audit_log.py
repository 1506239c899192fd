"""An audit log judged: whether its lines form one chain, and whether they are those that a signed head vouches for.

A chain alone shows that lines were altered, taken out, put in or moved by somebody who did not write all digests anew. Signed
heads show the rest: those among the lines (checkpoints), and those that were kept elsewhere. Nothing is raised for what
is wrong in a log: it stands in the verdict. Source: SECURITY.md, "The audit log".
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

import msgspec
from msgspec import Struct

from agent.domain.audit import (
    CHECKPOINT,
    MAX_HEAD_BYTES,
    RESTORED,
    Head,
    Line,
    bytes_of,
    parse_line,
)
from agent.domain.ids import Digest, KeyId, digest_of, wire_time
from agent.domain.strict_json import decode, encode
from agent.errors import (
    AgentError,
    BrokenLog,
    KeyNotValid,
    LogRestored,
    LogTruncated,
    NotYours,
    OrderError,
    TrustError,
    UnknownKey,
)
from agent.trust.audit import Fault
from agent.trust.envelope import open_envelope, sign_envelope
from agent.trust.keys import SigningKey
from agent.trust.roster import AUDIT_HEAD_TYPE, Role, Roster

MOST_FAULTS: Final = 100  # told; all are counted


# ------------------------------------------------------------------ heads


def sign_head(
    key: SigningKey, *, seq: int, digest: Digest | None, at: datetime, first: int = 1, is_newest: bool = True
) -> bytes:
    """The envelope in which the agent vouches for the lines from `first` to `seq`."""
    head = Head(agent=key.keyid, first=first, seq=seq, digest=digest, is_newest=is_newest, at=wire_time(at))
    return sign_envelope(AUDIT_HEAD_TYPE, encode(head), key)


def open_head(envelope: bytes, roster: Roster) -> Head:
    """The head that an agent of the roster signed while its key held.

    Raises: as open_envelope; TooLarge, BadJson, BadOrder; NotYours when it tells of another agent's log.
    """
    opened = open_envelope(
        envelope, roster, role=Role.AGENT, types={AUDIT_HEAD_TYPE}, at=None, limit_bytes=MAX_HEAD_BYTES
    )
    head = decode(opened.payload, Head, limit_bytes=MAX_HEAD_BYTES, what="the head of an audit log")
    if head.agent != opened.signer:
        raise NotYours(f"agent {opened.signer} signed a head of the log of {head.agent}")
    roster.require(opened.signer, role=Role.AGENT, at=head.at)
    return head


# ------------------------------------------------------------------ the judgement


class LogFault(Struct, frozen=True):
    """What does not hold, and at which line; None where it is about the whole."""

    seq: int | None
    code: str
    detail: str


class Restore(Struct, frozen=True):
    """The log tells that it was restored from a backup: line, time, and who did it."""

    seq: int
    at: datetime
    uid: int | None


class Verdict(Struct, frozen=True, kw_only=True):
    """What a log proves. `vouched`: the last line that a signed head covers; `unjudged`: signed heads among the lines whose key
    the roster does not hold valid, which count for nothing. `faults` are the first ones of `fault_count`.
    """

    first: int
    last: int
    digest: Digest | None
    checkpoints: int
    vouched: int
    signers: tuple[KeyId, ...]
    unjudged: tuple[Fault, ...]
    restores: tuple[Restore, ...]
    faults: tuple[LogFault, ...]
    fault_count: int

    @property
    def is_sound(self) -> bool:
        """Whether everything that is there holds."""
        return self.fault_count == 0


class LogAudit:
    """Follows a log line by line, in constant memory. `heads`: signed earlier and kept elsewhere, already opened."""

    def __init__(self, roster: Roster, heads: Sequence[Head] = ()) -> None:
        self._roster = roster
        self._heads = tuple(heads)
        self._met: set[int] = set()  # heads, by place, whose line was seen
        self._first = 0
        self._last = 0
        self._digest: Digest | None = None
        self._checkpoints = 0
        self._vouched = 0
        self._signers: dict[KeyId, None] = {}
        self._unjudged: dict[str, Fault] = {}
        self._restores: list[Restore] = []
        self._faults: list[LogFault] = []
        self._fault_count = 0

    # ---- lines

    def take_row(self, seq: int, line: Line | None, recorded: Digest | None) -> None:
        """A line as it lies in a ledger, with the digest recorded for it; None for what is no line."""
        self._count(seq, None if line is None else line.previous)
        if line is None:
            self._blame(seq, BrokenLog, "what lies there is no line")
        elif recorded is None or digest_of(bytes_of(line)) != recorded:
            self._blame(
                seq, BrokenLog, "its content, or the line before it, is not what its digest was made of"
            )
        else:
            self._read(line)
        self._end(seq, recorded)

    def take_bytes(self, data: bytes) -> None:
        """A line of an export."""
        try:
            line = parse_line(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, ValueError) as cause:
            self._blame(None, BrokenLog, f"what follows line {self._last} is no line: {cause}")
            self._digest = digest_of(data)
            return
        if self._first and line.previous != self._digest:
            self._blame(
                line.seq, BrokenLog, "it does not follow the line before it: one of the two was altered"
            )
        self._count(line.seq, line.previous)
        self._read(line)
        self._end(line.seq, digest_of(data))

    def _count(self, seq: int, previous: Digest | None) -> None:
        """The line's number, and for the first one what came before it."""
        if not self._first:
            self._first = seq
            self._meet(seq - 1, previous)
        elif seq != self._last + 1:
            gone = str(seq - 1) if seq == self._last + 2 else f"{self._last + 1} to {seq - 1}"
            what = f"the lines {gone} before it are not there" if seq > self._last else "it stands twice"
            self._blame(seq, BrokenLog, what)

    def _end(self, seq: int, digest: Digest | None) -> None:
        self._last, self._digest = seq, digest
        self._meet(seq, digest)

    def _meet(self, seq: int, digest: Digest | None) -> None:
        """Compare with every head that tells of this line."""
        for place, head in enumerate(self._heads):
            if head.seq != seq:
                continue
            self._met.add(place)
            if head.digest == digest:
                self._vouched = max(self._vouched, seq)
            else:
                self._blame_head(head, f"{_told(head)} names another line {seq}")

    def _read(self, line: Line) -> None:
        """What a line says that matters to the judgement."""
        if line.name == CHECKPOINT:
            self._check(line)
        elif line.name == RESTORED:
            self._restores.append(Restore(line.seq, line.at, _uid_in(line)))

    def _check(self, line: Line) -> None:
        try:
            head = open_head(str(line.told.get("head")).encode(), self._roster)
        except (UnknownKey, KeyNotValid) as error:
            self._unjudged.setdefault(error.detail, Fault(error.code, error.detail))
            return
        except (OrderError, TrustError, msgspec.MsgspecError) as error:
            self._blame(line.seq, BrokenLog, f"its signed head does not open: {error}")
            return
        if (head.seq, head.digest) != (line.seq - 1, line.previous):
            self._blame(
                line.seq, BrokenLog, "its signed head vouches for another line than the one before it"
            )
            return
        self._checkpoints += 1
        self._vouched = head.seq
        self._signers[head.agent] = None

    # ---- the end

    def end_of_ledger(self, numbered: int) -> Verdict:
        """The verdict on a whole log. `numbered`: the highest number that its ledger ever gave to a line."""
        if numbered > self._last:
            self._blame(
                None, LogTruncated, f"lines up to {numbered} were written, the last one here is {self._last}"
            )
        for place, head in enumerate(self._heads):
            if place not in self._met and not (head.seq == 0 and head.digest is None):
                self._blame_head(head, f"{_told(head)} tells of line {head.seq}, here are {self._last}")
        return self._verdict()

    def end_of_export(self, envelope: bytes | None) -> Verdict:
        """The verdict on an export that ends with this signed head; None when it ends without one."""
        own = None
        try:
            if envelope is None:
                self._blame(None, LogTruncated, "it ends without a signed head: its end is missing")
            else:
                own = open_head(envelope, self._roster)
        except (OrderError, TrustError) as error:
            self._blame(None, type(error), f"the signed head at its end does not hold: {error.detail}")
        if own is not None:
            self._compare(own)
        for place, head in enumerate(self._heads):
            if place not in self._met:
                self._judge_absent(head, own)
        return self._verdict()

    def _compare(self, own: Head) -> None:
        """What the export's own head says with what was there."""
        first = self._first or own.first
        if (own.first, own.seq, own.digest) != (first, self._last if self._first else own.seq, self._digest):
            told = f"lines {own.first} to {own.seq}"
            seen = f"{self._first} to {self._last}" if self._first else "none"
            self._blame(
                None, BrokenLog, f"the signed head at its end vouches for {told}; here are {seen}, or others"
            )
            return
        self._vouched = own.seq
        self._signers[own.agent] = None

    def _judge_absent(self, head: Head, own: Head | None) -> None:
        """A head whose line is not in the export: it lies before its first one, or the log, or who exported it, left it out."""
        if head.seq == 0 and head.digest is None:
            return
        about = f"{_told(head)} tells of line {head.seq}"
        if own is None or head.seq >= own.first:
            when = "" if own is None else f", signed at {_when(own.at)},"
            self._blame_head(head, f"{about}, this export{when} ends with line {self._last}")
        else:
            detail = f"{about}, which lies before this export"
            self._unjudged.setdefault(detail, Fault("outside", detail))

    def _blame_head(self, head: Head, detail: str) -> None:
        """A head that does not fit: explained by a restore that the log tells of after it, or by nothing."""
        after = [one for one in self._restores if one.seq <= head.seq and head.at <= one.at]
        if after:
            one = after[-1]
            who = "" if one.uid is None else f" by user {one.uid}"
            why = (
                f"a backup was restored at {_when(one.at)}{who} (line {one.seq}), what came after it is gone"
            )
            self._blame(head.seq, LogRestored, f"{detail}: {why}")
        else:
            self._blame(head.seq, LogTruncated if head.seq > self._last else BrokenLog, detail)

    def _blame(self, seq: int | None, kind: type[AgentError], detail: str) -> None:
        self._fault_count += 1
        if len(self._faults) < MOST_FAULTS:
            self._faults.append(LogFault(seq, kind.code, detail))

    def _verdict(self) -> Verdict:
        return Verdict(
            first=self._first,
            last=self._last,
            digest=self._digest,
            checkpoints=self._checkpoints,
            vouched=self._vouched,
            signers=tuple(self._signers),
            unjudged=tuple(self._unjudged.values()),
            restores=tuple(self._restores),
            faults=tuple(self._faults),
            fault_count=self._fault_count,
        )


def _uid_in(line: Line) -> int | None:
    try:
        uid = line.told.get("uid")
    except msgspec.MsgspecError:
        return None
    return uid if isinstance(uid, int) else None


def _told(head: Head) -> str:
    return f"the head that {head.agent[:12]} signed at {_when(head.at)}"


def _when(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%SZ")
