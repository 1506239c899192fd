"""How a run ended that nobody watched, by what is left to read; and what is kept of a run."""

import os
import subprocess
import time
from pathlib import Path

import pytest
from msgspec.structs import replace

from agent.domain.ids import digest_of
from agent.ports import process_times
from agent.ports.cage import applied
from agent.ports.run_ended import Ending, cause_of
from agent.ports.run_kept import Kept, Lying, plan_of, read_kept, write_kept
from tests.ports.test_podman_body import CEILINGS, ON_V1, ON_V2, SPEC

STRANGER = digest_of(b"a seccomp profile")
KEPT = Kept.of(SPEC, applied("podman", SPEC, ON_V2, STRANGER), Lying(7, 1))
SHORT, LONG = 1.0, CEILINGS.wall_s + 1.0


def cause(
    code: int | None, *, wall_s: float = SHORT, over: str | None = None, was_out_of_memory: bool = False
) -> str | None:
    return cause_of(KEPT, Ending(code=code, wall_s=wall_s, over=over, was_out_of_memory=was_out_of_memory))


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (0, None),
        (7, "exit:7"),
        (139, "signal:11"),
        (159, "seccomp"),
        (137, "signal:9"),
        (None, "unknown"),
        (-1, "unknown"),
    ],
)
def test_a_code_is_told_as_of_a_run_that_was_watched(code: int | None, told: str | None) -> None:
    assert cause(code) == told


@pytest.mark.parametrize(
    ("code", "told"), [(137, "timeout"), (-1, "timeout"), (0, None), (7, "exit:7"), (None, "unknown")]
)
def test_who_was_killed_at_its_ceiling_timed_out_and_nobody_else(code: int | None, told: str | None) -> None:
    assert cause(code, wall_s=LONG) == told


def test_out_of_memory_explains_a_failure_and_no_success() -> None:
    assert cause(137, was_out_of_memory=True) == "oom"
    assert cause(1, was_out_of_memory=True) == "oom"
    assert cause(0, was_out_of_memory=True) is None


def test_full_folders_explain_a_kill_and_nothing_else() -> None:
    assert cause(137, over="disk") == "disk"
    assert cause(137, over="disk", was_out_of_memory=True) == "oom"
    assert cause(0, over="disk") is None
    assert cause(7, over="disk") == "exit:7"


def test_what_is_kept_is_read_as_it_was_written() -> None:
    assert read_kept(write_kept(KEPT)) == KEPT


@pytest.mark.parametrize("text", ["", "null", "{}", "[1]", '{"plan": 1}'])
def test_what_nobody_understands_is_nothing_kept(text: str) -> None:
    assert read_kept(text) is None


def test_a_plan_is_what_runs_on_which_folders_and_no_ceiling() -> None:
    assert plan_of(replace(SPEC, ceilings=replace(CEILINGS, wall_s=1))) == plan_of(SPEC)
    assert plan_of(replace(SPEC, args=("other",))) != plan_of(SPEC)
    assert plan_of(replace(SPEC, image=STRANGER)) != plan_of(SPEC)
    assert plan_of(replace(SPEC, mounts=())) != plan_of(SPEC)


def test_whether_memory_is_held_is_read_from_the_cage_that_was_applied() -> None:
    on_v1 = replace(KEPT, cage=applied("podman", SPEC, ON_V1, STRANGER))

    assert (KEPT.holds_memory, on_v1.holds_memory) == (True, False)


# ------------------------------------------------------------------ processes and their begin


def test_a_process_is_told_from_a_later_one_of_the_same_id() -> None:
    with subprocess.Popen(["/bin/sleep", "60"]) as process:
        began = process_times.began(process.pid)
        pidfd = process_times.open_process(process.pid, began)

        assert pidfd is not None
        assert process_times.open_process(process.pid, began - 1) is None
        os.close(pidfd)
        process.kill()

    assert process_times.open_process(process.pid, began) is None
    assert process_times.open_process(0, 0) is None


def test_a_process_ages_by_the_clock_that_no_one_sets() -> None:
    own = process_times.seconds_since(process_times.began(os.getpid()))
    uptime_s = float(Path("/proc/uptime").read_text().split()[0])

    assert 0 < own < uptime_s + 1
    assert process_times.seconds_since(int((time.clock_gettime(time.CLOCK_BOOTTIME) + 60) * 100)) == 0
