"""Attempts that need runs of their own: ceilings, neighbours, ends, other kinds of run, what outlives it. Data only."""

# ruff: noqa: S108 - paths of the container

from typing import Any

from agent.ports.runtime import RunKind
from agent.selftest.probe import Probe, Scene
from agent.selftest.probes_inside import KILLED, NO_FAMILY, NO_SUCH_CALL

UNDER_24 = r"EAGAIN after (\d|1\d|2[0-3]) (processes|threads)"
AT_4_MIB = r"ENOSPC after (\d{1,3}|[1-3]\d{3}|40[0-8]\d|409[0-6]) KiB"
HALF_A_CPU = r"0\.[0-6]\d CPUs"
MORE = "5800000"  # bytes
TMP_FILES = "tmp_files"  # no ceiling of an order, but one that an engine may set

# ------------------------------------------------------------------ ceilings


def _small(name: str, attempt: str, expected: str, pattern: str, ceiling: str, *act: str) -> Probe:
    return Probe(
        name=name,
        attempt=attempt,
        expected=expected,
        pattern=pattern,
        ceiling=ceiling,
        scene=Scene.SMALL,
        act=act,
        is_quick=True,
    )


CEILINGS = (
    _small("fork-bomb", "fork until it fails, ceiling 24", "EAGAIN below 24", UNDER_24, "pids", "forks", "200"),
    _small("thread-bomb", "start threads until it fails, ceiling 24", "EAGAIN below 24", UNDER_24, "pids", "threads", "200"),
    _small(
        "descriptor-bomb", "open descriptors until it fails, ceiling 64", "EMFILE below 64",
        r"EMFILE after ([1-5]?\d|6[0-3]) descriptors", "open_files", "many-descriptors", "500",
    ),
    _small("tmp-filler", "fill /tmp, ceiling 4 MiB", "ENOSPC at 4 MiB", AT_4_MIB, "tmp_bytes", "fill", "/tmp/f", MORE),
    _small("shm-filler", "fill /dev/shm, ceiling 4 MiB", "ENOSPC at 4 MiB", AT_4_MIB, "tmp_bytes", "fill", "/dev/shm/f", MORE),
    _small("tmp-files", "fill /tmp with empty files", "ENOSPC", r"ENOSPC after \d+ \w+", TMP_FILES, "inodes", "/tmp", "20000"),
    _small(
        "output-file", "write one output of 16 MiB, ceiling 6 MiB", "EFBIG at 6 MiB",
        r"(EFBIG|ENOSPC) after [0-6]\d{0,3} KiB", "output_bytes", "fill", "/data/model/f", str(16 << 20),
    ),
    _small(
        "sparse-file", "claim an output of 1 TiB that holds nothing", "EFBIG",
        "EFBIG|ENOSPC", "output_bytes", "sparse", "/data/model/s", str(1 << 40),
    ),
    _small("cpu", "burn with three processes, ceiling half a CPU", "half a CPU", HALF_A_CPU, "cpu_millis", "cpu", "0.4", "3"),
)  # fmt: skip

# ------------------------------------------------------------------ beside another task

NEIGHBOURS = tuple(
    Probe(name=name, attempt=attempt, expected=expected, act=act, scene=Scene.NEIGHBOURS, is_quick=True)
    for name, attempt, expected, act in (
        ("neighbour-processes", "see another task's processes", "no other", ("processes",)),
        ("neighbour-signals", "signal another task", "nobody answers", ("signals",)),
        ("neighbour-memory-files", "find another task's files in /tmp and /dev/shm", "not found", ("look-for", "$token")),
        ("neighbour-files", "open another task's output by its path on the host", "ENOENT", ("read", "$secret")),
        ("neighbour-socket", "reach another task's abstract socket", "ECONNREFUSED", ("connect-abstract", "$neighbour")),
        ("neighbour-ids", "share a user id with another task", "disjoint", ("id-map",)),
    )
)  # fmt: skip

# ------------------------------------------------------------------ how a run ends


