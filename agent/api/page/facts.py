"""What the overview tells: whether this host is well, what it does now, and what waits for a person."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from msgspec import Struct

from agent.api.page.facts_log import DatasetLine, Refusal, datasets, refusals
from agent.api.page.facts_orders import OrderLine, Running, orders, running
from agent.api.page.lens import Lens, Party
from agent.api.page.pictures import Bar, bar
from agent.api.page.words import counted, span
from agent.api.views import Check, Readiness
from agent.domain.control import Control, Mode
from agent.domain.jobs import JobState
from agent.errors import AgentError
from agent.pipeline.checkup import Checkup, Finding, last_checkup
from agent.pipeline.host import Host
from agent.pipeline.usage import Usage
from agent.ports.ledger import DeliveryHead, DeliveryState
from agent.trust.certificates import read_certificate

AHEAD: Final = timedelta(days=30)  # an end is told so long before
RUNNING_SHOWN, ORDERS_SHOWN, LINES_SHOWN = 8, 6, 5
MAX_CERTIFICATE_BYTES: Final = 64 << 10

WAITING: Final = (JobState.RECEIVED, JobState.QUEUED)
MODES: Final = {
    Mode.RUNNING: ("ok", "Running", "Orders are taken, tasks start."),
    Mode.PAUSED: ("warn", "Paused", "Orders are taken, no task starts: dc-compute resume"),
    Mode.DRAINING: ("warn", "Draining", "No order is taken, no task starts; what runs ends by itself."),
    Mode.RESTORED: (
        "warn",
        "Restored",
        "Nothing runs before every orchestrator told where its orders stand.",
    ),
}


class Need(Struct, frozen=True, kw_only=True):
    """Something that waits for a person: what, and the command or page that leads on."""

    tone: str
    words: str
    command: str | None = None
    link: str | None = None


class Tile(Struct, frozen=True):
    """A number, what it counts, how it is to be taken, and where the things that it counts are listed."""

    label: str
    count: int
    tone: str
    link: str


class Ending(Struct, frozen=True, kw_only=True):
    """A key or certificate with its end."""

    name: str
    what: str
    until: datetime
    is_near: bool
    is_over: bool


class DeliveryLine(Struct, frozen=True):
    """A delivery and who is to get it."""

    head: DeliveryHead
    target: Party


class DiskLine(Struct, frozen=True):
    """A file system as a bar: its folder, what lies there, and in words how full it is."""

    folder: str
    holds: str
    size_bytes: int
    free_bytes: int
    promised_bytes: int
    low_mark_bytes: int | None
    is_low: bool
    bar: Bar


class Overview(Struct, frozen=True, kw_only=True):
    """The first page. `readiness` and `usage` are None while nothing was looked at yet."""

    control: Control
    mode: tuple[str, str, str]
    verdict: tuple[str, str]
    said_by: str
    needs: tuple[Need, ...]
    tiles: tuple[Tile, ...]
    queues: tuple[tuple[str, int], ...]
    running: tuple[Running, ...]
    orders: tuple[OrderLine, ...]
    refusals: tuple[Refusal, ...]
    deliveries: tuple[DeliveryLine, ...]
    pending: int
    dead: int
    checks: tuple[Check, ...]
    checkup: Checkup | None
    worth: tuple[Finding, ...]
    disks: tuple[DiskLine, ...]
    usage: Usage | None
    datasets: tuple[DatasetLine, ...]
    endings: tuple[Ending, ...]


def overview(
    lens: Lens, readiness: Readiness | None, usage: Usage | None, certificate: Path | None
) -> Overview:
    """Everything on it. Raises: LedgerUnavailable."""
    ledger = lens.host.ports.ledger
    control, counts, outbox = ledger.control(), ledger.counts(), ledger.outbox_counts()
    checkup = checkup_of(lens.host)
    endings = _endings(lens, certificate)
    now_running, first = running(lens, RUNNING_SHOWN), orders(lens, frozenset(), None, ORDERS_SHOWN)
    checks = () if readiness is None else readiness.checks
    worth = () if checkup is None else tuple(one for one in checkup.findings if one.state in {"fail", "warn"})
    needs = _needs(control, counts, outbox, checks, worth, endings, _disks(usage))
    return Overview(
        control=control,
        mode=MODES[control.mode],
        verdict=_verdict(control, checks, now_running, counts),
        said_by=_said_by(control),
        needs=needs,
        tiles=_tiles(counts, outbox),
        queues=_queues(lens.host),
        running=now_running,
        orders=first.lines,
        refusals=refusals(lens, None, LINES_SHOWN).lines,
        deliveries=_deliveries(lens),
        pending=outbox[DeliveryState.PENDING],
        dead=outbox[DeliveryState.DEAD],
        checks=checks,
        checkup=checkup,
        worth=worth,
        disks=_disks(usage),
        usage=usage,
        datasets=datasets(lens, None, LINES_SHOWN).lines,
        endings=endings,
    )


def checkup_of(host: Host) -> Checkup | None:
    """What the doctor found last; None where it never ran, or where nothing is kept."""
    return next((found for folder in host.rules.records if (found := last_checkup(folder))), None)


# ------------------------------------------------------------------ in one sentence


def _verdict(
    control: Control, checks: Sequence[Check], now_running: Sequence[Running], counts: Mapping[JobState, int]
) -> tuple[str, str]:
    """(tone, sentence): how this host does."""
    failing = [check.name for check in checks if not check.is_ok and check.name != "mode"]
    if failing:
        return "bad", f"No order is accepted: {', '.join(failing)}"
    if control.mode is not Mode.RUNNING:
        return "warn", MODES[control.mode][2]
    waiting = sum(counts[state] for state in WAITING)
    if now_running:
        rest = f", {waiting} waiting" if waiting else ""
        return "run", f"{counted(counts[JobState.RUNNING], 'task')} running{rest}"
    return "ok", f"Ready; {counted(waiting, 'task')} waiting" if waiting else "Ready, nothing to do"


def _said_by(control: Control) -> str:
    parts = []
    if control.uid is not None:
        parts.append(f"by user {control.uid}")
    if control.reason:
        parts.append(control.reason)
    return ": ".join(parts)


def _needs(
    control: Control,
    counts: Mapping[JobState, int],
    outbox: Mapping[DeliveryState, int],
    checks: Sequence[Check],
    worth: Sequence[Finding],
    endings: Sequence[Ending],
    disks: Sequence[DiskLine],
) -> tuple[Need, ...]:
    found = [
        Need(tone="bad", words=f"{check.name}: {check.detail or check.code}", link=f"/checks#{check.name}")
        for check in checks
        if not check.is_ok and check.name != "mode"
    ]
    if counts[JobState.HELD]:
        words = f"{counted(counts[JobState.HELD], 'order waits', 'orders wait')} for your word on an image"
        found.append(Need(tone="warn", words=words, command="dc-compute held"))
    if outbox[DeliveryState.DEAD]:
        words = f"{counted(outbox[DeliveryState.DEAD], 'message')} could not be delivered and wait for you"
        found.append(Need(tone="bad", words=words, command="dc-compute deliveries list --dead"))
    if control.mode in {Mode.PAUSED, Mode.DRAINING}:
        found.append(Need(tone="warn", words=MODES[control.mode][2], command="dc-compute resume"))
    found += [
        Need(tone="bad", words=f"{disk.folder} is under its low mark", command="dc-compute gc")
        for disk in disks
        if disk.is_low
    ]
    found += _ends([one for one in endings if one.is_near])
    failed = [one for one in worth if one.state == "fail"]
    if failed:
        words = f"the doctor found {counted(len(failed), 'thing')} that must be mended"
        found.append(Need(tone="bad", words=words, link="/checks"))
    elif worth:
        words = f"the doctor found {counted(len(worth), 'thing')} to mend"
        found.append(Need(tone="warn", words=words, link="/checks"))
    return tuple(found)


def _ends(near: Sequence[Ending]) -> list[Need]:
    """One line for all that ends soon: a roster is often made in one day."""
    if not near:
        return []
    first = near[0]
    words = f"{first.what} of {first.name} {'ended' if first.is_over else 'ends'} {first.until:%Y-%m-%d}"
    if len(near) > 1:
        words += f", and {len(near) - 1} more within {AHEAD.days} days"
    return [Need(tone="bad" if first.is_over else "warn", words=words, link="/#endings")]


def _tiles(counts: Mapping[JobState, int], outbox: Mapping[DeliveryState, int]) -> tuple[Tile, ...]:
    lost = counts[JobState.FAILED]
    waiting, dead = sum(counts[state] for state in WAITING), outbox[DeliveryState.DEAD]
    return (
        Tile("running", counts[JobState.RUNNING], "run", "/orders?state=running"),
        Tile("waiting", waiting, "wait", "/orders?state=waiting"),
        Tile("held for you", counts[JobState.HELD], "warn", "/orders?state=held"),
        Tile("still to be told", counts[JobState.ATTESTED], "wait", "/orders?state=attested"),
        Tile("done", counts[JobState.DONE], "ok", "/orders?state=done"),
        Tile("failed", lost, "bad", "/orders?state=failed"),
        Tile("undeliverable", dead, "bad", "/#deliveries"),
    )


def _queues(host: Host) -> tuple[tuple[str, int], ...]:
    try:
        return tuple(
            (str(queue).replace("_", " "), depth) for queue, depth in host.ports.broker.depth().items()
        )
    except AgentError:
        return ()


def _deliveries(lens: Lens) -> tuple[DeliveryLine, ...]:
    """Dead ones first: they wait for a person."""
    ledger = lens.host.ports.ledger
    heads = ledger.outbox({DeliveryState.DEAD}, LINES_SHOWN)
    heads += (
        ledger.outbox({DeliveryState.PENDING}, LINES_SHOWN - len(heads)) if len(heads) < LINES_SHOWN else ()
    )
    return tuple(DeliveryLine(head, lens.who(head.target)) for head in heads)


# ------------------------------------------------------------------ what ends, what fills


def _endings(lens: Lens, certificate: Path | None) -> tuple[Ending, ...]:
    """The nearest ends: of keys that were not revoked, of this host's own certificate. Those within AHEAD, or the first."""
    found = [
        _ending(entry.name, f"{entry.role} key", entry.valid_until, lens.now)
        for entry in lens.host.roster.entries
        if entry.revoked_at is None
    ]
    until = None if certificate is None else _end_of(certificate)
    if until is not None:
        found.append(_ending("this host", "TLS certificate", until, lens.now))
    found.sort(key=lambda one: one.until)
    near = tuple(one for one in found if one.is_near)
    return near[: 2 * LINES_SHOWN] or tuple(found[:2])


