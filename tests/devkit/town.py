"""A consortium of real servers over real TLS, on this machine: the storages, orchestrators and peers a test asks for.

    with open_town(tmp_path, "storage-a", "storage-b", "o1") as town:
        HttpsStorage(town.identity("agent-a"), town.world.agent("a").keyid, town.timeouts)

Everybody of the stage in `tests/builders.py` is in the roster; who was not asked for refuses connections. It is NOW for all.
"""

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from agent.api.callers import Guard
from agent.api.problems import json_answer, problem_app
from agent.api.serving import listen, server_tls, serving, url_of
from agent.api.signed_requests import Call, signed
from agent.devkit.book import Book
from agent.devkit.certificates import write_identity
from agent.devkit.client import Client
from agent.devkit.orchestrator import orchestrator_app
from agent.devkit.shelf import Shelf
from agent.devkit.storage import health, storage_app
from agent.domain.ids import KeyId
from agent.domain.orders import DatasetRef
from agent.ports.https import Identity, Timeouts
from agent.trust.certificates import CertificateAuthority
from agent.trust.handoff import MAX_HANDOFF_BYTES
from agent.trust.http_signatures import authority_of
from agent.trust.roster import Role, Roster
from tests.builders import HOSPITALS, NOW, ORCHESTRATORS, SKEW, Consortium, changed, consortium, key_of

MAX_UPLOAD_BYTES = 1 << 30
SERVERS = (*(f"{what}-{h}" for what in ("agent", "storage") for h in HOSPITALS), *ORCHESTRATORS)

Door = Callable[[bytes, KeyId], object]


@dataclass
class Clock:
    """A clock that stands until it is moved."""

    moment: datetime = NOW

    def __call__(self) -> datetime:
        return self.moment


@dataclass
class Town:
    """The servers that run, and what they remember. `roster` may be replaced: everybody sees the new one."""

    folder: Path
    world: Consortium
    roster: Roster
    authority: CertificateAuthority
    clock: Clock = field(default_factory=Clock)
    timeouts: Timeouts = field(
        default_factory=lambda: Timeouts(connect_s=5, read_s=5, total_s=10, transfer_s=60)
    )
    shelves: dict[str, Shelf] = field(default_factory=dict)
    books: dict[str, Book] = field(default_factory=dict)
    doors: dict[str, Door] = field(default_factory=dict)
    listeners: dict[str, socket.socket] = field(default_factory=dict)
    running: dict[str, ExitStack] = field(default_factory=dict)

    def identity(self, name: str) -> Identity:
        """Who calls, for an adapter."""
        return Identity(key_of(name), lambda: self.roster, self.clock, SKEW)

    def client(self, name: str) -> Client:
        """The devkit's own client, of an owner or an orchestrator."""
        return Client(key_of(name), lambda: self.roster, self.clock, SKEW)

    def guard(self, name: str, authority: str) -> Guard:
        """What the server of that name knows of its callers."""
        used: set[tuple[str, str]] = set()

        def remember(keyid: KeyId, nonce: str, _keep_until: datetime, _now: datetime) -> bool:
            is_new = (keyid, nonce) not in used
            used.add((keyid, nonce))
            return is_new

        return Guard(lambda: self.roster, lambda: {authority}, key_of(name), self.clock, SKEW, remember)

    def url(self, name: str) -> str:
        """Where the server of that name answers, or would."""
        entry = self.roster.find(key_of(name).keyid)
        assert entry is not None
        urls = {Role.AGENT: entry.agent_url, Role.STORAGE: entry.storage_url}
        return urls.get(entry.role, entry.orchestrator_url) or ""

    def app(self, name: str) -> ASGIApp:
        """The application that the server of that name runs."""
        guard = self.guard(name, authority_of(self.url(name)))
        if name.startswith("storage-"):
            self.shelves[name] = Shelf(self.folder / name)
            return storage_app(self.shelves[name], guard, max_upload_bytes=MAX_UPLOAD_BYTES)
        if name in ORCHESTRATORS:
            self.books[name] = Book(self.folder / name / "orchestrator.sqlite")
            return orchestrator_app(self.books[name], guard, locate=lambda ref: self.locate(ref))  # noqa: PLW0108 - a test may replace it
        return peer_app(guard, partial(self._open_door, name))

    def locate(self, ref: DatasetRef) -> frozenset[KeyId]:
        """Who holds a dataset, as orchestrators ask storage."""
        return self.world.locate(ref)

    def _open_door(self, name: str, body: bytes, sender: KeyId) -> object:
        return self.doors[name](body, sender)

    def start(self, name: str, app: ASGIApp | None = None) -> str:
        """Serve that name, by its own application or another one; the URL."""
        running = self.running[name] = ExitStack()
        hosts = ["127.0.0.1", "localhost"]
        files = write_identity(self.folder / "tls", name, self.authority, hosts, now=datetime.now(UTC))
        tls = server_tls(files.certificate, files.private_key)
        url = running.enter_context(serving(app or self.app(name), self.listeners.pop(name), tls=tls))
        for memory in (self.shelves, self.books):
            if name in memory:
                running.callback(memory[name].database.close)
        return url

    def stop(self, name: str) -> None:
        """Stop that server: it refuses connections from now on."""
        self.running.pop(name).close()


