"""Part `idle`: what the two services of an agent take of a host while there is nothing to do.

`dc-compute serve` and `dc-compute work` are started as their units start them, with systemd's socket for their words and its
watchdog; the storage and the orchestrators that they know are there. From the moment at which the worker said that the cage is
proved, and a little longer, CPU time and wake-ups are counted over an interval, and memory is read at its end, with that of the
processes that they started. Podman's service, where jobs run in Podman, is named apart. Baseline: two sleeping interpreters.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from msgspec import Struct

from agent.bench.engines import engines, podman_engine
from agent.bench.figures import Bench, Measured, Row
from agent.bench.processes import MIB, Memory, Watched, descendants, with_word, woken
from agent.config import load_settings
from agent.devkit.consortium import Consortium, Party, found
from agent.wiring import open_api

PART = "idle"
SERVICES: Mapping[str, int] = {"serve": 60, "work": 180}  # and WatchdogSec of their units, in seconds
READY: Mapping[str, bytes] = {"serve": b"READY=1", "work": b"; the cage is proved"}
BOTH, PODMAN, SLEEPERS = "both services", "podman service", "two sleeping interpreters"
SHORT_S, FULL_S = 2.0, 40.0
SETTLE_S = 2.0  # connections of the start close, memory that it used goes back
READY_S = 120.0  # the self-test of a slow host
STOP_S = 60.0
SLEEPER = (sys.executable, "-c", "import signal; signal.pause()")
UPPER_BOUND = "this kernel told no PSS of {names}: what stands there is RSS, which is at least as much"


class Taken(Struct, frozen=True, kw_only=True):
    """What some processes took together over the interval."""

    memory: Memory
    cpu_percent: float  # of one core
    wakeups_per_s: float


class NotReady(Exception):
    """A service ended or did not become ready; the message holds the end of its log."""


def measure(bench: Bench) -> Measured:
    """One sample of each: what matters is the length of the interval, and a start belongs to none."""
    with podman_engine() as podman, ExitStack() as stack:
        engine = engines(podman)["podman"]
        groups = stack.enter_context(idle_agent(bench, engine))
        groups[PODMAN] = [Watched(pid) for pid in with_word(f"unix://{podman}")]
        groups[SLEEPERS] = stack.enter_context(sleepers(len(SERVICES)))
        for group in groups.values():
            for one in group:
                stack.callback(one.close)
        time.sleep(0 if bench.is_short else SETTLE_S)
        return measured(watch(groups, SHORT_S if bench.is_short else FULL_S))


def measured(taken: Mapping[str, Taken]) -> Measured:
    """The rows of each group and of both services together, and the figures of the issue's targets."""
    both = together([taken[name] for name in SERVICES])
    rows = [
        *(row for name in SERVICES for row in rows_of(name, taken[name])),
        *rows_of(BOTH, both, baseline=SLEEPERS),
        *rows_of(SLEEPERS, taken[SLEEPERS]),
        *rows_of(PODMAN, taken[PODMAN]),
    ]
    figures = {"idle_mib": both.memory.most_bytes / MIB, "idle_cpu_percent": both.cpu_percent}
    untold = [name for name in (*SERVICES, PODMAN) if taken[name].memory.pss_bytes is None]
    notes = (UPPER_BOUND.format(names=", ".join(untold)),) if untold else ()
    return Measured(rows=tuple(rows), figures=figures, notes=notes)


def rows_of(name: str, taken: Taken, baseline: str | None = None) -> tuple[Row, ...]:
    """Memory both ways, CPU, wake-ups."""
    told = {
        "PSS": ("MiB", taken.memory.most_bytes / MIB),
        "RSS": ("MiB", taken.memory.rss_bytes / MIB),
        "CPU": ("%", taken.cpu_percent),
        "wake-ups": ("/s", taken.wakeups_per_s),
    }
    return tuple(
        Row(
            part=PART,
            name=f"{name}, {what}",
            unit=unit,
            samples=(value,),
            baseline=f"{baseline}, {what}" if baseline is not None and unit == "MiB" else None,
        )
        for what, (unit, value) in told.items()
    )


def together(taken: Sequence[Taken]) -> Taken:
    """Their sum. Without PSS of one there is none of all."""
    pss = [one.memory.pss_bytes for one in taken]
    told = [one for one in pss if one is not None]
    most = sum(one.memory.most_bytes for one in taken)
    return Taken(
        memory=Memory(most if len(told) == len(pss) else None, sum(one.memory.rss_bytes for one in taken)),
        cpu_percent=sum(one.cpu_percent for one in taken),
        wakeups_per_s=sum(one.wakeups_per_s for one in taken),
    )


