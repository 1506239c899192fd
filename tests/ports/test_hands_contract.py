"""One at a time has a job in hand: the contract, on the fake and on locks that real processes hold."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from agent.domain.ids import JobId
from agent.errors import LedgerUnavailable
from agent.ports.hands import Hands
from agent.ports.hands_flock import FlockHands
from tests.fakes.hands import MemoryHands

ROOT = Path(__file__).resolve().parents[2]
JOB, OTHER = JobId("00000000-0000-4000-8000-000000000001.0"), JobId("00000000-0000-4000-8000-000000000001.1")

HOLDS = """
import sys
from pathlib import Path
from agent.ports.hands_flock import FlockHands
with FlockHands(Path(sys.argv[1])).hold(sys.argv[2]) as is_mine:
    print(is_mine, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(params=["memory", "flock"])
def hands(request: pytest.FixtureRequest, tmp_path: Path) -> Hands:
    return MemoryHands() if request.param == "memory" else FlockHands(tmp_path / "hands")


@contextmanager
def another_process(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has JOB in hand until its input ends, or it does."""
    command = [sys.executable, "-c", HOLDS, str(folder), JOB]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_job_is_in_one_hand_at_a_time(hands: Hands) -> None:
    with hands.hold(JOB) as first, hands.hold(JOB) as second, hands.hold(OTHER) as other:
        pass
    with hands.hold(JOB) as later:
        pass

    assert (first, second, other, later) == (True, False, True, True)


def test_whoever_could_not_have_it_takes_nothing_away(hands: Hands) -> None:
    with hands.hold(JOB):
        with hands.hold(JOB):
            pass
        with hands.hold(JOB) as third:
            pass

    assert third is False


def test_an_error_lets_go(hands: Hands) -> None:
    def fail() -> None:
        with hands.hold(JOB):
            raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        fail()
    with hands.hold(JOB) as is_mine:
        assert is_mine


def test_nothing_lies_about_afterwards(tmp_path: Path) -> None:
    with FlockHands(tmp_path).hold(JOB):
        assert len(list(tmp_path.iterdir())) == 1

    assert list(tmp_path.iterdir()) == []


def test_a_process_that_is_killed_lets_go(tmp_path: Path) -> None:
    hands = FlockHands(tmp_path)
    with another_process(tmp_path) as process:
        with hands.hold(JOB) as while_it_lives:
            pass
        process.kill()
        process.wait()
        with hands.hold(JOB) as after:
            pass

    assert (while_it_lives, after) == (False, True)
    assert list(tmp_path.iterdir()) == []


def test_two_that_open_the_same_file_never_both_have_it(tmp_path: Path) -> None:
    hands = FlockHands(tmp_path)
    with another_process(tmp_path) as process:
        assert process.stdin is not None
        with closing(process.stdin):
            pass
        process.wait()
        with hands.hold(JOB) as is_mine, hands.hold(JOB) as is_anothers:
            assert (is_mine, is_anothers) == (True, False)


def test_a_folder_that_takes_no_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(LedgerUnavailable, match="no lock"), FlockHands(tmp_path / "file").hold(JOB):
        pass
