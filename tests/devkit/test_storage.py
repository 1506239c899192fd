"""The devkit's storage beyond the contract suite: who may do what, repeats, ranges, what a crash leaves."""

import asyncio
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Message

from agent.devkit.publishing import Holders, holders_of, publish_blob, publish_dataset
from agent.devkit.shelf import Shelf
from agent.devkit.storage import SLICE_BYTES, send_in_slices
from agent.domain.ids import Digest, KeyId, digest_of
from agent.domain.orders import DatasetRef
from agent.errors import DatasetMissing, PeerRefused, PeerUnavailable, StorageUnavailable
from agent.ports.https import HttpsClient, Peer
from agent.ports.storage import BlobInfo, BlobKind, parse_dataset
from agent.trust.roster import Role, Roster, RosterEntry
from tests.builders import NOW, dataset, digest_named, entry_for, key_of
from tests.devkit.sealed import seal
from tests.devkit.town import Town, open_town

A, B = "storage-a", "storage-b"


@pytest.fixture
def town(tmp_path: Path) -> Iterator[Town]:
    """Storages a and b; there is no third one."""
    with open_town(tmp_path, A, B) as town:
        town.roster = Roster(tuple(entry for entry in town.roster.entries if entry.name != "storage-c"))
        yield town


def entry(town: Town, name: str) -> RosterEntry:
    found = town.roster.find(key_of(name).keyid)
    assert found is not None
    return found


def send(
    town: Town, who: str, method: str, target: str, body: bytes | Path | None = None, to: str = A
) -> Any:
    """The JSON of a 2xx answer that was signed. Raises: PeerRefused."""
    content = town.client(who).send(entry(town, to), method, target, body, is_answer_signed=True)
    return json.loads(content)


def refusal_of(town: Town, who: str, method: str, target: str, body: bytes | Path | None = None) -> str:
    with pytest.raises(PeerRefused) as refusal:
        send(town, who, method, target, body)
    return refusal.value.refusal


def file_with(town: Town, content: bytes) -> Path:
    file = town.folder / f"file-{digest_of(content)[7:20]}"
    file.write_bytes(content)
    return file


def put_blob(
    town: Town, who: str, content: bytes, digest: Digest | None = None, query: str = "?kind=model"
) -> Any:
    target = f"/v1/blobs/{digest or digest_of(content)}{query}"
    return send(town, who, "PUT", target, file_with(town, content))


# ------------------------------------------------------------------ who may do what


@pytest.mark.parametrize("who", ["agent-a", "owner", "o1"])
def test_a_blob_is_taken_from_this_nodes_agent_owners_and_orchestrators(town: Town, who: str) -> None:
    told = put_blob(town, who, b"a model")

    assert told == {
        "digest": digest_of(b"a model"),
        "size": 7,
        "kind": "model",
        "locations": [key_of(A).keyid],
    }


@pytest.mark.parametrize("who", ["agent-b", "storage-b"])
def test_a_blob_is_not_taken_from_another_nodes_agent_or_storage(town: Town, who: str) -> None:
    target = f"/v1/blobs/{digest_of(b'a model')}?kind=model"

    assert refusal_of(town, who, "PUT", target, file_with(town, b"a model")) == "wrong-role"
    assert town.shelves[A].blob(digest_of(b"a model")) is None


@pytest.mark.parametrize("who", ["agent-a", "o1", "storage-b"])
def test_a_dataset_is_taken_from_owners_only(town: Town, who: str) -> None:
    sealed = seal("a1")
    target = f"/v1/datasets/{sealed.ref.id}/content?version=1"

    assert refusal_of(town, who, "PUT", target, file_with(town, sealed.file)) == "wrong-role"


def test_a_dataset_is_taken_from_the_owner_who_signed_its_header_only(town: Town) -> None:
    town.roster = Roster((*town.roster.entries, entry_for("other owner", Role.OWNER)))
    sealed = seal("a1", owner="other owner")
    target = f"/v1/datasets/{sealed.ref.id}/content?version=1"

    assert refusal_of(town, "owner", "PUT", target, file_with(town, sealed.file)) == "not-yours"
    assert send(town, "other owner", "PUT", target, file_with(town, sealed.file))["version"] == "1"


