"""`reload` by root, where a service that was taken over tells of processes that are not its own."""

import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from agent.cli.reload import ask_all
from agent.domain.ids import digest_of
from agent.errors import AgentUnreachable
from agent.pipeline.services import Service, running

NOBODY = 65534


@contextmanager
def told(folder: Path, pid: int, name: str | None = None) -> Iterator[None]:
    """A file that tells of this process as a service that lives."""
    digest = digest_of(b"")
    service = Service(
        service="api",
        pid=pid,
        version="1",
        started=datetime.now(UTC),
        settings={},
        roster=digest,
        policy=digest,
    )
    path = folder / (name or service.file)
    path.write_bytes(msgspec.json.encode(service))
    with path.with_suffix(".lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def process(user: int | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A process that SIGHUP ends."""
    with subprocess.Popen(["/bin/sleep", "60"], user=user) as child:
        try:
            yield child
        finally:
            child.kill()


def test_a_process_of_another_user_is_not_signalled(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may signal another user's process")
    with process(NOBODY) as other, told(tmp_path, other.pid):
        with pytest.raises(AgentUnreachable):
            ask_all(tmp_path)
        time.sleep(0.1)

        assert other.poll() is None


def test_the_own_process_is_and_one_that_has_ended_is_passed_over(tmp_path: Path) -> None:
    with process() as gone:
        gone.kill()
    with process() as own, told(tmp_path, gone.pid), told(tmp_path, own.pid):
        assert set(ask_all(tmp_path)) == {own.pid}
        assert own.wait(10) == -signal.SIGHUP


def test_a_file_tells_of_the_process_that_it_is_named_after_and_of_no_number_that_means_many(
    tmp_path: Path,
) -> None:
    with process() as own:
        with told(tmp_path, own.pid, "api-1.json"):
            assert running(tmp_path) == ()
        (tmp_path / "api-1.json").unlink()
        with told(tmp_path, 0), pytest.raises(AgentUnreachable):
            ask_all(tmp_path)
        assert own.poll() is None