@contextmanager
def open_town(folder: Path, *names: str) -> Iterator[Town]:
    """The servers of these names, and the roster in which everybody else refuses connections."""
    world = consortium()
    authority = CertificateAuthority("the town's own", now=datetime.now(UTC))
    town = Town(folder, world, world.roster, authority)
    listeners = {name: listen("127.0.0.1", 0) for name in SERVERS}
    urls = {name: url_of(listener, tls=True) for name, listener in listeners.items()}
    town.roster = _moved(world.roster, urls, authority.certificate.decode("ascii"))
    for name, listener in listeners.items():
        if name in names:
            town.listeners[name] = listener
        else:
            listener.close()
    try:
        for name in names:
            town.start(name)
        yield town
    finally:
        for name in tuple(town.running):
            town.stop(name)
        for listener in town.listeners.values():
            listener.close()


def _moved(roster: Roster, urls: dict[str, str], tls_ca: str) -> Roster:
    """The roster with everybody at these addresses."""
    for hospital in HOSPITALS:
        agent, storage = f"agent-{hospital}", f"storage-{hospital}"
        there = {"storage_url": urls[storage], "tls_ca": tls_ca}
        roster = changed(roster, key_of(agent).keyid, agent_url=urls[agent], **there)
        roster = changed(roster, key_of(storage).keyid, **there)
    for name in ORCHESTRATORS:
        roster = changed(roster, key_of(name).keyid, orchestrator_url=urls[name], tls_ca=tls_ca)
    return roster


def peer_app(guard: Guard, door: Door) -> ASGIApp:
    """An agent's intake, and nothing behind it but this door."""

    def take(call: Call) -> Response:
        door(call.body, call.caller.keyid)
        return json_answer({"state": "received"}, 202)

    handoffs = signed(take, guard, roles=(Role.AGENT,), limit_bytes=MAX_HANDOFF_BYTES, signs_answer=True)
    both = (Role.AGENT, Role.ORCHESTRATOR)
    cancellations = signed(take, guard, roles=both, limit_bytes=MAX_HANDOFF_BYTES, signs_answer=True)
    orders = signed(take, guard, roles=(Role.ORCHESTRATOR,), limit_bytes=MAX_HANDOFF_BYTES)
    return problem_app(
        [
            Route("/health", health),
            Route("/v1/handoffs", handoffs, methods=["POST"]),
            Route("/v1/cancellations", cancellations, methods=["POST"]),
            Route("/v1/learnuplets", orders, methods=["POST"]),
            Route("/v1/preduplets", orders, methods=["POST"]),
        ]
    )