def test_a_dataset_is_taken_under_the_name_in_its_header_only(town: Town) -> None:
    sealed, file = seal("a1"), file_with(town, seal("a1").file)

    for target in (
        f"/v1/datasets/{dataset('a2').id}/content?version=1",
        f"/v1/datasets/{sealed.ref.id}/content?version=2",
        f"/v1/datasets/{sealed.ref.id}/content",
    ):
        assert refusal_of(town, "owner", "PUT", target, file) == "bad-report"


def test_what_is_no_sealed_dataset_is_not_taken(town: Town) -> None:
    target = f"/v1/datasets/{dataset('a1').id}/content?version=1"

    assert refusal_of(town, "owner", "PUT", target, file_with(town, b"age,outcome\n")) == "bad-seal"


def test_a_place_that_the_roster_contradicts_is_not_believed(town: Town) -> None:
    """Else whoever owns one dataset could name a friend's agent as holding it and have receipts forged."""
    info = publish_dataset(
        town.client("owner"), file_with(town, seal("b1").file), dataset("b1"), [key_of(B).keyid]
    )
    told = json.loads(send_document(town, info.id))
    told["locations"] = [{"agent": key_of("agent-c").keyid, "storage": key_of(B).keyid}]

    target = f"/v1/datasets/{info.id}/places"
    assert refusal_of(town, "owner", "PUT", target, json.dumps(told).encode()) == "bad-report"
    assert refusal_of(town, "agent-c", "PUT", target, json.dumps(told).encode()) == "wrong-role"


def test_the_news_of_a_dataset_is_taken_from_the_owner_who_signed_its_header_only(town: Town) -> None:
    town.roster = Roster((*town.roster.entries, entry_for("other owner", Role.OWNER)))
    sealed = seal("b1")
    publish_dataset(town.client("owner"), file_with(town, sealed.file), sealed.ref, [key_of(B).keyid])
    told, target = send_document(town, sealed.ref.id), f"/v1/datasets/{sealed.ref.id}/places"
    altered = json.loads(told) | {"header": json.loads(seal("b2").header)}

    assert refusal_of(town, "other owner", "PUT", target, told) == "not-yours"
    assert refusal_of(town, "owner", "PUT", target, json.dumps(altered).encode()) == "bad-report"


def send_document(town: Town, dataset_id: str) -> bytes:
    return town.client("owner").send(
        entry(town, B), "GET", f"/v1/datasets/{dataset_id}", is_answer_signed=True
    )


# ------------------------------------------------------------------ repeats and conflicts


def test_the_same_blob_again_is_the_same_blob(town: Town) -> None:
    first = put_blob(town, "agent-a", b"a model")

    assert put_blob(town, "agent-a", b"a model") == first
    assert put_blob(town, "agent-a", b"a model", query="?kind=prediction") == first


def test_a_blob_under_another_name_is_refused(town: Town) -> None:
    target = f"/v1/blobs/{digest_named('other')}?kind=model"

    assert refusal_of(town, "agent-a", "PUT", target, file_with(town, b"a model")) == "digest-mismatch"
    assert town.shelves[A].file(digest_of(b"a model")) is None


def test_the_size_of_a_blob_that_lies_here_is_its_files(tmp_path: Path) -> None:
    shelf, digest, me = Shelf(tmp_path), digest_of(b"a model"), key_of(A).keyid
    (shelf.incoming / "upload").write_bytes(b"a model")
    shelf.note_blob(BlobInfo(digest, 1 << 50, BlobKind.MODEL, (me,)))

    shelf.keep(shelf.incoming / "upload", digest)

    info = shelf.blob(digest)
    shelf.database.close()
    assert info is not None
    assert info.size == len(b"a model")


def test_a_blob_of_no_kind_is_refused(town: Town) -> None:
    target = f"/v1/blobs/{digest_of(b'a model')}?kind=secret"

    assert refusal_of(town, "agent-a", "PUT", target, file_with(town, b"a model")) == "bad-query"


def test_another_file_as_the_same_version_of_a_dataset_is_refused(town: Town) -> None:
    one, other = seal("a1", b"one"), seal("a1", b"other")
    target = f"/v1/datasets/{one.ref.id}/content?version=1"
    send(town, "owner", "PUT", target, file_with(town, one.file))

    assert refusal_of(town, "owner", "PUT", target, file_with(town, other.file)) == "record-conflict"
    assert send(town, "owner", "PUT", target, file_with(town, one.file))["digest"] == digest_of(one.file)


