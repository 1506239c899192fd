"""Plaintext appears when all of it is good, and what was opened of a file that is not is gone."""

import os
from pathlib import Path

import pytest

from agent.domain.ids import digest_of
from agent.errors import AgentError, BadSeal, DigestMismatch, StorageUnavailable
from agent.pipeline.opening import open_into
from agent.ports.storage import ByteSink, DatasetInfo
from agent.trust.roster import Roster
from agent.trust.seal import Opener, parse_header
from agent.trust.shares import unwrap_data_key
from tests.builders import NOW, entries
from tests.devkit.sealed import Sealed, seal
from tests.fakes.storage import MemoryStorage

PLAIN = os.urandom(3 << 20)
PIECE = 1 << 20


class Sending(MemoryStorage):
    """Sends this as the file, and then fails as it is told to."""

    def __init__(self, file: bytes, folder: Path, failure: AgentError | None = None) -> None:
        self._file, self._folder, self._failure = file, folder, failure
        self.seen: set[str] = set()

    def open_dataset(self, info: DatasetInfo, sink: ByteSink) -> None:
        for start in range(0, len(self._file), PIECE):
            sink.write(memoryview(self._file)[start : start + PIECE])
            self.seen |= {path.name for path in self._folder.iterdir()}
        if self._failure is not None:
            raise self._failure


def open_at(folder: Path, sealed: Sealed, storage: Sending) -> Path:
    header = parse_header(sealed.header, Roster(entries()), at=NOW)
    opener = Opener(header, unwrap_data_key(header, sealed.shares))
    info = DatasetInfo(sealed.ref.id, "1", len(sealed.file), digest_of(sealed.file), sealed.header, ())
    open_into(folder / "data", folder / "partial", opener, info, storage, lambda _: None)
    return folder / "data"


def test_the_plaintext_appears_at_its_end_and_not_before(tmp_path: Path) -> None:
    sealed = seal("a1", PLAIN)
    storage = Sending(sealed.file, tmp_path)

    data = open_at(tmp_path, sealed, storage)

    assert data.read_bytes() == PLAIN
    assert storage.seen == {"partial"}
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize("failure", [DigestMismatch("other bytes"), StorageUnavailable("it broke")])
def test_nothing_stays_of_a_file_that_did_not_come_whole_and_right(
    tmp_path: Path, failure: AgentError
) -> None:
    sealed = seal("a1", PLAIN)

    with pytest.raises(type(failure)):
        open_at(tmp_path, sealed, Sending(sealed.file, tmp_path, failure))

    assert list(tmp_path.iterdir()) == []


def test_nothing_stays_of_a_file_that_ends_too_early(tmp_path: Path) -> None:
    sealed = seal("a1", PLAIN)

    with pytest.raises(BadSeal):
        open_at(tmp_path, sealed, Sending(sealed.file[: 2 * PIECE], tmp_path))

    assert list(tmp_path.iterdir()) == []


def test_another_workers_partial_file_is_not_touched(tmp_path: Path) -> None:
    sealed = seal("a1", PLAIN)
    (tmp_path / "partial").write_bytes(b"theirs")

    with pytest.raises(FileExistsError):
        open_at(tmp_path, sealed, Sending(sealed.file, tmp_path))

    assert (tmp_path / "partial").read_bytes() == b"theirs"
