"""What every storage port promises, run on the fake and on the HTTPS adapter against real storages over TLS."""

import io
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Protocol

import pytest

from agent.devkit.publishing import publish_dataset
from agent.domain.ids import Digest, KeyId, digest_of, hex_of
from agent.errors import BlobMissing, DatasetMissing, DigestMismatch, StorageUnavailable, TooLarge
from agent.ports.storage import BlobInfo, BlobKind, DatasetInfo, Storage
from agent.ports.storage_https import HttpsStorage
from agent.trust.roster import Roster
from tests.builders import consortium, dataset, digest_named, key_of
from tests.devkit.sealed import Sealed, seal
from tests.devkit.town import Town, open_town
from tests.fakes.storage import MemoryStorage, MemoryStorages

A, B = "storage-a", "storage-b"
AGENT_B = key_of("agent-b").keyid
LARGE = bytes(range(256)) * 4096  # 1 MiB
LIMIT = 1 << 30


class Stage(Protocol):
    """Storages a and b, and the port of agent a."""

    storage: Storage

    def keep_dataset(self, sealed: Sealed, holder: str) -> DatasetInfo: ...
    def keep_blob(self, storage: str, content: bytes, kind: BlobKind = BlobKind.MODEL) -> Digest: ...
    def tell(self, storage: str, info: BlobInfo) -> None: ...
    def alter(self, storage: str, digest: Digest, content: bytes) -> None: ...
    def go_down(self, storage: str) -> None: ...


class FakeStage:
    def __init__(self) -> None:
        world = consortium()
        self._all = MemoryStorages(world.roster)
        self.storage: Storage = MemoryStorage(self._all, world.agent("a").keyid)

    def keep_dataset(self, sealed: Sealed, holder: str) -> DatasetInfo:
        agent = key_of(holder.replace("storage", "agent")).keyid
        return self._all.keep_dataset(agent, sealed.ref, sealed.header, sealed.file)

    def keep_blob(self, storage: str, content: bytes, kind: BlobKind = BlobKind.MODEL) -> Digest:
        return self._all.keep_blob(key_of(storage).keyid, kind, content)

    def tell(self, storage: str, info: BlobInfo) -> None:
        self._all.tell(key_of(storage).keyid, info)

    def alter(self, storage: str, digest: Digest, content: bytes) -> None:
        self._all.files[key_of(storage).keyid, digest] = content

    def go_down(self, storage: str) -> None:
        self._all.down.add(key_of(storage).keyid)


class RealStage:
    def __init__(self, town: Town) -> None:
        self._town = town
        self.storage: Storage = HttpsStorage(
            town.identity("agent-a"), town.world.agent("a").keyid, town.timeouts
        )

    def keep_dataset(self, sealed: Sealed, holder: str) -> DatasetInfo:
        file = self._town.folder / f"{sealed.ref.id}.sealed"
        file.write_bytes(sealed.file)
        return publish_dataset(self._town.client("owner"), file, sealed.ref, [key_of(holder).keyid])

    def keep_blob(self, storage: str, content: bytes, kind: BlobKind = BlobKind.MODEL) -> Digest:
        digest = digest_of(content)
        file = self._town.folder / f"{hex_of(digest)}.blob"
        file.write_bytes(content)
        agent = storage.replace("storage", "agent")
        with closing(
            HttpsStorage(self._town.identity(agent), key_of(agent).keyid, self._town.timeouts)
        ) as port:
            port.put_blob(digest, kind, file)
        return digest

    def tell(self, storage: str, info: BlobInfo) -> None:
        self._town.shelves[storage].note_blob(info)

    def alter(self, storage: str, digest: Digest, content: bytes) -> None:
        file = self._town.shelves[storage].file(digest)
        assert file is not None
        file.write_bytes(content)

    def go_down(self, storage: str) -> None:
        self._town.stop(storage)


@contextmanager
def real_stage(folder: Path) -> Iterator[Stage]:
    with open_town(folder, A, B) as town:
        # What is published is announced to every storage of the roster: let there be no third one.
        town.roster = Roster(tuple(entry for entry in town.roster.entries if entry.name != "storage-c"))
        stage = RealStage(town)
        yield stage
        assert isinstance(stage.storage, HttpsStorage)
        stage.storage.close()


@pytest.fixture(params=["fake", "https"])
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stage]:
    if request.param == "fake":
        yield FakeStage()
    else:
        with real_stage(tmp_path) as real:
            yield real


# ------------------------------------------------------------------ datasets


def test_a_dataset_is_told_with_its_owners_header_and_its_places(stage: Stage) -> None:
    sealed = seal("b1")
    stage.keep_dataset(sealed, B)

    info = stage.storage.dataset(sealed.ref)

    assert (info.id, info.version) == (sealed.ref.id, sealed.ref.version)
    assert (info.size, info.digest) == (len(sealed.file), digest_of(sealed.file))
    assert info.header == sealed.header
    assert [(place.agent, place.storage) for place in info.locations] == [(AGENT_B, key_of(B).keyid)]