def test_without_a_version_the_newest_is_told(town: Town) -> None:
    for version in ("1", "2"):
        sealed = seal("a1", version=version)
        publish_dataset(town.client("owner"), file_with(town, sealed.file), sealed.ref, [key_of(A).keyid])

    assert send(town, "agent-b", "GET", f"/v1/datasets/{dataset('a1').id}")["version"] == "2"


@pytest.mark.parametrize(
    "target",
    [
        "/v1/blobs/sha256:00",
        "/v1/blobs/md5:0123",
        f"/v1/blobs/{digest_named('nothing')}",
        f"/v1/blobs/{digest_named('nothing')}/content",
        "/v1/datasets/x",
        "/v1/datasets/..%2f..%2fetc/content",
        "/v1/nowhere",
    ],
)
def test_what_is_not_there_is_a_404(town: Town, target: str) -> None:
    with pytest.raises(PeerRefused) as refusal:
        town.client("agent-a").send(entry(town, A), "GET", target, is_answer_signed=False)

    assert refusal.value.refusal == "not-found"


@pytest.mark.parametrize(
    ("fields", "status", "expected"),
    [
        ({}, 200, b"0123456789"),
        ({"Range": "bytes=4-"}, 206, b"456789"),
        ({"Range": "bytes=4-", "If-Range": f'"{digest_of(b"0123456789")}"'}, 206, b"456789"),
        ({"Range": "bytes=4-", "If-Range": '"another file"'}, 200, b"0123456789"),
        ({"Range": "bytes=10-"}, 416, None),
    ],
)
def test_content_is_told_from_where_it_is_asked_for(
    town: Town, fields: dict[str, str], status: int, expected: bytes | None
) -> None:
    put_blob(town, "agent-a", b"0123456789")
    https = HttpsClient(town.identity("agent-b"), town.timeouts)
    peer = Peer.of(entry(town, A), town.url(A), StorageUnavailable)

    with https.stream(peer, f"/v1/blobs/{digest_of(b'0123456789')}/content", fields) as answer:
        content, room = b"", memoryview(bytearray(4))
        while count := answer.read_into(room):
            content += room[:count]
    https.close()

    assert answer.status == status
    if expected is not None:
        assert content == expected
        assert answer.headers["etag"] == f'"{digest_of(b"0123456789")}"'


@pytest.mark.parametrize("length", [0, SLICE_BYTES, SLICE_BYTES + 1, 3 * SLICE_BYTES])
@pytest.mark.parametrize("is_more", [True, False])
def test_a_body_goes_on_in_slices_that_are_the_same_body(length: int, is_more: bool) -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    body = bytes(number % 251 for number in range(length))
    asyncio.run(send_in_slices(send, {"type": "http.response.start", "status": 200, "headers": []}))
    asyncio.run(send_in_slices(send, {"type": "http.response.body", "body": body, "more_body": is_more}))

    assert sent[0] == {"type": "http.response.start", "status": 200, "headers": []}
    assert b"".join(one["body"] for one in sent[1:]) == body
    assert [one["more_body"] for one in sent[1:]] == [True] * (len(sent) - 2) + [is_more]
    assert all(len(one["body"]) <= SLICE_BYTES for one in sent[1:])


# ------------------------------------------------------------------ who holds what


def test_every_storage_is_told_where_a_dataset_lies(town: Town) -> None:
    sealed = seal("b1")
    publish_dataset(town.client("owner"), file_with(town, sealed.file), sealed.ref, [key_of(B).keyid])

    told = parse_dataset(
        town.client("o1").send(entry(town, A), "GET", f"/v1/datasets/{sealed.ref.id}", is_answer_signed=True)
    )

    assert [place.agent for place in told.locations] == [key_of("agent-b").keyid]
    assert told.header == sealed.header
    assert holders_of(town.client("o1"), sealed.ref) == {key_of("agent-b").keyid}


def test_every_storage_is_told_where_an_image_lies(town: Town) -> None:
    info = publish_blob(town.client("o1"), file_with(town, b"an image"), BlobKind.IMAGE, [key_of(B).keyid])

    told = send(town, "agent-a", "GET", f"/v1/blobs/{info.digest}")

    assert told == {"digest": info.digest, "size": 8, "kind": "image", "locations": [key_of(B).keyid]}


