"""A storage: its routes and who may call them. Source: docs/contracts/http.md, "Asked of storage".

Who may do what. Reading: everybody of the roster. A blob: the agents whose node's storage this is, owners, orchestrators. A
dataset, and the news of where one lies: the owner who signed its header, alone. The news of a blob: owners, orchestrators.
"""

from collections.abc import Callable, Collection
from functools import partial

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from agent.api.callers import Guard
from agent.api.problems import json_answer, problem_app
from agent.api.signed_requests import JSON_TYPE, Call, Endpoint, Upload, signed, uploaded
from agent.devkit.shelf import Shelf
from agent.domain.ids import Digest, KeyId, parse_digest
from agent.domain.orders import DatasetRef
from agent.errors import BadQuery, BadReport, DigestMismatch, NotFound, NotYours, WrongRole
from agent.log import get_logger
from agent.ports.storage import (
    MAX_DOCUMENT_BYTES,
    BlobInfo,
    BlobKind,
    DatasetInfo,
    Location,
    parse_blob,
    parse_dataset,
    write_blob,
    write_dataset,
)
from agent.trust.roster import Role
from agent.trust.seal import SignedHeader, parse_header, read_preamble

log = get_logger(__name__)

CHUNK_BYTES = 2 << 20  # of content, read at once
SLICE_BYTES = 256 << 10  # of it, through TLS and to the kernel at once: while the processor's cache has it
WRITERS = (Role.AGENT, Role.OWNER, Role.ORCHESTRATOR)


def storage_app(shelf: Shelf, guard: Guard, *, max_upload_bytes: int) -> Starlette:
    """A storage that keeps its things on this shelf, as the holder of `guard.key`."""
    desk = _Desk(shelf, guard)
    room, most = shelf.incoming, max_upload_bytes
    owners, tellers = (Role.OWNER,), (Role.OWNER, Role.ORCHESTRATOR)

    def read(handler: Callable[[Call], Response], *, is_document: bool) -> Endpoint:
        return signed(handler, guard, signs_answer=is_document)

    def note(handler: Callable[[Call], Response], roles: Collection[Role]) -> Endpoint:
        return signed(handler, guard, roles=roles, limit_bytes=MAX_DOCUMENT_BYTES, signs_answer=True)

    def take(handler: Callable[[Upload], Response], roles: Collection[Role]) -> Endpoint:
        return uploaded(handler, guard, roles=roles, folder=room, limit_bytes=most, signs_answer=True)

    return problem_app(
        [
            Route("/health", health),
            Route("/v1/datasets/{id}", read(desk.get_dataset, is_document=True)),
            Route("/v1/datasets/{id}/content", read(desk.get_dataset_content, is_document=False)),
            Route("/v1/datasets/{id}/content", take(desk.put_dataset, owners), methods=["PUT"]),
            Route("/v1/datasets/{id}/places", note(desk.note_dataset, owners), methods=["PUT"]),
            Route("/v1/blobs/{digest}", read(desk.get_blob, is_document=True)),
            Route("/v1/blobs/{digest}", take(desk.put_blob, WRITERS), methods=["PUT"]),
            Route("/v1/blobs/{digest}/content", read(desk.get_blob_content, is_document=False)),
            Route("/v1/blobs/{digest}/places", note(desk.note_blob, tellers), methods=["PUT"]),
        ]
    )


def health(_request: Request) -> Response:
    """Whether the process answers. Unsigned."""
    return json_answer({"status": "ok"})


