"""Part `stream`: a sealed dataset fetched, checked and opened as a task's is, against each of its stages alone.

A storage serves one sealed file over HTTPS, as a process; a second process does the rest (`stream_stages.py`), each round every
stage: the download to nowhere, SHA-256, the cipher, and the whole. The whole ends in memory, as a file of plaintext; writing as
much there is measured beside them, but is no stage that the whole is held against.

The floor is what the stages of a round leave possible: their CPU with that of writing and of the storage that sends, spread
evenly over the machine's CPUs with nothing lost between them.
"""

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import msgspec

from agent.bench.figures import Bench, Measured, Row, median, over
from agent.bench.stream_stages import WHOLE, WRITING, Stages, Told
from agent.devkit.consortium import Consortium, found, on_podman
from agent.devkit.server import now
from agent.devkit.shelf import Shelf
from agent.domain.ids import digest_from_hex
from agent.domain.orders import DatasetRef
from agent.domain.prepared import prepared
from agent.pipeline.space import free_bytes, memory_available
from agent.ports.storage import DatasetInfo, Location
from agent.trust.seal import make_seal, parse_header, read_preamble
from agent.trust.shares import unwrap_data_key

PART = "stream"
SENDING = "storage during download"  # its CPU counts as a stage's
MIB = 1 << 20
SIZE_BYTES, SHORT_BYTES = 4 << 30, 24 * MIB
SAMPLE_BYTES = 64 * MIB  # what the cipher alone opens again and again, from memory
SPARE_BYTES = 1 << 30  # of disk and of memory that stay free
MOST_ROUNDS = 5
ROOT = Path(__file__).resolve().parents[2]


def measure(bench: Bench) -> Measured:
    """The part."""
    size_bytes = SHORT_BYTES if bench.is_short else size_with_room(bench)
    with stored(bench, size_bytes) as stages:
        told = in_a_process(stages)
    notes = [
        f"plaintext goes to {bench.memory}, {stages.file_system}; the sealed file lies on {bench.folder}"
    ]
    if size_bytes not in {SIZE_BYTES, SHORT_BYTES}:
        notes.append(f"there was room for {size_bytes // MIB} MiB only, not {SIZE_BYTES // MIB}")
    return measured(told, notes)


def size_with_room(bench: Bench) -> int:
    """SIZE_BYTES, or as much less as disk and memory want."""
    size_bytes = SIZE_BYTES
    on_disk, in_memory = (free_bytes(place) for place in (bench.folder, bench.memory))
    free = [on_disk, in_memory, *(left for _, left in memory_available())]
    least = min(left for left in free if left is not None)
    while size_bytes > SHORT_BYTES and size_bytes + SPARE_BYTES > least:
        size_bytes //= 2
    return size_bytes


def measured(told: Told, notes: list[str]) -> Measured:
    """The samples as rows of MiB/s, with the CPU that both processes took."""
    alone = [min(told.rates[stage][number] for stage in told.alone) for number in range(told.rounds)]
    rows = [
        Row(part=PART, name=f"{stage} alone", unit="MiB/s", samples=told.rates[stage]) for stage in told.alone
    ]
    rows.append(Row(part=PART, name="slowest stage alone", unit="MiB/s", samples=tuple(alone)))
    whole = Row(
        part=PART, name="whole", unit="MiB/s", samples=told.rates["whole"], baseline="slowest stage alone"
    )
    rows.append(whole)
    rows.append(Row(part=PART, name=f"{WRITING} alone", unit="MiB/s", samples=told.rates[WRITING]))
    cpus = os.cpu_count() or 1
    floors = floor(told, cpus)
    rows.append(
        Row(
            part=PART,
            name=f"floor: CPU of the stages / {cpus} CPUs",
            unit="MiB/s",
            samples=floors,
            baseline="slowest stage alone",
        )
    )
    for name, samples in told.cpu_s_per_gib.items():
        rows.append(Row(part=PART, name=f"CPU of {name}", unit="s/GiB", samples=samples))
    rows.append(Row(part=PART, name="memory grows by", unit="MiB", samples=told.growth_mib))
    return Measured(
        rows=tuple(rows),
        figures={
            "stream_ratio": over(whole.samples, alone),
            "stream_floor_ratio": over(floors, alone),
            "stream_growth_mib": max(told.growth_mib),
        },
        notes=(*notes, floor_told(told, cpus)),
    )