def _end(name: str, attempt: str, expected: str, *act: str, **more: Any) -> Probe:
    return Probe(name=name, attempt=attempt, expected=expected, scene=Scene.ENDS, act=act, **more)


ENDS = (
    _end("first-train", "make a deadly call with process 1, training", "seccomp", "call-here", "unshare", is_quick=True),
    _end("first-predict", "the same, predicting", "seccomp", "call-here", "ptrace", kind=RunKind.PREDICT),
    _end("first-problem", "the same, scoring", "seccomp", "call-here", "bpf", kind=RunKind.PROBLEM),
    _end("exit-137", "end with code 137, as if killed", "exit:137", "exit", "137"),
    _end("exit-139", "end with code 139, as if fallen over", "exit:139", "exit", "139"),
    _end("exit-159", "end with code 159, as if stopped by the filter", "exit:159", "exit", "159"),
    _end("segfault", "fall over", "signal:11", "segfault"),
    _end("stubborn", "ignore every signal, ceiling 1 s", "timeout", "stubborn", wall_s=1, ceiling="wall_s"),
    _end("memory-bomb", "take 1 GiB of memory, ceiling 256 MiB", "oom", "memory", "1024", ceiling="memory_bytes"),
    Probe(name="killed", attempt="be killed by the host", expected="signal:9", scene=Scene.NEIGHBOURS, is_quick=True),
)  # fmt: skip

# ------------------------------------------------------------------ other kinds of run

KINDS = (
    *(
        Probe(name=name, attempt=attempt, expected=expected, act=act, scene=Scene.PREDICT, kind=RunKind.PREDICT)
        for name, attempt, expected, act in (
            ("predict-fork", "start a process while predicting", NO_SUCH_CALL, ("fork",)),
            ("predict-unix", "open a Unix socket while predicting", NO_FAMILY, ("family", "1")),
            ("predict-inet", "open an internet socket while predicting", NO_FAMILY, ("family", "2")),
            ("predict-clone", "clone into a namespace while predicting", NO_SUCH_CALL, ("call-here", "clone-newuser")),
        )
    ),
    *(
        Probe(name=name, attempt=attempt, expected=expected, act=act, scene=Scene.PROBLEM, kind=RunKind.PROBLEM)
        for name, attempt, expected, act in (
            ("problem-unix", "open a Unix socket while it sees the targets", NO_FAMILY, ("family", "1")),
            ("problem-inet", "open an internet socket while it sees the targets", NO_FAMILY, ("family", "2")),
            ("problem-ptrace", "trace another process while it sees the targets", KILLED, ("call", "ptrace")),
            ("problem-setns", "enter another namespace while it sees the targets", KILLED, ("call", "setns")),
        )
    ),
)  # fmt: skip

# ------------------------------------------------------------------ what outlives a run, and what it says

AFTERWARDS = (
    Probe(
        name="daemon",
        attempt="leave a process behind: two forks, a session of its own, deaf to signals",
        expected="gone",
        scene=Scene.DAEMON,
        act=("daemon", "/data/model/lock"),
    ),
    Probe(
        name="log-flood",
        attempt="say 1 GiB, ceiling 64 KiB",
        expected="64 KiB kept at most",
        pattern=r"1024 MiB said, ([0-5]?\d|6[0-4]) KiB kept",
        ceiling="log_bytes",
        scene=Scene.FLOOD,
        act=("flood", "1024"),
    ),
    Probe(
        name="endless-line",
        attempt="say 64 MiB in one line, then progress",
        expected="64 KiB kept at most, progress read",
        pattern=r"64 MiB said, ([0-5]?\d|6[0-4]) KiB kept, progress 0\.5",
        ceiling="log_bytes",
        scene=Scene.FLOOD,
        act=("endless-line", "64"),
    ),
    Probe(
        name="control-characters",
        attempt="steer the operator's terminal by what it says",
        expected="shown, not sent",
        scene=Scene.FLOOD,
        act=("controls",),
    ),
)

RUNS = (*CEILINGS, *NEIGHBOURS, *ENDS, *KINDS, *AFTERWARDS)
