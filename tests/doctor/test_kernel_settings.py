"""The kernel's settings: each wish with a good and a bad value, and the command that sets the good one."""

import pytest

from agent.doctor.kernel_settings import SETTINGS, WISHES, judge
from agent.doctor.lines import Check, State
from agent.doctor.look_user_ids import look_at_sysctls

GOOD = {wish.name: wish.set_to for wish in WISHES} | {
    "kernel.core_pattern": "core",
    "kernel.io_uring_disabled": "2",
}


def line(values: dict[str, str], name: str) -> Check:
    (found,) = [check for check in judge(values) if check.name == name]
    return found


def test_a_host_with_every_wish_has_nothing_to_mend() -> None:
    assert {check.state for check in judge(GOOD)} == {State.OK}


@pytest.mark.parametrize(
    ("name", "value", "state"),
    [
        ("kernel.kptr_restrict", "0", State.WARN),
        ("kernel.kptr_restrict", "2", State.OK),
        ("kernel.dmesg_restrict", "0", State.WARN),
        ("kernel.yama.ptrace_scope", "0", State.WARN),
        ("kernel.yama.ptrace_scope", "3", State.OK),
        ("kernel.unprivileged_bpf_disabled", "0", State.WARN),
        ("kernel.unprivileged_bpf_disabled", "2", State.OK),
        ("kernel.perf_event_paranoid", "-1", State.WARN),
        ("fs.protected_symlinks", "0", State.WARN),
        ("fs.protected_hardlinks", "0", State.WARN),
        ("fs.suid_dumpable", "2", State.WARN),
        ("debug.exception-trace", "1", State.WARN),
        ("debug.exception-trace", "0", State.OK),
        ("vm.unprivileged_userfaultfd", "1", State.WARN),
        ("vm.overcommit_memory", "1", State.WARN),
        ("vm.overcommit_memory", "2", State.OK),
        ("kernel.core_pattern", "|/usr/lib/systemd/systemd-coredump %P %u", State.WARN),
        ("kernel.core_pattern", "|/usr/share/apport/apport -p%p", State.WARN),
        ("kernel.core_pattern", "/var/crash/core.%p", State.OK),
        ("kernel.io_uring_disabled", "0", State.NOTE),
        ("kernel.io_uring_disabled", "1", State.OK),
        ("kernel.kptr_restrict", "strange", State.WARN),
    ],
)
def test_a_setting(name: str, value: str, state: State) -> None:
    found = line({**GOOD, name: value}, name)

    assert found.state is state
    if state is State.WARN:
        assert (found.mend or "").startswith(f"sysctl -w {name}=")


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_that_this_kernel_lacks_is_not_judged(name: str) -> None:
    values = {other: value for other, value in GOOD.items() if other != name}

    assert line(values, name).state is State.NOTE


def test_every_mend_brings_the_setting_in_order() -> None:
    broken = {name: "0" if name.startswith(("kernel", "fs.p")) else "1" for name in GOOD}

    for check in judge(broken):
        if check.state is State.WARN:
            name, _, value = (check.mend or "").removeprefix("sysctl -w ").partition("=")
            assert line({**GOOD, name: value}, name).state is State.OK


def test_the_settings_of_this_host_can_be_read() -> None:
    assert look_at_sysctls(SETTINGS)["kernel.core_pattern"]