class _Desk:
    """The handlers."""

    def __init__(self, shelf: Shelf, guard: Guard) -> None:
        self._shelf = shelf
        self._guard = guard
        self._me = guard.key.keyid

    # ---- datasets

    def get_dataset(self, call: Call) -> Response:
        """GET /v1/datasets/{id}?version=: where it lies in the whole consortium, with its owner's header."""
        return _document(write_dataset(self._dataset(call)))

    def get_dataset_content(self, call: Call) -> Response:
        """GET /v1/datasets/{id}/content?version=: the sealed file, or the range asked for."""
        return self._content(self._dataset(call).digest)

    def put_dataset(self, upload: Upload) -> Response:
        """PUT /v1/datasets/{id}/content?version=: a sealed file, from the owner who signed the header in it. Again: 200."""
        with upload.file.open("rb") as file:
            envelope = read_preamble(file)
        self._require_header(upload, envelope, _version(upload) or "")
        was_here = self._shelf.file(upload.digest) is not None
        places = tuple(Location(agent, self._me) for agent in self._own_agents())
        info = DatasetInfo(
            upload.path("id"), _version(upload) or "", upload.size_bytes, upload.digest, envelope, places
        )
        self._shelf.keep(upload.file, upload.digest)
        self._shelf.note_dataset(info, self._guard.now())
        log.info(
            "dataset.stored",
            dataset=info.id,
            version=info.version,
            size_bytes=info.size,
            by=upload.caller.keyid,
        )
        return _document(write_dataset(self._dataset(upload)), 200 if was_here else 201)

    def note_dataset(self, call: Call) -> Response:
        """PUT /v1/datasets/{id}/places: another storage's document of a dataset, announced by the dataset's owner."""
        info = parse_dataset(call.body)
        if info.id != call.path("id"):
            raise BadReport("the document is of another dataset than the path")
        self._require_header(call, info.header, info.version)
        self._require_places(info.locations)
        self._shelf.note_dataset(info, self._guard.now())
        return _document(call.body)

    def _dataset(self, call: Call) -> DatasetInfo:
        info = self._shelf.dataset(call.path("id"), _version(call))
        if info is None:
            raise NotFound(f"no storage told this one of dataset {call.path('id')[:80]} in this version")
        return info

    def _require_header(self, call: Call, envelope: bytes, version: str) -> SignedHeader:
        """The header, when the caller signed it for this very dataset. Raises: TrustError, BadReport, NotYours."""
        header = parse_header(envelope, self._guard.roster(), at=self._guard.now())
        if header.header.ref != DatasetRef(call.path("id"), version):
            raise BadReport(f"the header is of {header.header.ref}, the call of {call.path('id')}@{version}")
        if header.signer != call.caller.keyid:
            raise NotYours("a dataset is stored and announced by the owner who signed its header")
        return header

    def _require_places(self, places: tuple[Location, ...]) -> None:
        """Refuse a place that the roster contradicts: each agent has one storage, its node's own. Raises: BadReport."""
        for place in places:
            storage = self._guard.roster().storage_of(place.agent)
            if storage is None or storage.keyid != place.storage:
                raise BadReport(f"{place.storage[:16]} is not the storage of agent {place.agent[:16]}")

    def _own_agents(self) -> tuple[KeyId, ...]:
        """The agents whose node's storage this is."""
        roster = self._guard.roster()
        homes = {agent.keyid: roster.storage_of(agent.keyid) for agent in roster.agents()}
        return tuple(
            agent for agent, storage in homes.items() if storage is not None and storage.keyid == self._me
        )

    # ---- blobs

    def get_blob(self, call: Call) -> Response:
        """GET /v1/blobs/{digest}: how large it is, what it is, and which storages hold it."""
        return _document(write_blob(self._blob(_digest(call))))

    def get_blob_content(self, call: Call) -> Response:
        """GET /v1/blobs/{digest}/content: the bytes, or the range asked for."""
        return self._content(_digest(call))

    def put_blob(self, upload: Upload) -> Response:
        """PUT /v1/blobs/{digest}?kind=: a blob. Again: 200."""
        digest = _digest(upload)
        if upload.caller.role is Role.AGENT and upload.caller.keyid not in self._own_agents():
            raise WrongRole("an agent writes to its own node's storage only")
        if upload.digest != digest:
            raise DigestMismatch(f"the body is {upload.digest}, the path says {digest}")
        was_here = self._shelf.file(digest) is not None
        self._shelf.keep(upload.file, digest)
        self._shelf.note_blob(BlobInfo(digest, upload.size_bytes, _kind(upload), (self._me,)))
        log.info("blob.stored", digest=digest, size_bytes=upload.size_bytes, by=upload.caller.keyid)
        return _document(write_blob(self._blob(digest)), 200 if was_here else 201)

    def note_blob(self, call: Call) -> Response:
        """PUT /v1/blobs/{digest}/places: another storage's document of a blob."""
        info = parse_blob(call.body)
        if info.digest != _digest(call):
            raise BadReport("the document is of another blob than the path")
        for storage in info.locations:
            self._guard.roster().require(storage, role=Role.STORAGE, at=self._guard.now())
        self._shelf.note_blob(info)
        return _document(call.body)

    def _blob(self, digest: Digest) -> BlobInfo:
        info = self._shelf.blob(digest)
        if info is None:
            raise NotFound(f"no storage told this one of {digest}")
        return info

    def _content(self, digest: Digest) -> Response:
        """The file. Range, If-Range and ETag (the digest, so it never names other bytes) are Starlette's."""
        file = self._shelf.file(digest)
        if file is None:
            raise NotFound(f"{digest} does not lie on this storage")
        return _Content(file, headers={"ETag": f'"{digest}"'}, media_type="application/octet-stream")


class _Content(FileResponse):
    """A file in pieces that are worth the trip to a thread; Starlette's are 64 KiB. They go on in slices.

    asyncio copies what it sends up to four times where the reader is slower. Whole pieces copied so are more memory than glibc
    keeps free: it goes back to the kernel and comes anew as pages of zeros, up to 300,000 of them for each GiB.
    """

    chunk_size = CHUNK_BYTES

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As every response. What was read and not sent yet is bounded as before: a slice waits for the reader."""
        await super().__call__(scope, receive, partial(send_in_slices, send))


async def send_in_slices(send: Send, message: Message) -> None:
    """Pass a message on, a long part of a body as several."""
    body, at = message.get("body", b""), 0
    while len(body) - at > SLICE_BYTES:
        await send({**message, "body": body[at : at + SLICE_BYTES], "more_body": True})
        at += SLICE_BYTES
    await send({**message, "body": body[at:]} if at else message)


def _document(document: bytes, status: int = 200) -> Response:
    return Response(document, status, {"Cache-Control": "no-store"}, JSON_TYPE)


def _version(call: Call) -> str | None:
    return call.query("version")


def _digest(call: Call) -> Digest:
    try:
        return parse_digest(call.path("digest"))
    except ValueError as cause:
        raise NotFound(f"{cause}") from cause


def _kind(call: Call) -> BlobKind:
    told = call.query("kind") or ""
    try:
        return BlobKind(told)
    except ValueError as cause:
        raise BadQuery(f"`kind` is one of {', '.join(BlobKind)}, not {told[:40]!r}") from cause
