"""Ceilings on a real machine with cgroup v2: Debian boots in QEMU, and the tests of real containers run in it.

Slow: a minute or two to make the machine the first time, some minutes to boot and run. What ran inside is told test by test.
"""

import os
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.host.vm.machine import BOOT_TIMEOUT_S, BUILD_TIMEOUT_S, CACHE, Machine, Result, why_not

pytestmark = [pytest.mark.host, pytest.mark.timeout(BUILD_TIMEOUT_S + BOOT_TIMEOUT_S)]

# What inside.sh runs, by name. `DC_COMPUTE_VM=all` adds the self-test, the whole cage under crun and a whole order, many
# minutes more: in an emulated machine the agents of that order prove their cage for longer than the order's test waits.
# crun and runc below Podman, and runc without it.
LIMITED = ("crun", "runc", "bundle")
FURTHER = ("selftest", "order", "cage") if os.environ.get("DC_COMPUTE_VM") == "all" else ()
RUNS = (*LIMITED, "contract", *FURTHER)
LEAST_PASSED = {"crun": 20, "runc": 20, "bundle": 20, "contract": 20, "selftest": 1, "order": 2, "cage": 40}
# On this machine nothing is missing, but for what says that something is.
MAY_BE_SKIPPED = {
    "a host without memory limits (this one has them, so Podman warns of nothing)",
    "a host that lacks a ceiling (this one enforces all)",
}


@pytest.fixture(scope="module")
def booted() -> Result:
    lacking = why_not()
    if lacking:
        pytest.skip(f"a machine with cgroup v2 needs {lacking}")
    return Machine.prepared().boot(RUNS)


def ends(result: Result, run: str) -> Mapping[str, tuple[str, str]]:
    """How each test of this run ended: name -> (passed, failed or skipped; why)."""
    if f"{run}.xml" not in result.files:
        pytest.fail(f"the run {run} did not come to its end\n{result.console[-8000:]}")
    found = {}
    for case in ET.fromstring(result.files[f"{run}.xml"]).iter("testcase"):  # noqa: S314 - written by our own pytest
        name = f"{case.get('classname')}::{case.get('name')}"
        fault = next((part for kind in ("failure", "error") for part in case.iter(kind)), None)
        skip = next(case.iter("skipped"), None)
        if fault is not None:
            found[name] = ("failed", f"{fault.get('message')}\n{(fault.text or '')[-3000:]}")
        elif skip is not None:
            found[name] = ("skipped", skip.get("message") or "")
        else:
            found[name] = ("passed", "")
    return found


@pytest.mark.parametrize("run", RUNS)
def test_real_containers_pass_under_cgroup_v2(booted: Result, run: str) -> None:
    told = ends(booted, run)

    failed = [f"{name}: {why}" for name, (how, why) in told.items() if how == "failed"]
    skipped = {
        f"{name}: {why}"
        for name, (how, why) in told.items()
        if how == "skipped" and why not in MAY_BE_SKIPPED
    }
    assert not failed, "\n\n".join(failed)
    assert not skipped, "\n".join(sorted(skipped))
    assert [how for how, _ in told.values()].count("passed") >= LEAST_PASSED[run]


@pytest.mark.parametrize("run", LIMITED)
@pytest.mark.parametrize(
    "fact",
    [
        "test_nothing_is_absent_and_the_cgroup_holds_memory_cpu_and_pids",
        "test_a_memory_bomb_ends_as_oom",
        "test_a_bomb_in_a_child_process_ends_the_job_as_oom",
        "test_an_exit_code_of_the_job_s_own_is_never_oom",
        "test_a_host_s_swap_is_no_way_out",
        "test_a_cpu_ceiling_throttles",
        "test_a_fork_bomb_stops_at_the_cgroup_s_ceiling",
        "test_a_limit_that_the_engine_did_not_apply_is_a_refusal",
    ],
)
def test_limits_are_real(booted: Result, run: str, fact: str) -> None:
    """Each by name: it was there, it ran, it held."""
    told = {how for name, (how, _) in ends(booted, run).items() if f"::{fact}[" in name}

    assert told == {"passed"}


def test_the_machine_is_gone(booted: Result) -> None:
    assert "Power down" in booted.console
    assert not Path(f"/proc/{booted.pid}").exists()
    assert str(CACHE) not in Path("/proc/mounts").read_text()