def test_who_holds_a_dataset_is_asked_of_the_next_storage_when_one_is_away(town: Town) -> None:
    sealed = seal("b1")
    publish_dataset(town.client("owner"), file_with(town, sealed.file), sealed.ref, [key_of(B).keyid])
    town.stop(A)

    assert holders_of(town.client("o1"), sealed.ref) == {key_of("agent-b").keyid}

    town.stop(B)
    with pytest.raises(StorageUnavailable):
        holders_of(town.client("o1"), sealed.ref)


def test_a_dataset_that_nobody_published_is_missing(town: Town) -> None:
    with pytest.raises(DatasetMissing):
        holders_of(town.client("o1"), dataset("a1"))


def test_an_upload_to_a_storage_that_is_away_is_told(town: Town) -> None:
    town.stop(B)

    with pytest.raises(PeerUnavailable):
        publish_blob(town.client("o1"), file_with(town, b"an image"), BlobKind.IMAGE, [key_of(B).keyid])


# ------------------------------------------------------------------ what it remembers


def test_a_storage_remembers_everything_when_it_starts_again(tmp_path: Path) -> None:
    with open_town(tmp_path / "one", A) as town:
        put_blob(town, "agent-a", b"a model")
        folder = tmp_path / "one" / A
    (folder / "incoming" / ".upload-0123").write_bytes(b"half of something")

    shelf = Shelf(folder)

    info, file = shelf.blob(digest_of(b"a model")), shelf.file(digest_of(b"a model"))
    assert info is not None
    assert file is not None
    assert file.read_bytes() == b"a model"
    assert list((folder / "incoming").iterdir()) == []
    shelf.database.close()


def test_nothing_it_remembers_is_open_to_others(town: Town) -> None:
    put_blob(town, "agent-a", b"a model")
    folder = town.folder / A

    open_to_others = [path for path in (folder, *folder.rglob("*")) if path.stat().st_mode & 0o077]

    assert open_to_others == []


def test_a_nonce_is_remembered_until_its_time_is_over(tmp_path: Path) -> None:
    shelf, keyid = Shelf(tmp_path), key_of("agent-a").keyid
    minute = timedelta(minutes=1)

    assert shelf.database.remember_nonce(keyid, "n", NOW + minute, NOW)
    assert not shelf.database.remember_nonce(keyid, "n", NOW + minute, NOW)
    assert shelf.database.remember_nonce(key_of("agent-b").keyid, "n", NOW + minute, NOW)
    shelf.database.close()

    again = Shelf(tmp_path)
    assert not again.database.remember_nonce(keyid, "n", NOW + minute, NOW)
    assert again.database.remember_nonce(keyid, "n", NOW + 3 * minute, NOW + 2 * minute)
    again.database.close()


def test_who_holds_a_dataset_is_asked_once_for_all_receipts_of_an_order_and_failures_are_not_kept() -> None:
    asked: list[DatasetRef] = []

    def ask(ref: DatasetRef) -> frozenset[KeyId]:
        asked.append(ref)
        if len(asked) == 1:
            raise StorageUnavailable("away")
        return frozenset({key_of("agent-b").keyid})

    holders = Holders(ask)

    with pytest.raises(StorageUnavailable):
        holders(dataset("a1"))
    assert [holders(dataset("a1")), holders(dataset("a1")), holders(dataset("b1"))] == [
        {key_of("agent-b").keyid}
    ] * 3
    assert asked == [dataset("a1"), dataset("a1"), dataset("b1")]


def test_who_asks_at_once_has_one_question_and_a_failure_is_told_to_its_own_asker() -> None:
    is_asked, may_answer = threading.Semaphore(0), threading.Semaphore(0)
    asked: list[DatasetRef] = []

    def ask(ref: DatasetRef) -> frozenset[KeyId]:
        asked.append(ref)
        is_asked.release()
        assert may_answer.acquire(timeout=20)
        if len(asked) == 1:
            raise StorageUnavailable("away")
        return frozenset({key_of("agent-b").keyid})

    holders = Holders(ask)
    with ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(holders, dataset("a1")) for _ in range(3)]
        for _ in range(2):
            assert is_asked.acquire(timeout=20)
            may_answer.release()
        ends = [call.exception() or call.result() for call in calls]

    assert [str(end) for end in ends if isinstance(end, Exception)] == ["away"]
    assert [end for end in ends if not isinstance(end, Exception)] == [
        frozenset({key_of("agent-b").keyid})
    ] * 2
    assert len(asked) == 2
