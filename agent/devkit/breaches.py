"""What of the container contract a tried image did not keep: the contract's own line, and what its author can do about it.

A test holds that each line stands in docs/contracts/container.md, word for word.
"""

import re
import signal
from collections.abc import Iterable
from typing import Final

from msgspec import Struct

from agent.errors import AgentError, BadImage, BadOutput, JobFailed
from agent.ports.runtime import RunOutcome


class Rule(Struct, frozen=True):
    """A line of the contract, and the mend of what breaks it."""

    contract: str
    mend: str


class Breach(Struct, frozen=True):
    """`seen`: what happened, in words. `is_fatal`: whether a host fails the task for it; else it is worth a look."""

    seen: str
    contract: str
    mend: str
    is_fatal: bool = True


RULES: Final = {
    "exit": Rule(
        "Exit code 0 is success; everything else is a failure with its cause told apart",
        "Read the log below: it ends with what your program said last. Leave with code 0 when all is done.",
    ),
    "signal": Rule(
        "128 + n is read as a death by signal n",
        "Signal 11 or 6 comes from native code: run it outside with PYTHONFAULTHANDLER=1. Signal 9 is somebody's kill.",
    ),
    "oom": Rule(
        "`oom`: the kernel killed a process of the container, the first or another, at the memory ceiling of its cgroup",
        "Use less memory than `memory_bytes`; files in /tmp, /dev/shm and what you leave count too. Read the data in parts.",
    ),
    "timeout": Rule(
        "The agent kills at the ceiling",
        "Train for less than `wall_s`, which all runs of a task share, or ask the hospitals for more in [ceilings].",
    ),
    "disk": Rule(
        "`output_bytes` is RLIMIT_FSIZE for one file, and the sum is judged at harvest",
        "Leave less than `output_bytes`: no checkpoints, no copies of the data, a smaller type of number.",
    ),
    "output": Rule(
        "regular files and directories only; links, devices, fifos, set-id bits, names with `..` and sparse bombs are refused",
        "Leave plain files in plain folders, fewer than `output_files` and together less than `output_bytes`.",
    ),
    "seccomp": Rule(
        "the tripwires kill",
        "Take out what makes that call; `strace -f` of the program outside shows where. seccomp/source.toml has all of them.",
    ),
    "unknown": Rule(
        "A code that the engine cannot tell is `unknown`, never success.",
        "It is this machine's engine, not your image: try again, and look into the engine's own log.",
    ),
    "image": Rule(
        "Images are OCI archives (what `podman save --format oci-archive` writes; docker-archives too)",
        "Mend what is named and save the archive anew with `podman save --format oci-archive`.",
    ),
    "model": Rule(
        "the model is whatever regular files the algorithm leaves under `/data/model`",
        "Write at least one file below /data/model when called with `-T train`, also for little data.",
    ),
    "prediction": Rule(
        "predictions `pred/<dataset id>`",
        "For each file in /data/test write one file of the same name into /data/test/pred, and nothing beside it.",
    ),
    "performance": Rule(
        "a missing or non-finite `perf` is an error of the job, never a silent 0",
        'Write /hidden_data/perf/performance.json = {"perf": number, "train_perf": {}, "test_perf": {dataset id: number}}.',
    ),
    "network": Rule(
        "a namespace of its own with nothing but loopback",
        "Put everything that the program needs into the image: nothing can be downloaded while it runs.",
    ),
    "read-only": Rule(
        "read-only; `/tmp` a tmpfs with a size",
        "Write to /tmp, or to the folders of the contract: caches of libraries too (HOME is /tmp).",
    ),
    "no-call": Rule(
        "A call that is in no list fails with ENOSYS; a socket of another family with EAFNOSUPPORT",
        "Do without it: docs/algorithms.md says what works in which kind of run, and in `predict` less than in `train`.",
    ),
    "full": Rule(
        "read-only; `/tmp` a tmpfs with a size",
        "Keep less in /tmp (`tmp_bytes`) and in what you leave (`output_bytes`).",
    ),
    "memory": Rule(
        "wall clock, memory (no swap), CPUs, pids, open files, output bytes and file count, log bytes",
        "Use less memory than `memory_bytes`; where no cgroup holds it, each process has that much for its data.",
    ),
}

# What libraries say of a wall that they ran into, and the rule that stands there.
SAID: Final = (
    (re.compile(rb"Address family not supported|Network is unreachable|name resolution"), "network"),
    (re.compile(rb"Read-only file system"), "read-only"),
    (re.compile(rb"Function not implemented"), "no-call"),
    (re.compile(rb"No space left on device"), "full"),
    (re.compile(rb"File too large"), "disk"),
    (re.compile(rb"MemoryError|Cannot allocate memory|bad_alloc"), "memory"),
)

# What the agent says of outputs that it does not take, and the rule behind it; else "output".
REFUSED: Final = (
    ("left no model", "model"),
    ("performance.json", "performance"),
    ("exactly one file", "prediction"),
)


def broken(rule: str, seen: str, *, is_fatal: bool = True) -> Breach:
    """A breach of this rule."""
    return Breach(seen, RULES[rule].contract, RULES[rule].mend, is_fatal)


def breach_of(error: AgentError, killed: str) -> Breach:
    """What an error of a task says about its image. `killed`: what is known of a call that killed it."""
    match error:
        case JobFailed():
            rule = error.cause.partition(":")[0]
            told = f"{words_of(error.cause)}{killed if rule == 'seccomp' else ''}"
            return broken(rule if rule in RULES else "unknown", told)
        case BadOutput():
            rule = next((rule for words, rule in REFUSED if words in error.detail), "output")
            return broken(rule, f"{error.detail}{f': {error.seen}' if error.seen else ''}")
        case BadImage():
            return broken("image", error.detail)
        case _:
            return Breach(f"{error.code}: {error.detail}", "", error.advice)


def said_in(outcome: RunOutcome) -> Iterable[Breach]:
    """Walls of the cage that the log of a run speaks of; fatal when it failed."""
    for words, rule in SAID:
        found = words.search(outcome.log)
        if found is not None:
            text = found[0].decode("ascii")
            yield broken(rule, f'the log says "{text}"', is_fatal=outcome.cause is not None)


def words_of(cause: str | None) -> str:
    """How a run ended, for people."""
    if cause is None:
        return "ended well, with exit code 0"
    word, _, number = cause.partition(":")
    match word:
        case "exit":
            return f"its program ended with exit code {number}"
        case "signal":
            return f"it died by signal {number} ({signal.strsignal(int(number)) or 'unknown'})"
        case _:
            return _WORDS.get(word, cause)


_WORDS: Final = {
    "oom": "the kernel killed it for memory: it is over `memory_bytes`",
    "timeout": "it was killed at the wall clock ceiling `wall_s`",
    "disk": "it was killed for what it wrote: it is over `output_bytes`",
    "output": "what it left cannot be measured: its folders lie too deep",
    "seccomp": "the kernel killed it for a system call that no job may make",
    "unknown": "nobody can tell how it ended",
}
