"""Big files pass through both ends of the wire in constant memory."""

import os
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agent.domain.ids import digest_from_hex
from agent.ports.storage import BlobKind, DatasetInfo
from agent.ports.storage_https import HttpsStorage
from agent.trust.http_signatures import ContentDigest
from tests.builders import dataset, key_of
from tests.devkit.town import Town, open_town

MIB = 1 << 20
SIZE = 256 * MIB
CEILING = 24 * MIB  # of both ends together


@contextmanager
def peak_under(limit_bytes: int) -> Iterator[None]:
    """Fails when Python's own memory grew beyond the limit inside the block."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < limit_bytes, f"{peak / MIB:.1f} MiB"


class Counting:
    """A sink that keeps nothing but the digest."""

    def __init__(self) -> None:
        self.seen = ContentDigest()

    def write(self, data: memoryview) -> None:
        self.seen.update(data)


def test_a_large_file_goes_up_and_down_in_constant_memory(tmp_path: Path) -> None:
    source, target = tmp_path / "model.tar", tmp_path / "fetched.tar"
    piece, whole = os.urandom(MIB), ContentDigest()
    with source.open("wb") as file:
        for _ in range(SIZE // MIB):
            file.write(piece)
            whole.update(piece)
    digest = digest_from_hex(whole.hex_digest)

    with open_town(tmp_path, "storage-a") as town, peak_under(CEILING):
        storage = HttpsStorage(town.identity("agent-a"), key_of("agent-a").keyid, town.timeouts)
        storage.put_blob(digest, BlobKind.MODEL, source)
        size = storage.fetch_blob(digest, target, limit_bytes=SIZE)
        storage.close()

    assert size == target.stat().st_size == SIZE


def test_a_large_dataset_is_streamed_in_constant_memory(tmp_path: Path) -> None:
    with open_town(tmp_path, "storage-a") as town:
        info = large_dataset(town)
        storage, sink = (
            HttpsStorage(town.identity("agent-a"), key_of("agent-a").keyid, town.timeouts),
            Counting(),
        )
        with peak_under(CEILING):
            storage.open_dataset(info, sink)
        storage.close()

    assert sink.seen.length == SIZE


def large_dataset(town: Town) -> DatasetInfo:
    """A file on storage a's shelf, mostly hole, under the name of a dataset."""
    file, whole = town.folder / "large", ContentDigest()
    with file.open("wb") as content:
        content.truncate(SIZE)
    for _ in range(SIZE // MIB):
        whole.update(bytes(MIB))
    info = DatasetInfo(dataset("a1").id, "1", SIZE, digest_from_hex(whole.hex_digest), b"{}", ())
    town.shelves["storage-a"].keep(file, info.digest)
    town.shelves["storage-a"].note_dataset(info, town.clock())
    return info
