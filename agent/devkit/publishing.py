"""Bringing datasets and images to storage, and telling every other storage where they lie; asking who holds a dataset.

A storage knows what lies on it. What lies elsewhere it knows because whoever uploaded it told every storage of the roster.
"""

import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from agent.devkit.client import Client
from agent.domain.ids import KeyId, digest_from_hex
from agent.domain.orders import DatasetRef
from agent.errors import DatasetMissing, PeerRefused, PeerUnavailable, StorageUnavailable
from agent.ports.storage import BlobInfo, BlobKind, DatasetInfo, parse_blob, parse_dataset
from agent.trust.http_signatures import ContentDigest
from agent.trust.roster import Role, RosterEntry

PIECE_BYTES = 1 << 20
JUST_NOW_S = 5.0
MOST_TOLD = 1000  # datasets
ASKED_AT_ONCE = 64  # of them, at most


def publish_dataset(
    client: Client, sealed: Path, dataset: DatasetRef, holders: Iterable[KeyId]
) -> DatasetInfo:
    """Upload a sealed file to each of these storages and announce it to all; what the last one says of it.

    The client's key is the owner's who signed the file's header. Raises: PeerRefused, PeerUnavailable, BadAnswer.
    """
    documents = {}
    for storage in _entries(client, holders):
        target = f"/v1/datasets/{dataset.id}/content?version={dataset.version}"
        documents[storage.keyid] = client.send(storage, "PUT", target, sealed, is_answer_signed=True)
    _announce(client, f"/v1/datasets/{dataset.id}/places", documents)
    return parse_dataset(list(documents.values())[-1])


def publish_blob(client: Client, file: Path, kind: BlobKind, holders: Iterable[KeyId]) -> BlobInfo:
    """Upload an image or a model to each of these storages and announce it to all; what the last one says of it.

    The client's key is an owner's or an orchestrator's. Raises: PeerRefused, PeerUnavailable, BadAnswer.
    """
    seen = ContentDigest()
    with file.open("rb") as content:
        while piece := content.read(PIECE_BYTES):
            seen.update(piece)
    digest = digest_from_hex(seen.hex_digest)
    documents = {}
    for storage in _entries(client, holders):
        documents[storage.keyid] = client.send(
            storage, "PUT", f"/v1/blobs/{digest}?kind={kind}", file, is_answer_signed=True
        )
    _announce(client, f"/v1/blobs/{digest}/places", documents)
    return parse_blob(list(documents.values())[-1])


def holders_of(client: Client, dataset: DatasetRef) -> frozenset[KeyId]:
    """The agents that storage names for a dataset: the first storage of the roster that answers.

    Raises: DatasetMissing; StorageUnavailable when none answers.
    """
    target = f"/v1/datasets/{dataset.id}?version={dataset.version}"
    for storage in _storages(client):
        try:
            document = client.send(storage, "GET", target, is_answer_signed=True)
        except PeerUnavailable:
            continue
        except PeerRefused as refusal:
            raise DatasetMissing(f"{storage.name} knows no place of {dataset}: {refusal.detail}") from refusal
        return frozenset(place.agent for place in parse_dataset(document).locations)
    raise StorageUnavailable("no storage of the roster answers")


class Holders:
    """Who holds a dataset, by storage, or by what it said a few seconds ago: a result brings all receipts of its order, and
    each was reported by itself just before. Safe to use from threads.
    """

    def __init__(self, ask: Callable[[DatasetRef], frozenset[KeyId]]) -> None:
        """`ask`: asks storage."""
        self._ask = ask
        self._told: dict[DatasetRef, tuple[float, frozenset[KeyId]]] = {}
        self._asking = [threading.Lock() for _ in range(ASKED_AT_ONCE)]

    def __call__(self, dataset: DatasetRef) -> frozenset[KeyId]:
        """Raises: as `holders_of`."""
        if (known := self._known(dataset)) is not None:
            return known
        # A report and the result that come at once have one question.
        with self._asking[hash(dataset) % ASKED_AT_ONCE]:
            known = self._known(dataset)
            return self._asked(dataset) if known is None else known

    def _known(self, dataset: DatasetRef) -> frozenset[KeyId] | None:
        at, holders = self._told.get(dataset, (-JUST_NOW_S, frozenset()))
        return holders if time.monotonic() - at < JUST_NOW_S else None

    def _asked(self, dataset: DatasetRef) -> frozenset[KeyId]:
        holders = self._ask(dataset)
        if len(self._told) >= MOST_TOLD:
            self._told.clear()
        self._told[dataset] = time.monotonic(), holders
        return holders


def _announce(client: Client, target: str, documents: dict[KeyId, bytes]) -> None:
    """Give each storage the documents of the others."""
    for storage in _storages(client):
        for holder, document in documents.items():
            if holder != storage.keyid:
                client.send(storage, "PUT", target, document, is_answer_signed=True)


def _storages(client: Client) -> tuple[RosterEntry, ...]:
    now = client.now()
    return tuple(
        entry for entry in client.roster().entries if entry.role is Role.STORAGE and entry.is_valid(now)
    )


def _entries(client: Client, storages: Iterable[KeyId]) -> tuple[RosterEntry, ...]:
    roster, now = client.roster(), client.now()
    return tuple(roster.require(keyid, role=Role.STORAGE, at=now) for keyid in storages)
