"""A reload that nobody foresaw: the service goes on with what it had, says so, and hears the next signal."""

from datetime import UTC, datetime
from pathlib import Path

import msgspec

from agent.config import Effective, LogSection, load_settings
from agent.domain.ids import digest_of
from agent.pipeline.services import Board, Service
from agent.wiring_reload import Reloader
from tests.api.house import open_house


def test_what_a_library_raises_ends_no_reload_but_this_one(tmp_path: Path) -> None:
    digest = digest_of(b"")
    service = Service(
        service="api",
        pid=1,
        version="1",
        started=datetime.now(UTC),
        settings={},
        roster=digest,
        policy=digest,
    )
    board = Board(tmp_path, service)

    def read() -> Effective:
        raise msgspec.DecodeError("a file that nobody foresaw")

    def set_log(_told: LogSection) -> None:
        raise AssertionError("nothing is taken over")

    reloader = Reloader(open_house(tmp_path).host, board, load_settings(tmp_path, {}), read, set_log)

    done = reloader.reload()

    assert (done.is_taken, done.detail) == (False, "DecodeError: a file that nobody foresaw")
    assert (board.seen.refused, board.seen.last) == (1, done)
