"""A file that is written anew is whole at each moment, and nothing else is left in its folder."""

import os
import stat
import threading
from pathlib import Path

import pytest

from agent.whole_files import write_whole


def test_a_new_file_has_the_content_and_the_mode(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_whole(tmp_path / "told", b"one")
        write_whole(tmp_path / "secret", b"two", mode=0o600)
    finally:
        os.umask(before)

    assert (tmp_path / "told").read_bytes() == b"one"
    assert stat.S_IMODE((tmp_path / "told").stat().st_mode) == 0o644
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600


def test_a_reader_sees_the_old_or_the_new_never_a_part(tmp_path: Path) -> None:
    path, seen, is_over = tmp_path / "told", set(), threading.Event()
    contents = [letter.encode() * 100_000 for letter in "abc"]
    write_whole(path, contents[0])

    def read() -> None:
        while not is_over.is_set():
            seen.add(path.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(300):
        write_whole(path, contents[number % 3])
    is_over.set()
    reader.join()

    assert seen <= set(contents)
    assert [file.name for file in tmp_path.iterdir()] == ["told"]


def test_what_a_killed_writer_left_stops_nobody(tmp_path: Path) -> None:
    (tmp_path / f"told.{os.getpid()}.part").write_bytes(b"hal")

    write_whole(tmp_path / "told", b"whole")

    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("told", b"whole")]


def test_a_link_in_the_place_of_the_part_is_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"another's")
    (tmp_path / f"told.{os.getpid()}.part").symlink_to(elsewhere)

    write_whole(tmp_path / "told", b"whole")

    assert elsewhere.read_bytes() == b"another's"
    assert not (tmp_path / "told").is_symlink()


def test_what_cannot_be_put_there_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "told").mkdir()

    with pytest.raises(IsADirectoryError):
        write_whole(tmp_path / "told", b"whole")

    assert [file.name for file in tmp_path.iterdir()] == ["told"]
