"""Part `model`: a large model through one hop: packed and published beside one agent, fetched and unpacked beside the next.

Two storages as processes, and the storage ports that the two agents would have. Figures only: no target.
"""

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

from msgspec import Struct

from agent.bench.figures import Bench, Measured, Row
from agent.config import load_settings
from agent.devkit.consortium import Hospital, found, on_podman
from agent.domain.ceilings import Ceilings
from agent.domain.ids import KeyId
from agent.pipeline.outputs import pack, unpack
from agent.pipeline.space import free_bytes, memory_available
from agent.ports.storage import BlobKind, Storage
from agent.trust.keys import SigningKey
from agent.wiring import open_storage

T = TypeVar("T")

PART = "model"
MIB = 1 << 20
SIZE_BYTES, SHORT_BYTES = 1 << 30, 16 * MIB
COPIES = 3  # that lie in memory at one time
MOST_ROUNDS = 3
ALONE, WHOLE = "SHA-256 alone", "whole hop"
STEPS = ("pack", "publish", "fetch", "unpack")

CEILINGS = Ceilings(
    wall_s=1,
    memory_bytes=MIB,
    cpu_millis=1000,
    pids=1,
    open_files=1,
    output_bytes=2 * SIZE_BYTES,
    output_files=10,
    log_bytes=MIB,
    tmp_bytes=MIB,
)


class Ends(Struct):
    """Storage as the agent that made the model sees it, that agent, and storage as the next one sees it."""

    here: Storage
    maker: KeyId
    there: Storage


def measure(bench: Bench) -> Measured:
    """The part."""
    size_bytes = SHORT_BYTES if bench.is_short else size_with_room(bench)
    piece = os.urandom(MIB)
    seconds: dict[str, list[float]] = {name: [] for name in (ALONE, *STEPS)}
    with open_ends(bench) as ends:
        for number in range(min(bench.rounds, MOST_ROUNDS)):
            model = new_model(bench.memory, piece, size_bytes, number)
            for name, taken_s in one_hop(
                model, bench.memory, ends, seconds_of_hash(piece, size_bytes)
            ).items():
                seconds[name].append(taken_s)
    whole = tuple(sum(seconds[name][number] for name in STEPS) for number in range(len(seconds[ALONE])))
    samples = {name: tuple(taken) for name, taken in seconds.items()} | {WHOLE: whole}
    rows = [
        Row(part=PART, name=name, unit="s", samples=taken, baseline=None if name == ALONE else ALONE)
        for name, taken in samples.items()
    ]
    note = f"a model of {size_bytes // MIB} MiB in one file; workspaces in {bench.memory}, storage on {bench.folder}"
    return Measured(rows=tuple(rows), figures={}, notes=(note,))


def size_with_room(bench: Bench) -> int:
    """SIZE_BYTES, or as much less as disk and memory want."""
    size_bytes = SIZE_BYTES
    places = [free_bytes(bench.folder), free_bytes(bench.memory), *(left for _, left in memory_available())]
    least = min(left for left in places if left is not None)
    while size_bytes > SHORT_BYTES and size_bytes * (COPIES + 1) > least:
        size_bytes //= 2
    return size_bytes


@contextmanager
def open_ends(bench: Bench) -> Iterator[Ends]:
    """Two hospitals' storages, answering, while the block runs."""
    runtime = on_podman(bench.folder / "none")
    town = found(
        bench.folder / "town", ("A", "B"), runtime=runtime, memory=bench.memory / "m", orchestrators=1
    )
    first, second = town.hospitals
    with ExitStack() as stack:
        for hospital in town.hospitals:
            town.start(hospital.storage)
            stack.callback(town.stop, hospital.storage)
        town.wait_until_ready([first.storage, second.storage])
        here, there = (stack.enter_context(storage_of(hospital)) for hospital in town.hospitals)
        yield Ends(here, first.agent.key.keyid, there)


@contextmanager
def storage_of(hospital: Hospital) -> Iterator[Storage]:
    """Storage as this hospital's agent has it."""
    settings = load_settings(hospital.agent.folder, {})
    with open_storage(settings, SigningKey.load(settings.identity.key)) as storage:
        yield storage


def new_model(memory: Path, piece: bytes, size_bytes: int, number: int) -> Path:
    """A folder with one file that no earlier round had."""
    folder = memory / "trained"
    folder.mkdir()
    with (folder / "weights").open("wb") as file:
        file.write(number.to_bytes(8, "big") + piece[8:])
        for _ in range(size_bytes // MIB - 1):
            file.write(piece)
    return folder


def seconds_of_hash(piece: bytes, size_bytes: int) -> float:
    """The baseline."""
    began, seen = time.perf_counter(), hashlib.sha256()
    for _ in range(size_bytes // MIB):
        seen.update(piece)
    return time.perf_counter() - began


def one_hop(model: Path, memory: Path, ends: Ends, alone_s: float) -> Mapping[str, float]:
    """Seconds of each step. What no later step needs is freed between them, as in a task."""
    packed, fetched, unpacked = memory / "model_out.tar", memory / "model.tar", memory / "model"
    taken = {ALONE: alone_s}

    def timed(step: str, work: Callable[[], T]) -> T:
        began = time.perf_counter()
        done = work()
        taken[step] = time.perf_counter() - began
        return done

    digest = timed("pack", lambda: pack(model, ("weights",), packed))
    shutil.rmtree(model)
    timed("publish", lambda: ends.here.put_blob(digest, BlobKind.MODEL, packed))
    limit_bytes = packed.stat().st_size
    packed.unlink()
    timed("fetch", lambda: ends.there.fetch_blob(digest, fetched, limit_bytes=limit_bytes, near=ends.maker))
    unpacked.mkdir()
    timed("unpack", lambda: unpack(fetched, unpacked, CEILINGS))
    fetched.unlink()
    shutil.rmtree(unpacked)
    return taken