def watch(groups: Mapping[str, Sequence[Watched]], interval_s: float) -> dict[str, Taken]:
    """What each group takes over so many seconds. Raises: OSError when a process of one ends meanwhile."""
    everybody = [one for group in groups.values() for one in group]
    began_s = time.monotonic()
    before = {one.pid: (one.cpu_s(), one.wakeups()) for one in everybody}
    time.sleep(interval_s)
    after = {one.pid: (one.cpu_s(), one.wakeups()) for one in everybody}
    took_s = time.monotonic() - began_s
    return {name: _taken(group, before, after, took_s) for name, group in groups.items()}


Looks = Mapping[int, tuple[float, dict[str, int]]]  # by process: CPU seconds, wake-ups by thread


def _taken(group: Sequence[Watched], before: Looks, after: Looks, took_s: float) -> Taken:
    memories = [Taken(memory=one.memory(), cpu_percent=0.0, wakeups_per_s=0.0) for one in group]
    return Taken(
        memory=together(memories).memory,
        cpu_percent=100 * sum(after[one.pid][0] - before[one.pid][0] for one in group) / took_s,
        wakeups_per_s=sum(woken(before[one.pid][1], after[one.pid][1]) for one in group) / took_s,
    )


# ------------------------------------------------------------------ the processes


@contextmanager
def idle_agent(bench: Bench, engine: Mapping[str, str]) -> Iterator[dict[str, list[Watched]]]:
    """The services of one agent, ready, with what they started, by the service's name. Raises: NotStarted, NotReady.

    Its ledger is made before, as at every start but the very first: that one holds Alembic until the next.
    """
    consortium = found(bench.folder / "town", ("A",), runtime=engine, memory=bench.memory / "town")
    agent = consortium.hospitals[0].agent
    with open_api(load_settings(agent.folder, {}, [])):
        pass
    with ExitStack() as stack:
        others = [party for party in consortium.parties if party is not agent]
        for party in others:
            consortium.start(party)
            stack.callback(consortium.stop, party)
        consortium.wait_until_ready(others)
        groups = {
            name: [stack.enter_context(service(name, agent, bench.memory, consortium))] for name in SERVICES
        }
        for name, group in groups.items():
            groups[name] = [*group, *(Watched(pid) for pid in descendants([group[0].pid]))]
        yield groups


@contextmanager
def service(name: str, agent: Party, memory: Path, consortium: Consortium) -> Iterator[Watched]:
    """This service of the agent, as its unit starts it, ready. Raises: NotReady."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear, agent.log.open("ab") as log:
        ear.bind(str(memory / f"{name}.notify"))
        process = subprocess.Popen(
            (sys.executable, "-m", "agent", "--home", str(agent.folder), name),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=consortium.folder,
            start_new_session=True,
            env=_environment(ear.getsockname(), SERVICES[name]),
        )
        try:
            watched = Watched(process.pid)
            _await(name, ear, process, agent)
            yield watched
        finally:
            _stop(process)


@contextmanager
def sleepers(count: int) -> Iterator[list[Watched]]:
    """So many interpreters that were started and wait for a signal."""
    with ExitStack() as stack:
        started = [subprocess.Popen(SLEEPER, stdin=subprocess.DEVNULL) for _ in range(count)]
        for one in started:
            stack.callback(_stop, one)
        yield [Watched(one.pid) for one in started]


def _environment(ear: str, watchdog_s: int) -> dict[str, str]:
    kept = ("PATH", "HOME", "LANG", "XDG_RUNTIME_DIR")
    told = {name: os.environ[name] for name in kept if name in os.environ}
    root = str(Path(__file__).resolve().parents[2])
    return told | {"NOTIFY_SOCKET": ear, "WATCHDOG_USEC": str(watchdog_s * 10**6), "PYTHONPATH": root}


def _await(name: str, ear: socket.socket, process: subprocess.Popen[bytes], agent: Party) -> None:
    deadline_s = time.monotonic() + READY_S
    ear.settimeout(1.0)
    while process.poll() is None and time.monotonic() < deadline_s:
        try:
            if READY[name] in ear.recv(4096):
                return
        except TimeoutError:
            continue
    words = agent.log.read_text(errors="replace").strip().splitlines()[-5:]
    raise NotReady(f"dc-compute {name} is not ready: " + " / ".join(words))


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
