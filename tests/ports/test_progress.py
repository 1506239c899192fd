"""What tasks are doing: told by who has one in hand, read by others, gone with the task, and marked when nobody tells."""

import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from agent.api.doing import STALE, doing, view_progress
from agent.devkit.waiting import wait_for
from agent.domain.ids import JobId
from agent.domain.jobs import Job
from agent.ports import progress_files
from agent.ports.progress import NoProgress, Progress
from agent.ports.progress_files import FileProgress
from tests.fakes.ledger import MemoryLedger
from tests.ports.ledger_stage import queued, running

SOON_S = 20.0


@pytest.fixture
def job() -> Job:
    return running(MemoryLedger())


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FileProgress:
    monkeypatch.setattr(progress_files, "EVERY_S", 0.01)
    return FileProgress(tmp_path / "progress", lambda: datetime.now(UTC))


def other_process(tmp_path: Path) -> FileProgress:
    return FileProgress(tmp_path / "progress", lambda: datetime.now(UTC))


def told(board: FileProgress, job: Job) -> Progress | None:
    return next(iter(board.read([job.id])), None)


def test_what_a_task_does_is_read_by_another_process_and_gone_with_it(
    board: FileProgress, tmp_path: Path, job: Job
) -> None:
    reader = other_process(tmp_path)
    with board.telling(job) as meter:
        meter.begin("open", "dataset", total=100)
        meter.moved(30)
        meter.moved(10)
        wait_for(lambda: (seen := told(reader, job)) is not None and seen.done == 40, "it", timeout_s=SOON_S)
        seen = told(reader, job)
        assert seen is not None
        assert (seen.phase, seen.step, seen.done, seen.total) == ("open", "dataset", 40, 100)
        assert [each.job for each in reader.read()] == [job.id]

    assert reader.read() == reader.read([job.id]) == ()
    assert list((tmp_path / "progress").glob(f"{job.id}*")) == []


def test_a_file_that_grows_is_measured_and_so_is_what_is_written_beside_it(
    board: FileProgress, tmp_path: Path, job: Job
) -> None:
    target = tmp_path / "archive"
    (tmp_path / ".abc.partial").write_bytes(b"x" * 7)
    with board.telling(job) as meter:
        meter.begin("fetch", "model", total=10)
        meter.grows(target)
        wait_for(lambda: (seen := told(board, job)) is not None and seen.done == 7, "half", timeout_s=SOON_S)
        target.write_bytes(b"x" * 10)
        wait_for(lambda: (seen := told(board, job)) is not None and seen.done == 10, "all", timeout_s=SOON_S)


def test_another_step_forgets_what_the_one_before_had_done(board: FileProgress, job: Job) -> None:
    with board.telling(job) as meter:
        meter.begin("open", "dataset", total=100)
        meter.moved(30)
        began = datetime.now(UTC) - timedelta(minutes=5)
        meter.begin("run", "train", limit_s=600, since=began)
        wait_for(
            lambda: (seen := told(board, job)) is not None and seen.phase == "run", "it", timeout_s=SOON_S
        )
        seen = told(board, job)

    assert seen is not None
    assert (seen.done, seen.total, seen.limit_s, seen.since) == (None, None, 600, began)


def test_a_million_pieces_cost_no_more_writes_than_seconds(
    board: FileProgress, tmp_path: Path, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_files, "EVERY_S", 1.0)
    with board.telling(job) as meter:
        meter.begin("open", "dataset", total=1 << 30)
        wait_for(lambda: told(board, job) is not None, "the first word", timeout_s=SOON_S)
        path = tmp_path / "progress" / f"{job.id}.json"
        inodes, began = {path.stat().st_ino}, time.monotonic()
        for number in range(100_000):
            meter.moved(1)
            if number % 100 == 0:
                inodes.add(path.stat().st_ino)

        assert len(inodes) <= 2 + (time.monotonic() - began)


def test_what_a_dead_worker_told_is_shown_as_old(job: Job) -> None:
    now = datetime.now(UTC)
    last = Progress(
        job=job.id, attempt=1, phase="run", step="train", since=now, done=None, total=None, limit_s=9, at=now
    )

    assert not view_progress(last, now + STALE).is_stale
    assert view_progress(last, now + STALE + timedelta(seconds=1)).is_stale
    assert view_progress(last, now - timedelta(hours=1)).is_stale  # the clock was set back: nobody knows


def test_only_the_attempt_that_runs_is_doing_something(board: FileProgress, job: Job) -> None:
    other = queued(MemoryLedger(), "other")
    later = msgspec.structs.replace(job, attempt=2)
    with board.telling(job), board.telling(other):
        wait_for(lambda: len(board.read()) == 2, "both", timeout_s=SOON_S)

        assert list(doing([job, other], board, datetime.now(UTC))) == [job.id]
        assert doing([later], board, datetime.now(UTC)) == {}


def test_a_folder_that_cannot_be_written_holds_no_task_up(tmp_path: Path, job: Job) -> None:
    (tmp_path / "progress").write_text("a file")
    board = FileProgress(tmp_path / "progress", lambda: datetime.now(UTC))

    with board.telling(job) as meter:
        meter.begin("ask")

    assert board.read() == ()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"x" * 100_000, b'{"job": 1}'])
def test_a_file_that_says_nothing_is_no_progress(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "progress").mkdir()
    (tmp_path / "progress" / "x.json").write_bytes(content)

    assert other_process(tmp_path).read() == other_process(tmp_path).read([JobId("x")]) == ()


def test_what_was_left_long_ago_is_removed(board: FileProgress, tmp_path: Path, job: Job) -> None:
    old = tmp_path / "progress" / "old.json"
    old.parent.mkdir()
    old.write_bytes(b"{}")
    os.utime(old, (0, 0))

    with board.telling(job):
        assert not old.exists()


def test_where_nobody_is_told_nothing_is_read(job: Job) -> None:
    board = NoProgress()
    with board.telling(job) as meter:
        meter.begin("ask")
        meter.moved(1)

        assert board.read() == ()
