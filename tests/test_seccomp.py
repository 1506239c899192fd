"""The shipped seccomp profiles are what their source says, allow what real workloads call, and nothing dangerous."""

import ctypes
from collections.abc import Callable
from typing import Any

import pytest

from agent.devkit.seccomp import FOLDER, profile, profile_text, read_source
from agent.ports.runtime import RunKind

SOURCE = read_source()
KEYS = {"defaultAction", "defaultErrnoRet", "architectures", "syscalls"}
RULE_KEYS = {"names", "action", "errnoRet", "args"}

NEVER_ALLOWED = {
    "bpf", "chroot", "clone3", "delete_module", "fsopen", "init_module", "io_uring_setup", "kexec_load", "keyctl", "mknod",
    "mknodat", "mount", "move_mount", "open_by_handle_at", "open_tree", "perf_event_open", "personality", "pivot_root",
    "process_vm_readv", "process_vm_writev", "ptrace", "reboot", "setgid", "setgroups", "setns", "setresuid", "setuid",
    "setxattr", "splice", "swapon", "syslog", "umount2", "unshare", "userfaultfd", "vmsplice",
}  # fmt: skip
# Tripwires: who makes one of these is no library that probes.
DEADLY = {"bpf", "io_uring_setup", "keyctl", "mount", "ptrace", "setns", "unshare", "userfaultfd"}


# What x86-64 has and arm64 never had -> the call, allowed too, that its libc makes instead; None where nothing is missing.
ON_ARM64 = {
    "access": "faccessat", "alarm": "setitimer", "arch_prctl": None, "chmod": "fchmodat", "dup2": "dup3",
    "epoll_create": "epoll_create1", "epoll_wait": "epoll_pwait", "fork": "clone", "futimesat": "utimensat",
    "getpgrp": "getpgid", "ioperm": None, "iopl": None, "link": "linkat", "lstat": "newfstatat", "mkdir": "mkdirat",
    "modify_ldt": None, "open": "openat", "pause": "ppoll", "pipe": "pipe2", "poll": "ppoll", "readlink": "readlinkat",
    "rename": "renameat", "rmdir": "unlinkat", "select": "pselect6", "stat": "newfstatat", "symlink": "symlinkat",
    "time": "clock_gettime", "unlink": "unlinkat", "utime": "utimensat", "utimes": "utimensat", "vfork": "clone",
}  # fmt: skip
X86_64, AARCH64 = 0xC000003E, 0xC00000B7  # AUDIT_ARCH_*, as libseccomp names an architecture
UNKNOWN = -1  # libseccomp numbers a call that another architecture has below that


def rules(name: str, action: str) -> list[dict[str, Any]]:
    return [rule for rule in profile(SOURCE, name)["syscalls"] if rule["action"] == action]


def calls(name: str, action: str = "SCMP_ACT_ALLOW") -> set[str]:
    return {call for rule in rules(name, action) for call in rule["names"]}


def test_there_is_a_profile_for_every_kind_of_run() -> None:
    assert sorted(SOURCE.profiles) == sorted(RunKind)


@pytest.mark.parametrize("name", SOURCE.profiles)
def test_the_shipped_file_is_what_the_source_says(name: str) -> None:
    shipped = (FOLDER / f"{name}.json").read_text()

    assert shipped == profile_text(SOURCE, name), "run make seccomp"


@pytest.mark.parametrize("name", SOURCE.profiles)
def test_only_what_every_parser_reads_alike_is_used(name: str) -> None:
    made = profile(SOURCE, name)

    assert set(made) == KEYS
    assert all(set(rule) <= RULE_KEYS for rule in made["syscalls"])
    assert made["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"]
    assert (made["defaultAction"], made["defaultErrnoRet"]) == ("SCMP_ACT_ERRNO", 38)


@pytest.mark.parametrize("name", SOURCE.profiles)
def test_dangerous_calls_are_never_allowed(name: str) -> None:
    assert not calls(name) & NEVER_ALLOWED
    assert calls(name, "SCMP_ACT_KILL_PROCESS") >= DEADLY
    assert not calls(name) & calls(name, "SCMP_ACT_KILL_PROCESS")


def test_what_real_workloads_call_is_allowed_or_may_fail() -> None:
    seen = set((FOLDER / "seen.txt").read_text().split())

    assert seen - calls("train") == set(SOURCE.may_fail)


def test_each_narrower_profile_is_part_of_training_s() -> None:
    assert calls("predict") < calls("problem") < calls("train")


