"""Subordinate ids: enough of them, nobody else's, and somebody who hands them out."""

from typing import Any

import pytest
from msgspec.structs import replace

from agent.doctor.lines import Check, State, Unknown
from agent.doctor.user_ids import MapHelper, Range, UserIds, judge, parse_ranges

OWN = Range("dc-compute", 100_000, 8 * 65_536)
HELPERS = {name: MapHelper(f"/usr/bin/{name}", True, False) for name in ("newuidmap", "newgidmap")}
FACTS = UserIds(
    user="dc-compute",
    uid=990,
    ranges={"subuid": (OWN,), "subgid": (OWN,)},
    taken={"root": 0, "nobody": 65_534, "dc-compute": 990},
    helpers=HELPERS,
    sysctls={"user.max_user_namespaces": "96365"},
    has_apparmor_profile=False,
)


def states(facts: UserIds, pool_size: int = 4) -> dict[str, State]:
    return {check.name: check.state for check in judge(facts, pool_size)}


def line(facts: UserIds, name: str) -> Check:
    return next(check for check in judge(facts, 4) if check.name == name)


def with_subuids(*ranges: Range, **changes: Any) -> UserIds:
    return replace(FACTS, ranges={**FACTS.ranges, "subuid": ranges}, **changes)


def test_a_host_as_the_installer_leaves_it_has_nothing_to_mend() -> None:
    assert set(states(FACTS).values()) == {State.OK}


@pytest.mark.parametrize(
    ("count", "state"), [(0, State.FAIL), (65_535, State.FAIL), (65_536, State.WARN), (5 * 65_536, State.OK)]
)
def test_each_container_needs_ids_of_its_own(count: int, state: State) -> None:
    ranges = (Range("dc-compute", 100_000, count),) if count else ()

    assert states(with_subuids(*ranges))["subuid"] is state


def test_ranges_by_number_are_the_users_too() -> None:
    assert states(with_subuids(Range("990", 100_000, 524_288)))["subuid"] is State.OK


@pytest.mark.parametrize(
    ("other", "overlaps"),
    [
        (Range("alice", 100_000 + 8 * 65_536, 65_536), False),
        (Range("alice", 34_464, 65_536), False),
        (Range("alice", 34_465, 65_536), True),
        (Range("alice", 200_000, 1), True),
        (Range("alice", 0, 1 << 30), True),
    ],
)
def test_ids_that_are_another_users_too_fail(other: Range, overlaps: bool) -> None:
    told = states(with_subuids(OWN, other)).get("subuid overlap")

    assert told is (State.FAIL if overlaps else None)


def test_the_mend_of_an_overlap_gives_ids_that_nobody_has() -> None:
    mend = line(with_subuids(OWN, Range("alice", 200_000, 1_000_000)), "subuid overlap").mend

    assert mend == "usermod --del-subuids 100000-624287 --add-subuids 1200000-1724287 dc-compute"


def test_ids_that_belong_to_a_real_user_fail() -> None:
    found = line(replace(FACTS, taken={"alice": 150_000}), "subuid overlap")

    assert found.state is State.FAIL
    assert "alice" in found.seen


def test_ids_that_are_kept_elsewhere_are_not_judged() -> None:
    facts = replace(FACTS, ranges={"subuid": Unknown("sss keeps them"), "subgid": (OWN,)})

    assert states(facts)["subuid"] is State.NOTE


@pytest.mark.parametrize(
    ("helper", "state", "mend"),
    [
        (None, State.FAIL, "apt-get install uidmap"),
        (MapHelper("/usr/bin/newuidmap", False, False), State.FAIL, "chmod u+s /usr/bin/newuidmap"),
        (MapHelper("/usr/bin/newuidmap", True, True), State.FAIL, "remount,suid"),
        (Unknown("no"), State.NOTE, ""),
    ],
)
def test_who_hands_out_the_ids_must_be_able_to(
    helper: MapHelper | Unknown | None, state: State, mend: str
) -> None:
    found = line(replace(FACTS, helpers={**HELPERS, "newuidmap": helper}), "newuidmap")

    assert found.state is state
    assert mend in (found.mend or "")


@pytest.mark.parametrize(
    ("sysctls", "has_profile", "name", "state"),
    [
        ({"user.max_user_namespaces": "0"}, False, "user.max_user_namespaces", State.FAIL),
        ({"user.max_user_namespaces": "8"}, False, "user.max_user_namespaces", State.WARN),
        ({}, False, "user.max_user_namespaces", State.NOTE),
        ({"kernel.unprivileged_userns_clone": "0"}, False, "kernel.unprivileged_userns_clone", State.FAIL),
        ({"kernel.unprivileged_userns_clone": "1"}, False, "kernel.unprivileged_userns_clone", None),
        ({"kernel.apparmor_restrict_unprivileged_userns": "1"}, False,
         "kernel.apparmor_restrict_unprivileged_userns", State.FAIL),
        ({"kernel.apparmor_restrict_unprivileged_userns": "1"}, True,
         "kernel.apparmor_restrict_unprivileged_userns", State.OK),
    ],
)  # fmt: skip
def test_users_may_make_namespaces(
    sysctls: dict[str, str], has_profile: bool, name: str, state: State | None
) -> None:
    facts = replace(FACTS, sysctls=sysctls, has_apparmor_profile=has_profile)

    assert states(facts).get(name) is state


def test_an_agent_that_belongs_to_root_fails() -> None:
    assert states(replace(FACTS, uid=0)) == {"agent's user": State.FAIL}


def test_lines_that_are_none_are_passed_over() -> None:
    text = "# a comment\nalice:100000:65536\n\nbroken\nbob:x:1\ncarol:1:0\n990:165536:65536 # by number\n"

    assert parse_ranges(text) == (Range("alice", 100_000, 65_536), Range("990", 165_536, 65_536))
