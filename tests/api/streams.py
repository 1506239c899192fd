"""Streams of events as a client reads them: doors served for real on Unix sockets, and events in the order they came.

with open_studio(tmp_path) as studio:
    with studio.operator("/v1/events") as stream:
        stream.next("job.queued")
"""

import queue
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from httpx_sse import EventSource, ServerSentEvent
from starlette.types import ASGIApp

from agent.api.routes import network_app, operator_app
from agent.api.serving import listen_unix, serving
from agent.domain.jobs import Job
from agent.trust.keys import SigningKey
from tests.api.house import AUTHORITY, House, open_house, signed_headers
from tests.ports.ledger_stage import order_named, received

SOON_S = 20.0


class Ended(Exception):
    """The server ended the stream."""


class Stream:
    """A stream that a thread reads."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._events: queue.SimpleQueue[ServerSentEvent | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            for event in EventSource(self.response).iter_sse():
                self._events.put(event)
        except (httpx.HTTPError, httpx.StreamError, RuntimeError, ValueError):
            pass
        self._events.put(None)

    def next(self, name: str | None = None) -> ServerSentEvent:
        """The next event, of this name when one is asked for. Raises: Ended, queue.Empty after SOON_S."""
        while True:
            event = self._events.get(timeout=SOON_S)
            if event is None:
                self._events.put(None)
                raise Ended
            if name is None or event.event == name:
                return event

    def hang_up(self) -> None:
        """Leave at once: closing alone would wait for the thread that reads."""
        with suppress(OSError):
            self.response.extensions["network_stream"].get_extra_info("socket").shutdown(socket.SHUT_RDWR)
        self._thread.join(SOON_S)

    def rest(self) -> list[ServerSentEvent]:
        """Everything until the server ends it."""
        found = []
        try:
            while True:
                found.append(self.next())
        except Ended:
            return found


@dataclass
class Studio:
    """A house whose doors are served."""

    house: House
    folder: Path
    doors: ExitStack
    sockets: dict[str, Path] = field(default_factory=dict)

    def serve(self, name: str, app: ASGIApp) -> None:
        self.sockets[name] = self.folder / f"{name}.sock"
        self.doors.enter_context(serving(app, listen_unix(self.sockets[name], 0o600), tls=None))

    @contextmanager
    def client(self, name: str) -> Iterator[httpx.Client]:
        transport = httpx.HTTPTransport(uds=str(self.sockets[name]))
        base = "http://operator" if name == "operator" else f"http://{AUTHORITY}"
        with httpx.Client(transport=transport, base_url=base, timeout=SOON_S, trust_env=False) as client:
            yield client

    @contextmanager
    def operator(self, target: str, headers: Mapping[str, str] | None = None) -> Iterator[Stream]:
        """A stream as the operator reads it."""
        with (
            self.client("operator") as client,
            client.stream("GET", target, headers=dict(headers or {})) as got,
        ):
            assert got.status_code == 200, got.read()
            stream = Stream(got)
            try:
                yield stream
            finally:
                stream.hang_up()

    @contextmanager
    def signed(self, key: SigningKey, target: str, **headers: str) -> Iterator[Stream]:
        """A stream as the holder of this key reads it."""
        fields = signed_headers(key, "GET", target, None, now=self.house.clock())
        with self.client("network") as client, client.stream("GET", target, headers=fields | headers) as got:
            assert got.status_code == 200, got.read()
            stream = Stream(got)
            try:
                yield stream
            finally:
                stream.hang_up()

    def ask(self, key: SigningKey, target: str, method: str = "GET") -> httpx.Response:
        """An answer that is no stream."""
        fields = signed_headers(key, method, target, None, now=self.house.clock())
        with self.client("network") as client:
            return client.request(method, target, headers=fields)

    def receive(self, name: str = "order") -> Job:
        """An order of the first orchestrator, received."""
        return received(self.house.ledger, name)

    def path(self, name: str = "order") -> str:
        """The path of that order's stream."""
        return f"/v1/orders/{order_named(name).order.id}/events"

    def silent(self, target: str) -> socket.socket:
        """Somebody who asks the operator's door for a stream and never reads a byte of it."""
        line = socket.socket(socket.AF_UNIX)
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        line.connect(str(self.sockets["operator"]))
        line.sendall(f"GET {target} HTTP/1.1\r\nHost: operator\r\n\r\n".encode())
        return line


@contextmanager
def open_studio(folder: Path, **fields: Any) -> Iterator[Studio]:
    """A house with both doors served, and its streams ended before them, as `dc-compute serve` does."""
    house = open_house(folder, **fields)
    with ExitStack() as doors:
        studio = Studio(house, folder, doors)
        studio.serve("network", network_app(house.desk, lambda: {AUTHORITY}))
        studio.serve("operator", operator_app(house.desk))
        doors.callback(house.desk.feed.close)
        yield studio
