"""What the audit log answers: who ran what on a dataset, and what left this host for whom, how many bytes.

Pure: lines come in, one account for each task goes out. A line that an older version wrote may lack a value: it is then empty.
"""

from collections.abc import Iterable, Iterator
from datetime import datetime

import msgspec
from msgspec import Struct

from agent.domain.audit import Line, Plain
from agent.domain.ids import OrderId

SENT, ARRIVED, DEAD, DROPPED = "sent", "arrived", "dead", "dropped"


class RunTold(Struct, kw_only=True):
    """One container: what ran, in which attempt, how it ended (`done`, a cause, or None while nobody knows) and its cage."""

    run: str
    attempt: int | None
    image: str | None
    started: datetime | None = None
    ended: datetime | None = None
    outcome: str | None = None
    cage: str | None = None


class ShareTold(Struct, kw_only=True):
    """One share of the dataset's key: whose, for which attempt, when asked for and when it came."""

    of: str
    attempt: int | None
    asked: datetime | None = None
    received: datetime | None = None


class LeftTold(Struct, kw_only=True):
    """Something that left: its kind, its bytes, for whom. `state`: sent, arrived, dead or dropped; `tries`: how often at least.

    `digest` is that of an output at storage; `n` numbers the deliveries of a kind.
    """

    what: str
    to: str | None
    bytes: int
    n: int | None = None
    digest: str | None = None
    first: datetime | None = None
    arrived: datetime | None = None
    state: str = SENT
    tries: int = 0


class TaskAccount(Struct, kw_only=True):
    """Everything that is told of one task on this host."""

    order: OrderId
    position: int
    kind: str | None = None
    dataset: str | None = None
    version: str | None = None
    orchestrator: str | None = None
    sender: str | None = None
    images: dict[str, str] = {}
    state: str | None = None
    reason: str | None = None
    attempts: int = 0
    first: datetime | None = None
    last: datetime | None = None
    runs: list[RunTold] = []
    shares: list[ShareTold] = []
    left: list[LeftTold] = []

    @property
    def bytes_left(self) -> int:
        """The bytes of everything that left, each once however often it was tried."""
        return sum(one.bytes for one in self.left)


def accounts(order: OrderId, lines: Iterable[Line], positions: frozenset[int]) -> Iterator[TaskAccount]:
    """An account of each of these positions of an order, from every line about the order; all that have lines for none."""
    found: dict[int, TaskAccount] = {}
    for line in lines:
        position = line.position
        if position is None or (positions and position not in positions):
            continue
        account = found.setdefault(position, TaskAccount(order=order, position=position))
        _take(account, line)
    yield from (found[position] for position in sorted(found))


def values_of(line: Line) -> dict[str, Plain]:
    """Its values; none when somebody wrote what cannot be read, which `audit verify` tells."""
    try:
        return line.told
    except msgspec.MsgspecError:
        return {}


def _take(account: TaskAccount, line: Line) -> None:
    told = values_of(line)
    account.first = account.first or line.at
    account.last = line.at
    kind, _, what = line.name.partition(".")
    match kind:
        case "job":
            _take_move(account, what, line, told)
        case "run":
            _take_run(account, what, line, told)
        case "share":
            _take_share(account, what, line, told)
        case "upload":
            _take_upload(account, what, line, told)
        case "delivery":
            _take_delivery(account, what, line, told)


def _take_move(account: TaskAccount, state: str, line: Line, told: dict[str, Plain]) -> None:
    if line.dataset is not None:  # the task's first line
        account.dataset = line.dataset
        account.kind, account.version = _text(told.get("kind")), _text(told.get("version"))
        account.orchestrator, account.sender = _text(told.get("orchestrator")), _text(told.get("sender"))
        suffix = "_image"
        account.images = {
            name.removesuffix(suffix): str(image) for name, image in told.items() if name.endswith(suffix)
        }
    if state == "adopted":  # what it had begun to send, the next worker sends again
        for left in account.left:
            left.tries += left.digest is not None and left.state == SENT
    if state not in {"known", "redirected", "adopted", "parked"}:
        account.state, account.reason = state, _text(told.get("reason"))
    account.attempts = max(account.attempts, _number(told.get("attempt")) or 0)


def _take_run(account: TaskAccount, what: str, line: Line, told: dict[str, Plain]) -> None:
    name, attempt = str(told.get("run")), _number(told.get("attempt"))
    run = next((one for one in account.runs if (one.run, one.attempt) == (name, attempt)), None)
    if run is None:
        run = RunTold(run=name, attempt=attempt, image=_text(told.get("image")))
        account.runs.append(run)
    if what == "started":
        run.started = run.started or line.at
    else:
        run.ended, run.outcome, run.cage = line.at, _text(told.get("outcome")), _text(told.get("cage"))


def _take_share(account: TaskAccount, what: str, line: Line, told: dict[str, Plain]) -> None:
    of, attempt = str(told.get("of")), _number(told.get("attempt"))
    if what == "asked":
        account.shares.append(ShareTold(of=of, attempt=attempt, asked=line.at))
        return
    asked = [one for one in account.shares if (one.of, one.attempt, one.received) == (of, attempt, None)]
    if asked:
        asked[-1].received = line.at
    else:
        account.shares.append(ShareTold(of=of, attempt=attempt, received=line.at))


def _take_upload(account: TaskAccount, what: str, line: Line, told: dict[str, Plain]) -> None:
    digest, to = _text(told.get("digest")), _text(told.get("to"))
    known = [one for one in account.left if (one.digest, one.to) == (digest, to) and digest is not None]
    left = known[0] if known else LeftTold(what=str(told.get("kind")), to=to, bytes=0, digest=digest)
    if not known:
        account.left.append(left)
    left.bytes = _number(told.get("bytes")) or 0
    left.first = left.first or line.at
    if what == "started":
        left.tries += 1
    else:
        left.state, left.arrived = ARRIVED, line.at


def _take_delivery(account: TaskAccount, what: str, line: Line, told: dict[str, Plain]) -> None:
    if "delivery" in told:  # a person, or a receiver that lost it, decided on it
        if what == "dropped":
            _drop(account, str(told["delivery"]))
        return
    kind, n = str(told.get("kind")), _number(told.get("n"))
    known = [one for one in account.left if (one.what, one.n) == (kind, n)]
    if not known and what != "sent":
        return  # buried before it was ever sent: nothing left
    left = known[0] if known else LeftTold(what=kind, n=n, to=_text(told.get("to")), bytes=0)
    if not known:
        account.left.append(left)
    left.bytes = _number(told.get("bytes")) or 0
    left.first = left.first or line.at
    failed = _number(told.get("failed")) or 0
    match what:
        case "sent":
            left.tries = max(left.tries, failed + 1)
        case "acknowledged":
            left.state, left.arrived, left.tries = ARRIVED, line.at, max(left.tries, failed + 1)
        case "buried":
            left.state, left.tries = DEAD, max(left.tries, failed)


def _drop(account: TaskAccount, delivery: str) -> None:
    """A delivery's id ends with its kind and number."""
    for left in account.left:
        if left.n is not None and delivery.endswith(f".{left.what}.{left.n}"):
            left.state = DROPPED


def _text(value: Plain) -> str | None:
    return None if value is None else str(value)


def _number(value: Plain) -> int | None:
    return int(value) if isinstance(value, int | float) else None
