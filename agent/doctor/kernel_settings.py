"""Kernel settings that make an escape harder, or that carry plaintext to a disk."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from agent.doctor.lines import Check, Group

GROUP = Group("kernel settings")


@dataclass(frozen=True, slots=True)
class Wish:
    """One setting: which values are good, the one to set, and what the others allow."""

    name: str
    is_good: Callable[[str], bool]
    set_to: str
    otherwise: str


def _at_least(least: int) -> Callable[[str], bool]:
    return lambda text: text.lstrip("-").isdigit() and int(text) >= least


def _is(*values: str) -> Callable[[str], bool]:
    return lambda text: text in values


WISHES = (
    Wish("kernel.kptr_restrict", _at_least(1), "1", "anybody reads addresses of the kernel"),
    Wish("kernel.dmesg_restrict", _at_least(1), "1", "anybody reads the kernel's log"),
    Wish("kernel.yama.ptrace_scope", _at_least(1), "1", "processes of one user may trace each other"),
    Wish("kernel.unprivileged_bpf_disabled", _at_least(1), "1", "anybody loads programs into the kernel"),
    Wish("kernel.perf_event_paranoid", _at_least(2), "2", "anybody measures the kernel"),
    Wish("kernel.randomize_va_space", _at_least(2), "2", "addresses are easy to guess"),
    Wish("fs.protected_symlinks", _at_least(1), "1", "links in shared folders are followed"),
    Wish("fs.protected_hardlinks", _at_least(1), "1", "anybody links to files of others"),
    Wish("fs.suid_dumpable", _is("0"), "0", "set-id programs leave core dumps"),
    Wish(
        "debug.exception-trace",
        _is("0"),
        "0",
        "a job that crashes writes the name it chose into the kernel's log",
    ),
    Wish("vm.unprivileged_userfaultfd", _is("0"), "0", "anybody may hold the kernel up at a page fault"),
    Wish(
        "vm.overcommit_memory",
        _is("0", "2"),
        "0",
        "memory is promised without end: a task dies of another one's hunger",
    ),
)
SETTINGS = (*(wish.name for wish in WISHES), "kernel.core_pattern", "kernel.io_uring_disabled")


def judge(values: Mapping[str, str]) -> list[Check]:
    """A line for each setting. `values`: as text; one that is absent could not be read, or the kernel has none."""
    lines = [_wish(wish, values.get(wish.name)) for wish in WISHES]
    return [*lines, _core_pattern(values.get("kernel.core_pattern")), _io_uring(values)]


def _wish(wish: Wish, value: str | None) -> Check:
    if value is None:
        return GROUP.note(wish.name, "this kernel has none, or does not tell")
    if wish.is_good(value):
        return GROUP.ok(wish.name, value)
    return GROUP.warn(wish.name, f"{value}: {wish.otherwise}", f"sysctl -w {wish.name}={wish.set_to}")


def _core_pattern(value: str | None) -> Check:
    """A handler at the end of a pipe gets the dump of any RLIMIT_CORE but 1 (fs/coredump.c); one at a socket may too."""
    name = "kernel.core_pattern"
    if value is None:
        return GROUP.note(name, "cannot be read")
    if value.startswith(("|", "@")):
        seen = f"{value.split()[0]} gets the memory of what crashes, plaintext too: only RLIMIT_CORE 1 keeps jobs from it"
        return GROUP.warn(name, seen, f"sysctl -w {name}=core")
    return GROUP.ok(name, f"{value}: a file, and jobs may write none")


def _io_uring(values: Mapping[str, str]) -> Check:
    name = "kernel.io_uring_disabled"
    match values.get(name):
        case None:
            return GROUP.note(name, "this kernel has no such setting; jobs get no io_uring in any case")
        case "0":
            return GROUP.note(name, "0; jobs get no io_uring in any case", f"sysctl -w {name}=2")
        case value:
            return GROUP.ok(name, value)
