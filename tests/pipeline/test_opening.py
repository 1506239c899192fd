"""Plaintext appears when all of it is good, and what was opened of a file that is not is gone."""

import os
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import cast

import pytest

from agent.domain.ids import Digest, KeyId, digest_of
from agent.errors import AgentError, BadSeal, DigestMismatch, StorageUnavailable
from agent.pipeline.opening import LateOpener, open_into
from agent.ports.https import HttpsClient, Peer, Stream
from agent.ports.storage import ByteSink, DatasetInfo
from agent.ports.storage_https_download import RELAYED_BYTES, Download, Wanted
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


class Wire:
    """Stands for the connection: sends these bytes as the answer to every request."""

    def __init__(self, file: bytes) -> None:
        self._file = memoryview(file)

    @contextmanager
    def stream(self, _peer: object, _target: str, _headers: object) -> Iterator[Stream]:
        left = self._file

        def read_into(view: memoryview) -> int:
            nonlocal left
            count = min(len(view), len(left), 1 << 16)
            view[:count], left = left[:count], left[count:]
            return count

        yield Stream(200, {}, read_into)


class Downloading(MemoryStorage):
    """Sends this as the file by the real download, which is told that it is another one where `digest` says so."""

    def __init__(self, file: bytes, digest: Digest) -> None:
        self._file, self._digest = file, digest

    def open_dataset(self, info: DatasetInfo, sink: ByteSink) -> None:
        peer = Peer(KeyId("0" * 64), "storage", "https://storage.test", None, StorageUnavailable)
        wanted = Wanted("/", self._digest, info.size, "the dataset")
        Download(cast(HttpsClient, Wire(self._file)), peer, wanted, sink, lambda _: None).run()


@pytest.mark.parametrize(
    "what", ["no key", "another key", "another file", "half of it", "a late key", "all is well"]
)
def test_a_key_that_comes_late_wrong_or_never_opens_nothing_that_it_should_not(
    tmp_path: Path, what: str
) -> None:
    sealed = seal("a1", os.urandom(RELAYED_BYTES + 12345))
    header = parse_header(sealed.header, Roster(entries()), at=NOW)
    data_key = unwrap_data_key(header, sealed.shares)
    key: Future[bytes] = Future()
    info = DatasetInfo(sealed.ref.id, "1", len(sealed.file), digest_of(sealed.file), sealed.header, ())
    file = sealed.file[: len(sealed.file) // 2] if what == "half of it" else sealed.file
    storage = Downloading(file, digest_of(b"other" if what == "another file" else sealed.file))
    before = set(threading.enumerate())
    comes = (
        threading.Timer(0.05, key.cancel)
        if what == "no key"
        else threading.Timer(0.05, key.set_result, [bytes(32) if what == "another key" else data_key])
    )
    comes.start()

    refused = {
        "no key": CancelledError,
        "another key": BadSeal,
        "another file": DigestMismatch,
        "half of it": StorageUnavailable,
    }
    expected = refused.get(what)
    with nullcontext() if expected is None else pytest.raises(expected):
        open_into(
            tmp_path / "data",
            tmp_path / "partial",
            LateOpener(header, key.result),
            info,
            storage,
            lambda _: None,
        )

    comes.join()
    assert set(threading.enumerate()) == before
    assert [path.name for path in tmp_path.iterdir()] == ([] if expected else ["data"])
