"""What the doctor found, kept: whole or not at all, for its owner alone, and nothing where it cannot be read."""

from pathlib import Path

import pytest

from agent.pipeline.checkup import CHECKUP_FILE, Checkup, Finding, keep_checkup, last_checkup
from tests.builders import NOW

FOUND = Checkup(
    NOW,
    "1.0",
    (Finding("memory", "swap", "warn", "2 GiB", "swapoff -a"), Finding("trust", "key", "ok", "fits")),
)


def test_what_was_kept_last_is_read_again(tmp_path: Path) -> None:
    keep_checkup(Checkup(NOW, "0.9", ()), tmp_path)
    keep_checkup(FOUND, tmp_path)

    assert last_checkup(tmp_path) == FOUND
    assert [file.name for file in tmp_path.iterdir()] == [CHECKUP_FILE]
    assert (tmp_path / CHECKUP_FILE).stat().st_mode & 0o777 == 0o600


def test_nothing_was_kept_where_the_file_is_missing_or_is_no_such_thing(tmp_path: Path) -> None:
    assert last_checkup(tmp_path) is None

    (tmp_path / CHECKUP_FILE).write_bytes(b"\x00" * 100)

    assert last_checkup(tmp_path) is None


def test_a_folder_that_is_not_there_raises_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        keep_checkup(FOUND, tmp_path / "gone")

    assert not list(tmp_path.iterdir())