def floor(told: Told, cpus: int) -> tuple[float, ...]:
    """MiB/s of each round that its own stages allow, whoever arranges them (see above)."""
    stages = [told.cpu_s_per_gib[name] for name in (*told.alone, WRITING, SENDING)]
    return tuple(1024 * cpus / sum(one[number] for one in stages) for number in range(told.rounds))


def floor_told(told: Told, cpus: int) -> str:
    """What the floor is made of, and what the whole took."""
    cpu_s = {name: median(samples) for name, samples in told.cpu_s_per_gib.items()}
    parts = ", ".join(f"{name} {cpu_s[name]:.2f}" for name in (*told.alone, WRITING, SENDING))
    took = cpu_s[WHOLE] + cpu_s[f"storage during {WHOLE}"]
    return f"the floor, in s of CPU a GiB: {parts}; on {cpus} CPUs. The whole took {took:.2f}, storage's share with it"


@contextmanager
def stored(bench: Bench, size_bytes: int) -> Iterator[Stages]:
    """A storage that serves a sealed file of this size while the block runs."""
    folder = bench.folder
    town = found(
        folder / "town",
        ("A",),
        runtime=on_podman(folder / "none"),
        memory=bench.memory / "m",
        orchestrators=1,
    )
    hospital = town.hospitals[0]
    bench.say(f"sealing {size_bytes // MIB} MiB")
    sealed, sample = folder / "sealed", folder / "sample"
    dataset = DatasetRef(str(uuid4()), "1")
    key = seal(town, dataset, size_bytes, sealed)
    sample_key = seal(town, DatasetRef(str(uuid4()), "1"), min(size_bytes, SAMPLE_BYTES), sample)
    put_on_shelf(town, sealed, dataset)
    town.start(hospital.storage)
    try:
        town.wait_until_ready([hospital.storage])
        yield Stages(
            home=str(hospital.agent.folder),
            dataset=dataset,
            key=key,
            sample=str(sample),
            sample_key=sample_key,
            memory=str(bench.memory),
            storage_pid=town.processes[hospital.storage.name].pid,
            rounds=min(bench.rounds, MOST_ROUNDS),
        )
    finally:
        town.stop(hospital.storage)


def seal(town: Consortium, dataset: DatasetRef, size_bytes: int, target: Path) -> bytes:
    """Write so many sealed bytes of zeros, which nobody can tell from others; their key."""
    plain = target.with_name("plain")
    with plain.open("wb") as holes:
        holes.truncate(size_bytes)
    with plain.open("rb") as source, target.open("wb") as out:
        shares = make_seal(
            source,
            out,
            size=size_bytes,
            dataset=dataset.id,
            version=dataset.version,
            orchestrators=[town.orchestrators[0].key.keyid],
            nodes=[town.hospitals[0].agent.key.keyid],
            uses=["train"],
            owner=town.owner,
        )
    plain.unlink()
    with target.open("rb") as file:
        header = parse_header(read_preamble(file), town.roster, at=now())
    return unwrap_data_key(header, dict(shares))


def put_on_shelf(town: Consortium, sealed: Path, dataset: DatasetRef) -> None:
    """Give the storage the file as an upload would have left it."""
    hospital = town.hospitals[0]
    place = Location(hospital.agent.key.keyid, hospital.storage.key.keyid)
    with sealed.open("rb") as file:
        header = read_preamble(file)
        file.seek(0)
        digest = digest_from_hex(hashlib.file_digest(file, "sha256").hexdigest())
    size_bytes = sealed.stat().st_size
    shelf = Shelf(hospital.storage.folder / "memory")
    shelf.keep(sealed, digest)
    shelf.note_dataset(DatasetInfo(dataset.id, dataset.version, size_bytes, digest, header, (place,)), now())


def in_a_process(stages: Stages) -> Told:
    """What a process that has done nothing else finds. Raises: CalledProcessError."""
    done = subprocess.run(
        [sys.executable, "-m", "agent.bench.stream_stages"],
        input=msgspec.json.encode(stages),
        stdout=subprocess.PIPE,
        cwd=ROOT,
        check=True,
    )
    return msgspec.json.decode(done.stdout, type=prepared(Told))