def test_a_dataset_on_two_storages_has_two_places(stage: Stage) -> None:
    sealed = seal("a1")
    stage.keep_dataset(sealed, A)
    stage.keep_dataset(sealed, B)

    info = stage.storage.dataset(sealed.ref)

    assert {place.storage for place in info.locations} == {key_of(A).keyid, key_of(B).keyid}


def test_a_dataset_that_nobody_knows_is_missing(stage: Stage) -> None:
    with pytest.raises(DatasetMissing):
        stage.storage.dataset(dataset("a1"))


def test_another_version_of_a_dataset_is_another_dataset(stage: Stage) -> None:
    stage.keep_dataset(seal("a1", version="1"), A)
    newer = seal("a1", b"new", version="2")
    stage.keep_dataset(newer, A)

    assert stage.storage.dataset(dataset("a1", "2")).digest == digest_of(newer.file)
    with pytest.raises(DatasetMissing):
        stage.storage.dataset(dataset("a1", "3"))


def test_a_dataset_is_streamed_whole(stage: Stage) -> None:
    sealed, sink = seal("a1", LARGE), io.BytesIO()
    info = stage.keep_dataset(sealed, A)

    stage.storage.open_dataset(info, sink)

    assert sink.getvalue() == sealed.file


def test_a_dataset_that_was_altered_at_storage_is_refused_at_its_end(stage: Stage) -> None:
    sealed = seal("a1")
    info = stage.keep_dataset(sealed, A)
    stage.alter(A, info.digest, sealed.file[:-1] + b"x")

    with pytest.raises(DigestMismatch):
        stage.storage.open_dataset(info, io.BytesIO())


def test_a_dataset_that_lies_elsewhere_cannot_be_opened_here(stage: Stage) -> None:
    info = stage.keep_dataset(seal("b1"), B)

    with pytest.raises(BlobMissing):
        stage.storage.open_dataset(info, io.BytesIO())


# ------------------------------------------------------------------ blobs


def test_a_blob_is_told_with_its_kind_size_and_place(stage: Stage) -> None:
    digest = stage.keep_blob(A, b"a model")

    assert stage.storage.blob(digest) == BlobInfo(digest, 7, BlobKind.MODEL, (key_of(A).keyid,))


def test_a_blob_of_another_node_is_found_near_it(stage: Stage) -> None:
    digest = stage.keep_blob(B, b"a model")

    assert stage.storage.blob(digest, near=AGENT_B).locations == (key_of(B).keyid,)
    with pytest.raises(BlobMissing):
        stage.storage.blob(digest)


def test_a_blob_is_fetched_from_this_nodes_storage(stage: Stage, tmp_path: Path) -> None:
    digest = stage.keep_blob(A, LARGE)

    size = stage.storage.fetch_blob(digest, tmp_path / "blob", limit_bytes=LIMIT)

    assert size == len(LARGE)
    assert (tmp_path / "blob").read_bytes() == LARGE


def test_a_blob_is_fetched_from_the_node_that_made_it(stage: Stage, tmp_path: Path) -> None:
    digest = stage.keep_blob(B, LARGE)

    stage.storage.fetch_blob(digest, tmp_path / "blob", limit_bytes=LIMIT, near=AGENT_B)

    assert (tmp_path / "blob").read_bytes() == LARGE


def test_a_blob_is_fetched_from_whoever_is_named_as_holding_it(stage: Stage, tmp_path: Path) -> None:
    digest = stage.keep_blob(B, b"an image", BlobKind.IMAGE)
    stage.tell(A, BlobInfo(digest, 8, BlobKind.IMAGE, (key_of(B).keyid,)))

    stage.storage.fetch_blob(digest, tmp_path / "blob", limit_bytes=LIMIT)

    assert (tmp_path / "blob").read_bytes() == b"an image"


def test_a_blob_is_fetched_elsewhere_while_this_nodes_storage_is_down(stage: Stage, tmp_path: Path) -> None:
    digest = stage.keep_blob(B, b"a model")
    stage.go_down(A)

    stage.storage.fetch_blob(digest, tmp_path / "blob", limit_bytes=LIMIT, near=AGENT_B)

    assert (tmp_path / "blob").read_bytes() == b"a model"


def test_who_just_told_of_a_blob_sends_it(stage: Stage, tmp_path: Path) -> None:
    digest = stage.keep_blob(B, LARGE)
    known = stage.storage.blob(digest, near=AGENT_B)
    stage.go_down(A)

    stage.storage.fetch_blob(digest, tmp_path / "blob", limit_bytes=LIMIT, near=AGENT_B, known=known)

    assert (tmp_path / "blob").read_bytes() == LARGE


def test_who_just_told_of_a_blob_and_sends_another_is_passed_over(stage: Stage, tmp_path: Path) -> None:
    digest = stage.keep_blob(B, b"a model")
    known = stage.storage.blob(digest, near=AGENT_B)
    stage.keep_blob(A, b"a model")
    stage.alter(B, digest, b"b model")

    stage.storage.fetch_blob(digest, tmp_path / "blob", limit_bytes=LIMIT, near=AGENT_B, known=known)

    assert (tmp_path / "blob").read_bytes() == b"a model"


