"""Ceilings that the kernel itself holds: cgroup v2 whose controllers the user was given.

`tests/host/vm` boots a machine that has this and runs these there; on another host they are skipped unless it has it too.
"""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from agent.domain.ceilings import Ceilings
from agent.errors import CageNotApplied
from agent.ports import runtime_podman_body, runtime_runc_config
from agent.ports.runtime import RunOutcome
from tests.host.podman import CEILINGS, MIB, Desk, open_desk, open_engine, open_runc

pytestmark = pytest.mark.host

BY_CGROUP = {"memory_bytes", "cpu_millis", "pids"}
SMALL = replace(CEILINGS, memory_bytes=96 * MIB)
CPU_TRIES = 5
BOMB = "400"  # MiB: far over SMALL, and it fits into the memory of the machine that runs these


def podman_desks() -> Iterator[Desk]:
    for engine in open_engine():
        yield from open_desk(engine.runtime())


def runc_desks() -> Iterator[Desk]:
    with open_runc() as runtime:
        yield from open_desk(runtime)


# A runtime by name: what opens a desk on it. A further runtime is a further line.
RUNTIMES: dict[str, Callable[[], Iterator[Desk]]] = {"podman": podman_desks, "runc": runc_desks}


@pytest.fixture(scope="module", params=RUNTIMES)
def desk(request: pytest.FixtureRequest) -> Iterator[Desk]:
    if not Path("/sys/fs/cgroup/cgroup.controllers").exists():
        pytest.skip("a host with cgroup v2 (tests/host/vm boots one)")
    for desk in RUNTIMES[request.param]():
        lacking = BY_CGROUP & set(desk.runtime.enforcement().absent)
        if lacking:
            pytest.skip("cgroup v2 controllers for this user (docs/operators.md, cgroups)")
        yield desk


def outcome_of(desk: Desk, *args: str, ceilings: Ceilings = CEILINGS) -> RunOutcome:
    with desk.runtime.run(desk.spec(*args, ceilings=ceilings)) as run:
        return run.wait()


def said(outcome: RunOutcome) -> Any:
    assert outcome.cause is None, outcome.log.decode()
    return json.loads(outcome.log)


