"""Receivers that take something for real and then answer as badly as a line, a proxy or a crash can: over real TLS.

Behind each rude line stands the real application: an agent's intake with its ledger, the devkit's orchestrator, the devkit's
storage. Whatever became of the first answer, the sender must take it for "could not", send the same again, and be
acknowledged; and there is one effect.
"""

import asyncio
import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import ASGIApp

from agent.api.serving import listen, url_of
from agent.domain.ids import digest_of, wire_time
from agent.domain.reports import ReportBody, ReportState, envelope_object
from agent.domain.strict_json import encode
from agent.errors import BadAnswer, OutsideError, PeerRefused
from agent.pipeline.intake import take_handoff
from agent.ports.https import Timeouts
from agent.ports.orchestrators_https import HttpsOrchestrators
from agent.ports.peers_https import HttpsPeers
from agent.ports.storage import BlobKind
from agent.ports.storage_https import HttpsStorage
from agent.trust.handoff import build_handoff
from agent.trust.shares import ShareKeyPair
from tests.builders import NOW, changed, consortium, key_of
from tests.devkit.sealed import seal
from tests.devkit.town import Town, open_town
from tests.pipeline.world import World
from tests.ports.ledger_stage import fresh_ledger
from tests.ports.rude import answer, rude_server
from tests.ports.test_https import reserve, signed_answer
from tests.ports.test_orchestrators_contract import (
    AGENT_A,
    O1,
    order_that_ends_at_a,
    result_of,
    share_request,
)

WORLD = consortium()
B = key_of("agent-b").keyid
HURRIED = Timeouts(connect_s=5, read_s=2, total_s=2, transfer_s=2)

Act = Callable[[], Any]


# ------------------------------------------------------------------ how a first answer is spoilt


@dataclass
class Spoilt:
    """One rude line: what it does with the answer `real`, made for the last request in `heard`."""

    town: Town
    name: str

    def says_nothing(self, line: ssl.SSLSocket, heard: list[bytes], real: bytes) -> None:
        pass

    def resets(self, line: ssl.SSLSocket, heard: list[bytes], real: bytes) -> None:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        socket.socket.close(line)

    def drips(self, line: ssl.SSLSocket, heard: list[bytes], real: bytes) -> None:
        for byte in real:
            line.sendall(bytes([byte]))
            if not _waits(line, 0.1):
                return

    def says_half(self, line: ssl.SSLSocket, heard: list[bytes], real: bytes) -> None:
        line.sendall(real[: len(real) - 5])

    def says_half_a_head(self, line: ssl.SSLSocket, heard: list[bytes], real: bytes) -> None:
        line.sendall(real[:20])

    def says_garbage(self, line: ssl.SSLSocket, heard: list[bytes], real: bytes) -> None:
        line.sendall(bytes(range(256)) * 4)

    def says_500(self, line: ssl.SSLSocket, heard: list[bytes], real: bytes) -> None:
        line.sendall(answer(b"{}", 500))

    def says_500_signed(self, line: ssl.SSLSocket, heard: list[bytes], real: bytes) -> None:
        line.sendall(signed_answer(heard, self.town, key=self.name, status=500))

    def says_yes_unsigned(self, line: ssl.SSLSocket, heard: list[bytes], real: bytes) -> None:
        line.sendall(answer(b"{}", 201))

    def says_yes_by_another_key(self, line: ssl.SSLSocket, heard: list[bytes], real: bytes) -> None:
        line.sendall(signed_answer(heard, self.town, key="agent-c", status=200))

    def says_no_unsigned(self, line: ssl.SSLSocket, heard: list[bytes], real: bytes) -> None:
        line.sendall(answer(b'{"code": "policy-refused", "detail": "no"}', 403))

    def redirects(self, line: ssl.SSLSocket, heard: list[bytes], real: bytes) -> None:
        line.sendall(answer(b"", 307, location=self.town.url(self.name)))

    def asks_to_wait_429(self, line: ssl.SSLSocket, heard: list[bytes], real: bytes) -> None:
        line.sendall(answer(b"{}", 429, retry_after="7"))

    def asks_to_wait_503(self, line: ssl.SSLSocket, heard: list[bytes], real: bytes) -> None:
        line.sendall(answer(b"{}", 503, retry_after="Sun, 01 Mar 2026 12:00:07 GMT"))


