"""The table of the self-test: what is in it, and that what it must see is what holds."""

import re
from collections import Counter

import pytest

from agent.domain.ceilings import Ceilings
from agent.ports.runtime import Enforcement
from agent.selftest import suite
from agent.selftest.guest.__main__ import APART, HERE
from agent.selftest.guest.calls import CALLS
from agent.selftest.probe import Probe, Scene
from agent.selftest.probes import PROBES
from agent.selftest.scenes import SCENES
from tests.host.removals import CANNOT, CANNOT_UNDER, REMOVALS

EVERYTHING = Enforcement(version="0", means=dict.fromkeys(Ceilings.__struct_fields__, "cgroup"), absent=())
NO_MEMORY = Enforcement(version="0", means={"memory_bytes": "rlimit"}, absent=("cpu_millis", "memory_bytes"))

by_name = {probe.name: probe for probe in PROBES}


def test_names_are_unique_and_there_are_many_in_each_part() -> None:
    names = Counter(probe.name for probe in PROBES)

    assert names.most_common(1)[0][1] == 1
    assert len(PROBES) >= 75
    assert sum(probe.is_quick for probe in PROBES) >= 60
    assert set(SCENES) == set(Scene) == {probe.scene for probe in PROBES}


def test_the_guest_knows_every_act_and_every_call() -> None:
    acts = {probe.act[0] for probe in PROBES if probe.act and probe.scene not in {Scene.IMAGES, Scene.MODELS}}
    calls = {probe.act[1] for probe in PROBES if probe.act[:1] in {("call",), ("call-here",)}}

    assert acts <= HERE.keys() | APART.keys()
    assert set(CALLS) == calls
    assert not HERE.keys() & APART.keys()


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.name)
def test_an_attempt_that_succeeds_does_not_hold(probe: Probe) -> None:
    succeeds = {"done", "connected", "sent", "taken: 3 files", "exit:0", "", "reached", "1 others: init"}
    succeeds -= {probe.expected}

    assert not [seen for seen in succeeds if probe.holds(seen)]
    assert not probe.holds("the run ended with exit:1 before that")


@pytest.mark.parametrize("name", [probe.name for probe in PROBES if probe.pattern is None])
def test_what_is_expected_holds(name: str) -> None:
    assert by_name[name].holds(by_name[name].expected)


# ------------------------------------------------------------------ the matrix


def test_every_probe_goes_red_by_a_removal_or_says_why_not() -> None:
    red = {name for removal in REMOVALS.values() for name in removal.reds}

    assert red | set(CANNOT) == set(by_name)
    assert not red & set(CANNOT)
    assert {probe for _, probe in CANNOT_UNDER} <= red
    assert all(len(sentence) > 20 for sentence in (*CANNOT.values(), *CANNOT_UNDER.values()))


# ------------------------------------------------------------------ what a host lacks is named


def test_a_ceiling_that_is_absent_is_named_and_its_stand_in_must_do_its_part() -> None:
    memory = suite._on_this_host(by_name["memory-bomb"], NO_MEMORY)
    cpu = suite._on_this_host(by_name["cpu"], NO_MEMORY)

    assert memory.expected.startswith("named absent: memory_bytes; rlimit stands in")
    assert memory.holds("exit:12")
    assert not memory.holds("exit:0")
    assert cpu.expected == "named absent: cpu_millis"
    assert cpu.holds("1.98 CPUs")


def test_where_everything_is_enforced_nothing_is_excused() -> None:
    memory = suite._on_this_host(by_name["memory-bomb"], EVERYTHING)
    cpu = suite._on_this_host(by_name["cpu"], EVERYTHING)

    assert (memory.expected, memory.holds("exit:12"), memory.holds("oom")) == ("oom", False, True)
    assert not cpu.holds("1.98 CPUs")


def test_an_older_kernel_may_take_a_code_for_a_signal_and_a_new_one_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code = by_name["exit-159"]

    monkeypatch.setattr(suite, "_kernel", lambda: (6, 14))
    old = suite._on_this_host(code, EVERYTHING)
    monkeypatch.setattr(suite, "_kernel", lambda: (6, 15))
    new = suite._on_this_host(code, EVERYTHING)

    assert "6.15" in old.expected
    assert (old.holds("seccomp"), new.holds("seccomp")) == (True, False)
    assert new.holds("exit:159")


@pytest.mark.parametrize(
    ("release", "numbers"), [("6.18.44-fc", (6, 18)), ("5.10.0-9-amd64", (5, 10)), ("x", (0, 0))]
)
def test_a_kernel_s_version_is_read_from_its_release(release: str, numbers: tuple[int, ...]) -> None:
    assert suite._kernel(release) == numbers


def test_patterns_are_sound() -> None:
    assert all(re.compile(probe.pattern) for probe in PROBES if probe.pattern)
