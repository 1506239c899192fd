"""Who holds what of this host's room: the facts behind `dc-compute df`. Nothing is changed; what cannot be read is left out."""

import os
from pathlib import Path

from msgspec import Struct

from agent.domain.retention import LedgerSizes
from agent.errors import AgentError
from agent.pipeline.host import Host
from agent.pipeline.space import file_system_of, free_bytes, reserved_in, used_bytes
from agent.ports.runtime import Runtime

BESIDE = ("", "-wal", "-shm")  # what SQLite keeps beside a file of that name


class Holder(Struct, frozen=True, kw_only=True):
    """Something that takes room. `reserved_bytes`: promised to it and not taken yet; `count`: of what it consists."""

    name: str
    where: str
    size_bytes: int | None
    count: int | None = None
    reserved_bytes: int = 0
    detail: str | None = None


class Disk(Struct, frozen=True, kw_only=True):
    """A file system that something of the agent lies on. `free_bytes`: None where it has no size of its own.

    `promised_bytes`: reserved there and not taken yet. `low_mark_bytes`: below it no order is accepted; None in memory.
    """

    folder: str
    kind: str
    holds: tuple[str, ...]
    size_bytes: int | None
    free_bytes: int | None
    promised_bytes: int
    low_mark_bytes: int | None
    is_low: bool


class Usage(Struct, frozen=True, kw_only=True):
    """All of it. `ledger`: None when it could not be read."""

    disks: tuple[Disk, ...]
    holders: tuple[Holder, ...]
    ledger: LedgerSizes | None


def look(
    host: Host, ledger: Path, queues: Path, engines: tuple[Runtime, ...], *, is_deep: bool = True
) -> Usage:
    """What is seen now. `ledger` and `queues` are their files, `engines` those whose images are counted.

    `is_deep`: what the ledger holds is counted too, which reads through all of it.
    """
    rules = host.rules
    holders = [_file("ledger", ledger), _file("queues", queues)]
    sizes = _sizes(host) if is_deep else None
    if sizes is not None:
        holders += _parts(sizes, ledger)
    holders += [_images(engine) for engine in engines]
    holders += [_folder("workspaces", rules.workspace_root), _folder("spool", rules.spool)]
    places = {
        "ledger": ledger.parent,
        "queues": queues.parent,
        "spool": rules.spool,
        "workspaces": rules.workspace_root,
    }
    return Usage(disks=_disks(places, host), holders=tuple(holders), ledger=sizes)


def _sizes(host: Host) -> LedgerSizes | None:
    try:
        return host.ports.ledger.sizes()
    except AgentError:
        return None


def _parts(told: LedgerSizes, ledger: Path) -> list[Holder]:
    """What the ledger's file holds: parts of it, not beside it."""
    where = str(ledger)
    waiting = f"{told.pending_bytes} bytes of them are still to be delivered"
    free = "given back step by step" if told.can_shrink else "used again, not given back"
    return [
        Holder(name="ledger: orders", where=where, size_bytes=told.order_bytes, count=told.orders),
        Holder(name="ledger: job logs", where=where, size_bytes=told.log_bytes, count=told.logs),
        Holder(
            name="ledger: deliveries",
            where=where,
            size_bytes=told.body_bytes,
            count=told.bodies,
            detail=waiting,
        ),
        Holder(name="ledger: audit log", where=where, size_bytes=told.event_bytes, count=told.events),
        Holder(name="ledger: free pages", where=where, size_bytes=told.free_bytes, detail=free),
    ]


def _file(name: str, path: Path) -> Holder:
    """A file of SQLite with what lies beside it."""
    sizes = [
        size for size in (_blocks(path.with_name(path.name + end)) for end in BESIDE) if size is not None
    ]
    return Holder(name=name, where=str(path), size_bytes=sum(sizes) if sizes else None)


def _blocks(path: Path) -> int | None:
    try:
        return path.stat().st_blocks * 512
    except OSError:
        return None


def _images(engine: Runtime) -> Holder:
    name = f"images: {engine.name}"
    try:
        images = engine.images()
    except AgentError as error:
        return Holder(name=name, where=engine.name, size_bytes=None, detail=error.detail)
    size = sum(image.size_bytes for image in images)
    return Holder(name=name, where=engine.name, size_bytes=size, count=len(images))


def _folder(name: str, root: Path) -> Holder:
    """A root with what attempts reserved in it."""
    if not root.is_dir():
        return Holder(name=name, where=str(root), size_bytes=0, count=0)
    held = reserved_in(root)
    promised = sum(unused for _, _, unused in held)
    return Holder(
        name=name, where=str(root), size_bytes=used_bytes(root), count=len(held), reserved_bytes=promised
    )


def _disks(places: dict[str, Path], host: Host) -> tuple[Disk, ...]:
    """One for each file system, with what lies on it."""
    by_device: dict[int, list[str]] = {}
    for name, folder in places.items():
        if folder.is_dir():
            by_device.setdefault(folder.stat().st_dev, []).append(name)
    return tuple(_disk(names, places, host) for names in by_device.values())


def _disk(names: list[str], places: dict[str, Path], host: Host) -> Disk:
    folder = places[names[0]]
    about, free = os.statvfs(folder), free_bytes(folder)
    roots = [places[name] for name in names if name in {"spool", "workspaces"}]
    promised = sum(unused for root in roots for _, _, unused in reserved_in(root))
    low = None if names == ["workspaces"] else host.rules.low_disk_bytes
    return Disk(
        folder=str(folder),
        kind=file_system_of(folder),
        holds=tuple(names),
        size_bytes=about.f_blocks * about.f_frsize or None,
        free_bytes=free,
        promised_bytes=promised,
        low_mark_bytes=low,
        is_low=low is not None and free is not None and free < low,
    )
