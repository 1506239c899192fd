"""Ceilings: what an engine cannot hold fails, unless the policy does without it by name."""

from collections.abc import Sequence
from typing import get_args

import pytest

from agent.doctor.ceilings import TO_V2, Cgroups, Hierarchy, hierarchy_of, judge_cgroups, judge_runtimes
from agent.doctor.lines import State, Unknown
from agent.doctor.look_ceilings import look_at_cgroups
from agent.ports.runtime import Enforcement
from agent.trust.policy import CeilingName

V1 = Cgroups(uid=990, hierarchy=Hierarchy.HYBRID, delegated=())
V2 = Cgroups(uid=990, hierarchy=Hierarchy.V2, delegated=("cpu", "memory", "pids", "io"))
STARTS = {"podman": "start podman"}

ALL = Enforcement(version="podman 5", means=dict.fromkeys(get_args(CeilingName), "cgroup"), absent=())
NO_MEMORY = Enforcement(
    version="podman 4",
    means={name: "rlimit" for name in get_args(CeilingName) if name != "cpu_millis"},
    absent=("cpu_millis", "memory_bytes"),
)


def states(
    found: dict[str, Enforcement | Unknown], accepted: Sequence[str] = (), facts: Cgroups = V1
) -> dict[str, State]:
    return {line.name: line.state for line in judge_runtimes(found, accepted, facts, STARTS)}


def test_every_ceiling_of_every_engine_has_a_line() -> None:
    found = states({"podman": ALL, "runc": ALL}, facts=V2)

    assert set(found) == {
        "podman", "runc", *(f"{runtime} {name}" for runtime in ("podman", "runc") for name in get_args(CeilingName)),
    }  # fmt: skip
    assert set(found.values()) == {State.OK}


def test_an_absent_ceiling_fails() -> None:
    found = states({"podman": NO_MEMORY})

    assert {name for name, state in found.items() if state is State.FAIL} == {
        "podman cpu_millis",
        "podman memory_bytes",
    }


def test_an_absent_ceiling_that_the_policy_names_is_told() -> None:
    found = states({"podman": NO_MEMORY}, accepted=("memory_bytes",))

    assert (found["podman memory_bytes"], found["podman cpu_millis"]) == (State.WARN, State.FAIL)


def test_a_stand_in_is_named_as_what_it_is() -> None:
    seen = {line.name: line.seen for line in judge_runtimes({"podman": NO_MEMORY}, (), V1, STARTS)}

    assert seen["podman memory_bytes"].startswith("absent (rlimit stands in)")
    assert seen["podman pids"] == "by rlimit"


def test_a_gap_that_the_policy_names_and_the_host_has_not_is_told() -> None:
    found = states({"podman": NO_MEMORY}, accepted=("memory_bytes", "pids"))

    assert found["accept_missing"] is State.NOTE
    assert "accept_missing" not in states({"podman": NO_MEMORY}, accepted=("memory_bytes",))


@pytest.mark.parametrize(("facts", "words"), [(V1, TO_V2), (V2, "user@990.service")])
def test_the_mend_fits_the_hierarchy(facts: Cgroups, words: str) -> None:
    mends = [
        line.mend or ""
        for line in judge_runtimes({"podman": NO_MEMORY}, (), facts, STARTS)
        if line.state is State.FAIL
    ]

    assert all(words in mend for mend in mends)


@pytest.mark.parametrize(
    ("found", "state"),
    [
        ({"podman": Unknown("no socket")}, State.FAIL),
        ({"podman": Unknown("no socket"), "runc": Unknown("no runc")}, State.FAIL),
        ({"podman": Unknown("no socket"), "runc": ALL}, State.WARN),
    ],
)
def test_one_engine_that_answers_is_enough(found: dict[str, Enforcement | Unknown], state: State) -> None:
    (line,) = [one for one in judge_runtimes(found, (), V2, STARTS) if one.name == "podman"]

    assert (line.state, line.mend) == (state, "start podman")


MOUNTS = {
    Hierarchy.V2: "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate",
    Hierarchy.V1: "34 31 0:31 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    "35 31 0:32 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd",
    Hierarchy.HYBRID: "34 31 0:31 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    "36 31 0:33 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw",
    Hierarchy.NONE: "35 31 0:32 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd",
}


@pytest.mark.parametrize("hierarchy", Hierarchy)
def test_the_hierarchy_is_read_from_the_mounts(hierarchy: Hierarchy) -> None:
    assert hierarchy_of(MOUNTS[hierarchy]) is hierarchy


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (V2, [State.OK, State.OK]),
        (V1, [State.WARN, State.NOTE]),
        (Cgroups(uid=1, hierarchy=Hierarchy.NONE, delegated=()), [State.WARN, State.NOTE]),
        (Cgroups(uid=1, hierarchy=Hierarchy.V2, delegated=("pids",)), [State.OK, State.WARN]),
        (Cgroups(uid=1, hierarchy=Hierarchy.V2, delegated=Unknown("none")), [State.OK, State.NOTE]),
        (Cgroups(uid=1, hierarchy=Hierarchy.V1, delegated=("cpu", "memory", "pids")), [State.WARN, State.OK]),
    ],
)
def test_what_is_delegated(facts: Cgroups, expected: list[State]) -> None:
    assert [line.state for line in judge_cgroups(facts)] == expected


def test_the_cgroups_of_this_host_can_be_read() -> None:
    assert look_at_cgroups(12345).hierarchy in Hierarchy
