"""What an attempt of the self-test is to the doctor."""

from agent.doctor.lines import State, Unknown
from agent.doctor.selftest import Tried, judge, not_tried

HELD = Tried("socket", "EAFNOSUPPORT", "EAFNOSUPPORT", True)
ABSENT = Tried("memory-bomb", "named absent: memory_bytes; rlimit stands in: exit:12 or oom", "exit:12", True)
BROKEN = Tried("mount", "seccomp", "done", False)


def test_a_cage_that_holds_is_one_line_that_names_what_is_absent() -> None:
    (line,) = judge("runc", [HELD, ABSENT])

    assert (line.state, line.name) == (State.OK, "runc")
    assert line.seen == (
        "2 attempts of hostile code, none succeeded, 1 of them against ceilings that are absent here"
    )


def test_each_attempt_that_succeeded_is_a_failing_line_with_a_command() -> None:
    (line,) = judge("runc", [HELD, BROKEN])

    assert (line.state, line.name) == (State.FAIL, "runc mount")
    assert "seccomp had to be seen, seen was done" in line.seen
    assert line.mend is not None


def test_an_engine_that_does_not_answer_is_not_judged() -> None:
    assert not_tried("podman", Unknown("no socket")).state is State.NOTE
