"""Part `model`: a model of 1 GiB through one hop: packed and uploaded where it was made, fetched and unpacked by the next host.

The hop is from the end of one guest to the start of the next, by the receipts' own phases. Beside it, in the same rounds, what
no hop can do without: so many bytes written durably to the same disk, and their SHA-256.
"""

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

from agent.bench.engines import engines, podman_engine, quickest
from agent.bench.figures import Bench, Measured, Row, median
from agent.bench.images import model_image
from agent.bench.town import Sent, Town, town

PART = "model"
MIB = 1 << 20
SIZE_MIB, SHORT_MIB = 1024, 8
MOST_ROUNDS = 3
PIECE = bytes(MIB)
SENT, FETCHED, HOP = "pack and upload", "fetch and unpack", "hop"
WRITTEN, HASHED = "write and fsync alone", "SHA-256 alone"


def measure(bench: Bench) -> Measured:
    """The part; a small model goes before, which loads the image at both hosts."""
    size_mib = SHORT_MIB if bench.is_short else SIZE_MIB
    found: dict[str, list[float]] = {name: [] for name in (SENT, FETCHED, HOP, WRITTEN, HASHED)}
    with podman_engine() as socket:
        known = engines(socket)
        engine = known[quickest(known)]
        room = (size_mib + 64) * MIB
        with town(bench, engine, hosts=("A", "B"), images=[model_image()], output_bytes=room) as made:
            _chain(made, 1)
            for _ in range(min(bench.rounds, MOST_ROUNDS)):
                for name, seconds in hop(made, _chain(made, size_mib)).items():
                    found[name].append(seconds)
                made.forget()
                found[WRITTEN].append(seconds_of(lambda: write(bench.folder / "alone", size_mib)))
                found[HASHED].append(seconds_of(lambda: digest(size_mib)))
    baselines = {SENT: WRITTEN, FETCHED: HASHED}
    rows = tuple(
        Row(part=PART, name=f"{name}, {size_mib} MiB", unit="s", samples=tuple(samples), baseline=base)
        for name, samples in found.items()
        for base in [f"{baselines[name]}, {size_mib} MiB" if name in baselines else None]
    )
    return Measured(rows=rows, figures={"model_hop_s": median(found[HOP])})


def _chain(made: Town, size_mib: int) -> Sent:
    """An order over both hosts whose model has this size."""
    sent = made.order(["A", "B"], image=model_image()[1], content=b"%d\n" % size_mib)
    made.wait(sent)
    return sent


def hop(made: Town, sent: Sent) -> dict[str, float]:
    """Seconds by name, of the model that went from the first task of this order to the second."""
    first, second = made.phases(sent, 0), made.phases(sent, 1)
    out_s, in_s = first["pack"] + first["publish"], second["fetch"]
    until_it_runs_s = sum(second[name] for name in ("ask", "fetch", "shares", "open", "start"))
    runs_s = made.moment(sent, "task.started", 1) + until_it_runs_s
    ended_s = made.moment(sent, "task.attested", 0) - out_s - first["end"]
    return {SENT: out_s, FETCHED: in_s, HOP: runs_s - ended_s}


def seconds_of(act: Callable[[], object]) -> float:
    """How long it takes."""
    began_s = time.perf_counter()
    act()
    return time.perf_counter() - began_s


def write(path: Path, size_mib: int) -> None:
    """So many bytes, on the disk when it returns; then gone again."""
    with path.open("wb") as file:
        for _ in range(size_mib):
            file.write(PIECE)
        file.flush()
        os.fsync(file.fileno())
    path.unlink()


def digest(size_mib: int) -> str:
    """The SHA-256 of so many bytes."""
    seen = hashlib.sha256()
    for _ in range(size_mib):
        seen.update(PIECE)
    return seen.hexdigest()