def asking_otherwise(change: Callable[[dict[str, Any]], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each engine is asked for other limits: `change` is given them, which both forms of the cage call alike."""
    body, bundle = runtime_podman_body.create_body, runtime_runc_config.oci_config

    def other_body(*args: Any) -> dict[str, Any]:
        document = body(*args)
        change(document["resource_limits"])
        return document

    def other_bundle(*args: Any, **words: Any) -> dict[str, Any]:
        document = bundle(*args, **words)
        change(document["linux"]["resources"])
        return document

    monkeypatch.setattr(runtime_podman_body, "create_body", other_body)
    monkeypatch.setattr(runtime_runc_config, "oci_config", other_bundle)


def without_limit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine is asked for everything but this limit."""
    asking_otherwise(lambda limits: limits.pop(name), monkeypatch)


# ------------------------------------------------------------------ what the host can hold


def test_nothing_is_absent_and_the_cgroup_holds_memory_cpu_and_pids(desk: Desk) -> None:
    told = desk.runtime.enforcement()

    assert told.absent == ()
    assert {name for name, means in told.means.items() if means == "cgroup"} == BY_CGROUP


def test_a_run_is_told_the_same(desk: Desk) -> None:
    cage = outcome_of(desk, "exit", "0").cage

    assert cage.absent == ()
    assert {name: cage.ceilings[name] for name in BY_CGROUP} == {
        "memory_bytes": f"{CEILINGS.memory_bytes} by cgroup",
        "cpu_millis": "1000 by cgroup",
        "pids": "64 by cgroup",
    }


def test_a_run_that_accepts_no_gap_runs(desk: Desk) -> None:
    spec = replace(desk.spec("exit", "0"), accept_missing=frozenset())

    with desk.runtime.run(spec) as run:
        assert run.wait().cause is None


# ------------------------------------------------------------------ memory


def test_a_memory_bomb_ends_as_oom(desk: Desk) -> None:
    outcome = outcome_of(desk, "allocate", BOMB, ceilings=SMALL)

    assert (outcome.cause, outcome.log) == ("oom", b"")


def test_a_bomb_in_a_child_process_ends_the_job_as_oom(desk: Desk) -> None:
    outcome = outcome_of(desk, "allocate-in-child", BOMB, ceilings=SMALL)

    assert outcome.cause == "oom"
    assert outcome.log == b""  # the parent, which would tell of its child, was ended with it


def test_a_job_that_fails_because_its_child_was_killed_for_memory_ends_as_oom(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As where the engine sets no memory.oom.group.
    without_limit("unified", monkeypatch)

    outcome = outcome_of(desk, "allocate-in-child", BOMB, ceilings=SMALL)

    assert outcome.cause == "oom"  # whether or not its parent comes to tell of it


def test_one_bomb_after_the_other_is_told(desk: Desk) -> None:
    # The cgroup vanishes right after the last process: no end may come too quickly to be told.
    causes = [outcome_of(desk, "allocate", BOMB, ceilings=SMALL).cause for _ in range(4)]

    assert causes == ["oom"] * 4


def test_what_fits_under_the_ceiling_runs(desk: Desk) -> None:
    outcome = outcome_of(desk, "allocate", "48", ceilings=SMALL)

    assert outcome.cause is None
    assert 0 < (outcome.max_memory_bytes or 0) <= SMALL.memory_bytes


def test_the_most_memory_is_told_and_is_never_over_the_ceiling(desk: Desk) -> None:
    outcome = outcome_of(desk, "allocate", BOMB, ceilings=SMALL)

    assert SMALL.memory_bytes * 0.9 <= (outcome.max_memory_bytes or 0) <= SMALL.memory_bytes


def test_memory_that_was_had_for_a_while_is_told(desk: Desk) -> None:
    outcome = outcome_of(desk, "allocate", "48", "+", "sleep", "1", ceilings=SMALL)

    assert outcome.cause is None
    assert (outcome.cpu_s or 0) > 0


def test_a_host_s_swap_is_no_way_out(desk: Desk) -> None:
    swaps = Path("/proc/swaps").read_text().splitlines()[1:]
    if not swaps:
        pytest.skip("a host that swaps (without, there is nothing to hold)")

    before = swap_used_kib()
    outcome = outcome_of(desk, "allocate", BOMB, ceilings=SMALL)

    assert outcome.cause == "oom"
    assert swap_used_kib() - before < 32 << 10


def swap_used_kib() -> int:
    rows = (line.split() for line in Path("/proc/swaps").read_text().splitlines()[1:])
    return sum(int(row[3]) for row in rows)


@pytest.mark.parametrize("code", [1, 12, 130, 137, 139])
def test_an_exit_code_of_the_job_s_own_is_never_oom(desk: Desk, code: int) -> None:
    # Over 128 an engine may be unable to tell it from a death by signal.
    causes = {f"exit:{code}", f"signal:{code - 128}"}

    assert outcome_of(desk, "exit", str(code)).cause in causes


def test_a_kill_by_the_agent_is_not_oom(desk: Desk) -> None:
    with desk.runtime.run(desk.spec("sleep", "60")) as run:
        run.kill()

        assert run.wait().cause == "signal:9"


# ------------------------------------------------------------------ CPU, processes


def test_a_cpu_ceiling_throttles(desk: Desk) -> None:
    # Two busy processes: half a CPU for both; without a ceiling one or two CPUs, as the next test sees. A machine that is
    # itself kept waiting (an emulated one) charges a process for that time too: so one of a few tries must show it.
    half = replace(CEILINGS, cpu_millis=500)
    ratios = []
    for _ in range(CPU_TRIES):
        told = said(outcome_of(desk, "burn", "3", ceilings=half))
        ratios.append(told["cpu_s"] / told["wall_s"])
        if ratios[-1] < 0.75:
            return

    pytest.fail(f"CPUs used under a ceiling of a half: {ratios}")


def test_without_that_ceiling_the_same_job_gets_more(desk: Desk) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("two CPUs")

    told = said(outcome_of(desk, "burn", "3", ceilings=replace(CEILINGS, cpu_millis=2000)))

    assert told["cpu_s"] / told["wall_s"] > 0.75


def test_a_fork_bomb_stops_at_the_cgroup_s_ceiling(desk: Desk) -> None:
    # The rlimit beside it is thousands wider: it was crun's, and as narrow as this it counted Podman's own threads along.
    outcome = outcome_of(desk, "fork-bomb", ceilings=replace(CEILINGS, pids=15))

    assert 0 < said(outcome)["children"] < 15


# ------------------------------------------------------------------ a limit that was dropped on the way


@pytest.mark.parametrize(
    ("limit", "file"), [("memory", "memory.max"), ("cpu", "cpu.max"), ("pids", "pids.max")]
)
def test_a_limit_that_the_engine_did_not_apply_is_a_refusal(
    desk: Desk, limit: str, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_limit(limit, monkeypatch)

    with pytest.raises(CageNotApplied, match=file), desk.runtime.run(desk.spec("exit", "0")):
        pass
    assert desk.runtime.leftovers() == ()


def test_swap_that_the_engine_left_open_is_a_refusal(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    swap = {"limit": CEILINGS.memory_bytes, "swap": 2 * CEILINGS.memory_bytes}
    asking_otherwise(lambda limits: limits.update(memory=swap), monkeypatch)

    with pytest.raises(CageNotApplied, match=r"memory\.swap\.max"), desk.runtime.run(desk.spec("exit", "0")):
        pass
