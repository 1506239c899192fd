"""The process that part `stream` measures: the stages of one download, each alone, and all of them as a task has them.

    python -m agent.bench.stream_stages < STAGES > TOLD

The whole is what `pipeline/fetch.py` does with a dataset once its key is there, by the storage that an agent of these settings
has. Alone are: the standard library's HTTPS with nothing done to what comes; SHA-256 of a piece in memory; the cipher over
sealed bytes in memory; and, for what it takes, a file written where the whole writes its own.
"""

import hashlib
import io
import ssl
import sys
import time
from contextlib import ExitStack, closing
from http.client import HTTPSConnection
from pathlib import Path
from urllib.parse import quote

import msgspec
from msgspec import Struct

from agent.bench.figures import order_of
from agent.bench.processes import cpu_s_of
from agent.config import load_settings
from agent.domain.orders import DatasetRef
from agent.domain.prepared import prepared
from agent.errors import StorageUnavailable
from agent.pipeline.opening import open_into
from agent.ports.storage import DatasetInfo, Storage
from agent.trust.http_signatures import HttpRequest, sign_request
from agent.trust.keys import SigningKey
from agent.trust.seal import Opener, SignedHeader, parse_header, read_preamble
from agent.wiring import now, open_storage, read_roster

WHOLE, WRITING = "whole", "writing"
ALONE = ("download", "SHA-256", "opening")
MIB, GIB = 1 << 20, 1 << 30
PIECE_BYTES = MIB
WRITTEN_BYTES = 512 << 10  # by the piece that the relay of a download hands on


class Stages(Struct, frozen=True, kw_only=True):
    """What to measure. `home`: of an agent; `key`: of the dataset; `sample`: a sealed file that the cipher alone opens."""

    home: str
    dataset: DatasetRef
    key: bytes
    sample: str
    sample_key: bytes
    memory: str
    storage_pid: int
    rounds: int

    @property
    def file_system(self) -> str:
        """Type and options of what `memory` lies on."""
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
        over = [one for one in mounts if Path(self.memory).is_relative_to(one[1])]
        _, _, kind, options, *_ = max(over, key=lambda one: len(one[1]))
        return f"{kind} ({options})"


class Told(Struct, frozen=True, kw_only=True):
    """What was found, round by round. `rates`: MiB of the sealed file a second, by stage and of the "whole"."""

    rates: dict[str, tuple[float, ...]]
    cpu_s_per_gib: dict[str, tuple[float, ...]]
    growth_mib: tuple[float, ...]
    alone: tuple[str, ...] = ALONE

    @property
    def rounds(self) -> int:
        """How many there were."""
        return len(self.growth_mib)


class Stage:
    """The dataset at hand, and a way through each stage."""

    def __init__(self, told: Stages, stack: ExitStack) -> None:
        settings = load_settings(Path(told.home), {})
        key = SigningKey.load(settings.identity.key)
        roster = read_roster(settings)
        self._told = told
        self._storage: Storage = stack.enter_context(open_storage(settings, key))
        self.info: DatasetInfo = self._storage.dataset(told.dataset)
        self._header: SignedHeader = parse_header(self.info.header, roster, at=now())
        entry = roster.storage_of(key.keyid)
        if entry is None or entry.storage_url is None:
            raise StorageUnavailable("the roster names no storage")
        self._key = key
        self._authority = entry.storage_url.removeprefix("https://")
        self._tls = ssl.create_default_context(cadata=entry.tls_ca)
        self.target = Path(told.memory) / "opened"
        self._sample = memoryview(Path(told.sample).read_bytes())
        self._sample_header = parse_header(read_preamble(io.BytesIO(self._sample)), roster, at=now())

    def whole(self) -> None:
        """Fetched, checked, opened."""
        opener = Opener(self._header, self._told.key)
        partial = self.target.with_suffix(".partial")
        open_into(self.target, partial, opener, self.info, self._storage, lambda _: None)

    def download(self) -> None:
        """Received into one buffer by the standard library's client, and nothing done to it."""
        ref, room = self._told.dataset, memoryview(bytearray(PIECE_BYTES))
        target = f"/v1/datasets/{ref.id}/content?version={quote(ref.version)}"
        url = f"https://{self._authority}{target}"
        request = HttpRequest("GET", url, (("host", self._authority),))
        line = HTTPSConnection(self._authority, context=self._tls)
        line.request("GET", target, headers=sign_request(request, self._key, now=now(), has_body=False))
        with closing(line), line.getresponse() as answer:
            while answer.readinto(room):
                pass

    def hash(self) -> None:
        """As many bytes hashed, a piece in memory again and again."""
        seen, piece = hashlib.sha256(), bytes(PIECE_BYTES)
        for _ in range(self.info.size // PIECE_BYTES):
            seen.update(piece)

    def opening(self) -> None:
        """As many bytes opened, a sealed file in memory again and again."""
        for _ in range(max(1, self.info.size // len(self._sample))):
            opener = Opener(self._sample_header, self._told.sample_key)
            for at in range(0, len(self._sample), PIECE_BYTES):
                opener.feed(self._sample[at : at + PIECE_BYTES])
            opener.finish()

    def writing(self) -> None:
        """As many bytes written as the whole writes them, to an unbuffered file in memory."""
        piece = bytes(WRITTEN_BYTES)
        with self.target.open("xb", buffering=0) as plain:
            for _ in range(self.info.size // WRITTEN_BYTES):
                plain.write(piece)


def run(told: Stages) -> Told:
    """Every stage once a round. The whole comes first of all, in a process that has done nothing yet."""
    with ExitStack() as stack:
        stage = Stage(told, stack)
        sides = {
            WHOLE: stage.whole,
            **dict(zip(ALONE, (stage.download, stage.hash, stage.opening), strict=True)),
            WRITING: stage.writing,
        }
        size = stage.info.size
        rates: dict[str, list[float]] = {name: [] for name in sides}
        cpu: dict[str, list[float]] = {}
        growth: list[float] = []
        for number in range(told.rounds):
            for name in order_of(number, list(sides)):
                forget_peak()
                before_kib, began, cpu_s = memory_kib("VmRSS"), time.perf_counter(), time.process_time()
                storage_s = cpu_s_of(told.storage_pid)
                sides[name]()
                rates[name].append(size / MIB / (time.perf_counter() - began))
                spent = {name: time.process_time() - cpu_s}
                if name in {WHOLE, ALONE[0]}:
                    spent[f"storage during {name}"] = cpu_s_of(told.storage_pid) - storage_s
                for what, seconds in spent.items():
                    cpu.setdefault(what, []).append(seconds / size * GIB)
                if name == WHOLE:
                    growth.append((memory_kib("VmHWM") - before_kib) / 1024)
                stage.target.unlink(missing_ok=True)
    return Told(rates=_tuples(rates), cpu_s_per_gib=_tuples(cpu), growth_mib=tuple(growth))


def _tuples(lists: dict[str, list[float]]) -> dict[str, tuple[float, ...]]:
    return {name: tuple(samples) for name, samples in lists.items()}


def memory_kib(name: str) -> int:
    """A line of this process's memory. Pages of files count while they are mapped: those of the page cache do not."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


def forget_peak() -> None:
    """Let VmHWM begin at what is resident now (proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")


def main() -> None:
    """Standard input to standard output."""
    told = run(msgspec.json.decode(sys.stdin.buffer.read(), type=prepared(Stages)))
    sys.stdout.buffer.write(msgspec.json.encode(told))


if __name__ == "__main__":
    main()