MANNERS = [name for name in vars(Spoilt) if not name.startswith("_") and name not in {"town", "name"}]
BROKEN = {"says_nothing", "resets", "drips", "says_half", "says_half_a_head", "says_garbage"}
WHOLE = set(MANNERS) - BROKEN
RESTS = {"asks_to_wait_429", "asks_to_wait_503"}


def _waits(line: ssl.SSLSocket, seconds: float) -> bool:
    """Wait for the other side to leave; whether it is still there."""
    line.settimeout(seconds)
    try:
        return line.recv(1) != b""
    except TimeoutError:
        return True


@dataclass
class Behind:
    """The real application behind a rude line."""

    app: ASGIApp

    def handle(self, request: bytes) -> bytes:
        """The application's answer, as bytes."""
        head, _, body = request.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ")
        fields = [(name.strip(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
        return asyncio.run(self._call(method, target, fields, body))

    async def _call(self, method: str, target: str, fields: list[tuple[str, str]], body: bytes) -> bytes:
        host = dict(fields)["host"] if "host" in dict(fields) else dict(fields)["Host"]
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url=f"https://{host}") as client:
            told = await client.send(
                httpx.Request(method, f"https://{host}{target}", headers=fields, content=body)
            )
        lines = "".join(f"{name}: {value}\r\n" for name, value in told.headers.multi_items())
        return f"HTTP/1.1 {told.status_code} Said\r\n{lines}\r\n".encode() + told.content


@dataclass
class Line:
    """What came over a rude line, by method."""

    spoil: Any
    method: str
    behind: Behind
    left: int = 1
    served: list[bytes] = field(default_factory=list)

    def __call__(self, line: ssl.SSLSocket, heard: list[bytes]) -> object:
        request = heard[-1]
        real = self.behind.handle(request)
        if request.startswith(self.method.encode()):
            self.served.append(request)
            if self.left:
                self.left -= 1
                self.spoil(line, heard, real)
                return self.spoil.__name__ in WHOLE  # the line stays open behind a whole answer
        line.sendall(real)
        return True


# ------------------------------------------------------------------ what is sent, and its one effect


@dataclass
class Case:
    """Something that is sent to `name`: how, and how often it took effect there."""

    name: str
    method: str
    send: Act
    effects: Callable[[], int]
    is_acted_on_once: bool = True


@contextmanager
def handing_off(town: Town, folder: Path) -> Iterator[Case]:
    world = World(folder / "world", fresh_ledger)
    order = WORLD.order(train=("a1", "b1"), test=())
    town.doors["agent-b"] = lambda body, sender: take_handoff(body, sender, world.b.host)
    peers = HttpsPeers(town.identity("agent-a"), HURRIED)
    body = build_handoff(order, WORLD.chain(order, 1))
    yield Case("agent-b", "POST", lambda: peers.hand_off(B, body), lambda: len(world.b.jobs()))
    peers.close()


@contextmanager
def reporting(town: Town, folder: Path) -> Iterator[Case]:
    order = WORLD.order()
    receipt = WORLD.chain(order, 1)[0]
    told = ReportBody(
        order=order.digest,
        position=0,
        state=ReportState.DONE,
        attempt=1,
        max_attempts=3,
        receipt=envelope_object(receipt.envelope),
        at=wire_time(NOW),
    )
    port = HttpsOrchestrators(town.identity("agent-a"), HURRIED)
    town.books["o1"].record_order(order, NOW)
    send = partial(port.report, O1, order.order.id, 0, 1, encode(told))
    yield Case("o1", "PUT", send, lambda: len(town.books["o1"].reports(order.order.id)))
    assert town.books["o1"].alarms() == ()
    assert town.books["o1"].receipts(order.order.id) == (receipt.envelope,)
    port.close()


@contextmanager
def ending(town: Town, folder: Path) -> Iterator[Case]:
    order, receipts = order_that_ends_at_a()
    port = HttpsOrchestrators(town.identity("agent-a"), HURRIED)
    town.books["o1"].record_order(order, NOW)
    send = partial(port.result, O1, order.order.id, encode(result_of(order, receipts)))
    yield Case("o1", "PUT", send, lambda: int(town.books["o1"].result(order.order.id) is not None))
    assert town.books["o1"].alarms() == ()
    port.close()


@contextmanager
def asking_for_a_share(town: Town, folder: Path) -> Iterator[Case]:
    order, sealed, pair = WORLD.order(), seal("a1"), ShareKeyPair()
    port = HttpsOrchestrators(town.identity("agent-a"), HURRIED)
    town.books["o1"].record_order(order, NOW)
    town.books["o1"].keep_share(sealed.ref, sealed.shares[O1])
    send = partial(port.share, O1, share_request(order, sealed, pair))
    releases = lambda: len(town.books["o1"].releases())  # noqa: E731
    yield Case("o1", "POST", send, releases, is_acted_on_once=False)  # each release is written down
    port.close()


@contextmanager
def uploading(town: Town, folder: Path) -> Iterator[Case]:
    content = b"a model " * 1000
    file = folder / "model"
    file.write_bytes(content)
    digest = digest_of(content)
    port = HttpsStorage(town.identity("agent-a"), AGENT_A, HURRIED)
    shelf = town.shelves["storage-a"]

    def there() -> int:
        found = shelf.blob(digest)
        return int(found is not None)

    yield Case("storage-a", "PUT", partial(port.put_blob, digest, BlobKind.MODEL, file), there)
    assert port.blob(digest).size == len(content)
    port.close()


CASES = {
    "hand-off": ("agent-b", handing_off),
    "report": ("o1", reporting),
    "result": ("o1", ending),
    "share": ("o1", asking_for_a_share),
    "upload": ("storage-a", uploading),
}


def keep_place(town: Town, name: str) -> None:
    """Keep a place on this machine for the server of that name."""
    if name != "o1":
        reserve(town, name)
        return
    town.listeners[name] = listen("127.0.0.1", 0)
    town.roster = changed(town.roster, O1, orchestrator_url=url_of(town.listeners[name], tls=True))


@contextmanager
def rude_town(tmp_path: Path, what: str, manner: str) -> Iterator[tuple[Case, Line]]:
    """A town in which the receiver of `what` is real, and spoils its first answer."""
    name, open_case = CASES[what]
    with ExitStack() as stack:
        town = stack.enter_context(open_town(tmp_path))
        keep_place(town, name)
        behind = Behind(town.app(name))
        for memory in (town.shelves, town.books):
            if name in memory:
                stack.callback(memory[name].database.close)
        case_context = open_case(town, tmp_path)
        line = Line(getattr(Spoilt(town, name), manner), "PUT", behind)
        stack.enter_context(rude_server(town, name, line))
        case = stack.enter_context(case_context)
        line.method = case.method
        yield case, line


@pytest.mark.parametrize("manner", MANNERS)
@pytest.mark.parametrize("what", CASES)
def test_what_was_taken_and_badly_answered_is_sent_again_and_takes_effect_once(
    what: str, manner: str, tmp_path: Path
) -> None:
    (tmp_path / "world").mkdir()
    with rude_town(tmp_path, what, manner) as (case, line):
        with pytest.raises((OutsideError, BadAnswer)) as first:
            case.send()
        after_first = case.effects()
        case.send()

        sent = list(line.served)
        effects = case.effects()

    assert not isinstance(first.value, PeerRefused)
    assert first.value.is_retried
    if manner in RESTS:
        assert isinstance(first.value, OutsideError)
        assert first.value.rest_s == 7.0
    if case.is_acted_on_once:
        assert (after_first, effects) == (1, 1)
    if what != "upload":  # an upload that is there already is not sent again
        assert [request.partition(b"\r\n\r\n")[2] for request in sent] == [
            sent[0].partition(b"\r\n\r\n")[2]
        ] * 2