def _ending(name: str, what: str, until: datetime, now: datetime) -> Ending:
    return Ending(name=name, what=what, until=until, is_near=now + AHEAD >= until, is_over=now >= until)


def _end_of(certificate: Path) -> datetime | None:
    try:
        with certificate.open("rb") as file:
            return read_certificate(file.read(MAX_CERTIFICATE_BYTES)).not_after
    except (OSError, ValueError):
        return None


def _disks(usage: Usage | None) -> tuple[DiskLine, ...]:
    return tuple(
        DiskLine(
            folder=disk.folder,
            holds=", ".join(disk.holds),
            size_bytes=disk.size_bytes,
            free_bytes=disk.free_bytes,
            promised_bytes=disk.promised_bytes,
            low_mark_bytes=disk.low_mark_bytes,
            is_low=disk.is_low,
            bar=bar(disk.size_bytes, disk.free_bytes, disk.promised_bytes, disk.low_mark_bytes),
        )
        for disk in (() if usage is None else usage.disks)
        if disk.size_bytes is not None and disk.free_bytes is not None
    )


# ------------------------------------------------------------------ everything that was looked at


class ChecksPage(Struct, frozen=True, kw_only=True):
    """What was looked at just now, and what the doctor found, by subject."""

    checks: tuple[Check, ...]
    checkup: Checkup | None
    groups: tuple[tuple[str, tuple[Finding, ...]], ...]
    told: str


def all_checks(lens: Lens, readiness: Readiness | None) -> ChecksPage:
    """All of it."""
    checkup = checkup_of(lens.host)
    by_group: dict[str, list[Finding]] = {}
    for one in () if checkup is None else checkup.findings:
        by_group.setdefault(one.group, []).append(one)
    told = "" if checkup is None else f"{span((lens.now - checkup.at).total_seconds())} ago"
    return ChecksPage(
        checks=() if readiness is None else readiness.checks,
        checkup=checkup,
        groups=tuple((group, tuple(found)) for group, found in by_group.items()),
        told=told,
    )