def test_an_altered_copy_is_passed_over_for_a_good_one(stage: Stage, tmp_path: Path) -> None:
    digest = stage.keep_blob(A, b"a model")
    stage.keep_blob(B, b"a model")
    stage.alter(A, digest, b"b model")

    stage.storage.fetch_blob(digest, tmp_path / "blob", limit_bytes=LIMIT, near=AGENT_B)

    assert (tmp_path / "blob").read_bytes() == b"a model"


def test_a_blob_that_nobody_names_is_missing(stage: Stage, tmp_path: Path) -> None:
    with pytest.raises(BlobMissing):
        stage.storage.fetch_blob(digest_named("nothing"), tmp_path / "blob", limit_bytes=LIMIT, near=AGENT_B)

    assert list(tmp_path.glob("*blob*")) == []


def test_a_blob_that_may_lie_where_nobody_answers_is_not_missing_but_unavailable(
    stage: Stage, tmp_path: Path
) -> None:
    stage.go_down(B)

    with pytest.raises(StorageUnavailable):
        stage.storage.fetch_blob(digest_named("a model"), tmp_path / "blob", limit_bytes=LIMIT, near=AGENT_B)


def test_an_altered_blob_leaves_nothing_behind(stage: Stage, tmp_path: Path) -> None:
    digest = stage.keep_blob(A, b"a model")
    stage.alter(A, digest, b"b model")
    folder = tmp_path / "inputs"
    folder.mkdir()

    with pytest.raises(DigestMismatch):
        stage.storage.fetch_blob(digest, folder / "blob", limit_bytes=LIMIT)

    assert list(folder.iterdir()) == []


def test_a_blob_over_the_limit_is_not_fetched(stage: Stage, tmp_path: Path) -> None:
    digest = stage.keep_blob(A, LARGE)

    with pytest.raises(TooLarge):
        stage.storage.fetch_blob(digest, tmp_path / "blob", limit_bytes=len(LARGE) - 1)


@pytest.mark.parametrize("content", [b"a model", LARGE + b"and more"], ids=["small", "large"])
def test_a_blob_is_put_and_may_be_put_again(stage: Stage, tmp_path: Path, content: bytes) -> None:
    source = tmp_path / "model.tar"
    source.write_bytes(content)

    stage.storage.put_blob(digest_of(content), BlobKind.MODEL, source)
    stage.storage.put_blob(digest_of(content), BlobKind.MODEL, source)

    assert stage.storage.blob(digest_of(content)) == BlobInfo(
        digest_of(content), len(content), BlobKind.MODEL, (key_of(A).keyid,)
    )


def test_a_file_that_is_not_the_blob_is_not_taken(stage: Stage, tmp_path: Path) -> None:
    source = tmp_path / "model.tar"
    source.write_bytes(b"something else")

    with pytest.raises(DigestMismatch):
        stage.storage.put_blob(digest_named("a model"), BlobKind.MODEL, source)
    with pytest.raises(BlobMissing):
        stage.storage.blob(digest_named("a model"))


# ------------------------------------------------------------------ storage that is away


def test_a_storage_that_is_there_is_there(stage: Stage) -> None:
    stage.storage.check()


def test_a_storage_that_is_away_is_unavailable_for_everything(stage: Stage, tmp_path: Path) -> None:
    sealed = seal("a1")
    info = stage.keep_dataset(sealed, A)
    digest = stage.keep_blob(A, b"a model")
    source = tmp_path / "other"
    source.write_bytes(b"other")
    stage.go_down(A)

    with pytest.raises(StorageUnavailable):
        stage.storage.check()
    with pytest.raises(StorageUnavailable):
        stage.storage.dataset(sealed.ref)
    with pytest.raises(StorageUnavailable):
        stage.storage.open_dataset(info, io.BytesIO())
    with pytest.raises(StorageUnavailable):
        stage.storage.blob(digest)
    with pytest.raises(StorageUnavailable):
        stage.storage.fetch_blob(digest, tmp_path / "blob", limit_bytes=LIMIT)
    with pytest.raises(StorageUnavailable):
        stage.storage.put_blob(digest_of(b"other"), BlobKind.MODEL, source)


def test_a_storage_key_that_the_roster_does_not_know_is_nowhere(stage: Stage) -> None:
    with pytest.raises(StorageUnavailable):
        stage.storage.blob(digest_named("a model"), near=KeyId("0" * 64))


# ------------------------------------------------------------------ what was said a moment ago


def test_what_was_said_a_moment_ago_is_not_asked_again_by_who_takes_it(tmp_path: Path) -> None:
    with real_stage(tmp_path) as stage:
        sealed = seal("a1")
        info = stage.keep_dataset(sealed, A)
        stage.storage.dataset(sealed.ref)
        stage.go_down(A)

        assert stage.storage.dataset(sealed.ref, within_s=3600.0) == info
        with pytest.raises(StorageUnavailable):
            stage.storage.dataset(sealed.ref)