@pytest.mark.parametrize("name", SOURCE.profiles)
def test_conditions_only_ever_allow_by_equality(name: str) -> None:
    for rule in profile(SOURCE, name)["syscalls"]:
        for condition in rule.get("args", []):
            by_equality = condition["op"] in {"SCMP_CMP_EQ", "SCMP_CMP_MASKED_EQ"}
            assert by_equality is (rule["action"] == "SCMP_ACT_ALLOW")


@pytest.mark.parametrize("name", SOURCE.profiles)
def test_no_call_is_both_free_and_conditional(name: str) -> None:
    free = {
        call for rule in profile(SOURCE, name)["syscalls"] if "args" not in rule for call in rule["names"]
    }
    bound = {call for rule in profile(SOURCE, name)["syscalls"] if "args" in rule for call in rule["names"]}

    assert not free & bound


@pytest.mark.parametrize("name", SOURCE.profiles)
def test_a_guest_reads_its_limits_and_sets_none(name: str) -> None:
    """Above all RLIMIT_CORE: lowered from 1 to 0, a handler that core_pattern names would get the guest's memory."""
    (prlimit,) = (rule for rule in rules(name, "SCMP_ACT_ALLOW") if "prlimit64" in rule["names"])

    assert prlimit["args"] == [{"index": 2, "value": 0, "op": "SCMP_CMP_EQ"}]  # no new limit
    assert "setrlimit" not in calls(name)


def test_predict_makes_threads_only() -> None:
    (clone,) = (rule for rule in rules("predict", "SCMP_ACT_ALLOW") if "clone" in rule["names"])
    (condition,) = clone["args"]

    assert condition["value"] & condition["valueTwo"] == 0x10000  # CLONE_THREAD must be set
    assert not calls("predict") & {"fork", "vfork", "wait4", "socket", "connect"}


def test_predict_makes_no_semaphore_so_that_joblib_goes_serial_instead_of_failing() -> None:
    assert not calls("predict") & {"link", "linkat"}
    assert calls("problem") >= {"link", "linkat"}


@pytest.mark.parametrize("name", SOURCE.profiles)
def test_no_clone_makes_a_namespace(name: str) -> None:
    new_namespaces = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
    (clone,) = (rule for rule in rules(name, "SCMP_ACT_ALLOW") if "clone" in rule["names"])
    (condition,) = clone["args"]

    assert condition["value"] & new_namespaces == new_namespaces
    assert condition["valueTwo"] & new_namespaces == 0


def test_only_training_opens_sockets_and_only_unix_ones() -> None:
    for call in ("socket", "socketpair"):
        (allowed,) = (rule for rule in rules("train", "SCMP_ACT_ALLOW") if call in rule["names"])
        assert allowed["args"] == [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]


@pytest.mark.parametrize("name", SOURCE.profiles)
def test_every_entry_of_the_source_says_who_needs_it(name: str) -> None:
    assert all(len(entry.who) > 6 for entry in SOURCE.calls)


# ------------------------------------------------------------------ both architectures


def libseccomp() -> Callable[[int, str], int]:
    """(architecture, name of a call) -> its number, as the library numbers it that runc and crun load profiles with."""
    try:
        resolve = ctypes.CDLL("libseccomp.so.2").seccomp_syscall_resolve_name_arch
    except OSError:
        pytest.skip("libseccomp.so.2, which comes with runc and crun: run install.sh --deps")
    resolve.argtypes, resolve.restype = [ctypes.c_uint32, ctypes.c_char_p], ctypes.c_int
    return lambda architecture, name: int(resolve(architecture, name.encode()))


def named() -> set[str]:
    """Every call that a profile or a list of ours names."""
    seen = (FOLDER / "seen.txt").read_text().split()
    return {call for entry in SOURCE.calls for call in entry.names} | {*SOURCE.may_fail, *seen}


def test_every_call_that_is_named_exists_on_both_architectures_or_has_its_like_there() -> None:
    number = libseccomp()

    assert number(X86_64, "no_such_call") == number(AARCH64, "no_such_call") == UNKNOWN
    assert {call for call in named() if number(X86_64, call) < 0} == set()
    assert {call for call in named() if number(AARCH64, call) == UNKNOWN} == set()
    assert {call for call in named() if number(AARCH64, call) < 0} <= set(ON_ARM64)


@pytest.mark.parametrize("name", SOURCE.profiles)
def test_what_arm64_calls_in_the_place_of_an_older_call_is_allowed_where_that_is(name: str) -> None:
    allowed = calls(name)

    assert {new for old, new in ON_ARM64.items() if old in allowed and new is not None} <= allowed
