"""Serving an application: TLS 1.3, limits on slow and idle connections, a graceful stop. No route is known here.

    listener = listen("127.0.0.1", 0)
    with serving(app, listener, tls=server_tls(certificate, private_key)) as url:
        wait_for_signal()

The socket is bound before the application is made, so an application can know its own address, and a taken port is an error at
once. Several may be served by one process, each in its thread.
"""

import asyncio
import signal
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from email.utils import formatdate
from functools import lru_cache
from pathlib import Path
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from agent.api.gathered import Gathered
from agent.api.problems import problem
from agent.errors import BadHttp, BadSettings
from agent.log import get_logger

log = get_logger(__name__)

HEAD_S = (
    20.0  # for a request's head to arrive; also for the rest of a body that was refused, which is thrown away
)
STALL_S = 60.0  # for a reader to take something of its answer
IDLE_S = 30  # a connection without a request is closed; clients of ours close theirs sooner
STOP_S = 10  # for requests under way when the service stops
UPLOAD_STOP_S = (
    2.0  # then, for a body that is still arriving: nothing of it was acted on, and its sender sends it again
)
MAX_HEAD_BYTES = 64 << 10
MAX_CONNECTIONS = 512

PEER = struct.Struct("3i")  # pid, uid, gid: the kernel's struct ucred
PEER_UID = "peer_uid"
PEER_NAME = "peer_name"
CUT = "dc_compute.cut"  # key of the state under which an application finds what cuts its connection
ARRIVED = "dc_compute.arrived"  # … and what tells whether the body of the request is here whole


def server_tls(certificate: Path, private_key: Path) -> ssl.SSLContext:
    """A server's TLS, 1.3 only. Raises: BadSettings."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_cert_chain(certificate, private_key)
    except (OSError, ssl.SSLError) as cause:
        raise BadSettings(f"cannot serve TLS with {certificate} and {private_key}: {cause}") from cause
    return context


def mutual_tls(certificate: Path, private_key: Path, client_authority: Path) -> ssl.SSLContext:
    """The same for clients that show a certificate by an authority of this file, and for no others. Raises: BadSettings."""
    context = server_tls(certificate, private_key)
    context.verify_mode = ssl.CERT_REQUIRED
    # Whoever comes again by a ticket shows no certificate: an authority that a reload took away would hold on for hours.
    context.num_tickets = 0
    try:
        context.load_verify_locations(client_authority)
    except (OSError, ssl.SSLError) as cause:
        raise BadSettings(f"cannot read client authorities in {client_authority}: {cause}") from cause
    return context


class ServedTls:
    """A server's TLS whose certificate is exchanged while it serves. `context` is what the server is given, once.

    Each handshake is handed to the newest context, which was made and checked whole before: loading a new chain into the
    live one would leave it with a certificate and another one's key where the second file is wrong. Connections that stand
    go on.
    """

    def __init__(self, make: Callable[[], ssl.SSLContext]) -> None:
        self._make = make
        self.context = self._newest = make()
        self.context.sni_callback = self._choose  # OpenSSL calls it without a name too

    def read(self) -> ssl.SSLContext:
        """A context by the files as they are now. Raises: BadSettings."""
        return self._make()

    def exchange(self, newest: ssl.SSLContext) -> None:
        """From here on connections begin with this one."""
        self._newest = newest

    def _choose(self, connection: ssl.SSLObject, _name: str | None, _begun_with: ssl.SSLContext) -> None:
        connection.context = self._newest


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 lets the system choose. Raises: BadSettings."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=256)
    except OSError as cause:
        raise BadSettings(f"cannot listen on {host}:{port}: {cause.strerror}") from cause


def listen_unix(path: Path, mode: int) -> socket.socket:
    """A Unix socket that listens at `path`, in place of one that was left there; `mode` is the permission. Raises: BadSettings.

    Nobody can connect before `listen`, so nobody can while the mode is still another one.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.is_socket():
            path.unlink()
        listener.bind(str(path))
        path.chmod(mode)
        listener.listen(64)
    except OSError as cause:
        listener.close()
        raise BadSettings(f"cannot listen on {path}: {cause.strerror or cause}") from cause
    return listener


def send_at_once(listener: socket.socket) -> None:
    """Connections that this socket accepts send each part of an answer when it is written.

    Otherwise an answer's body waits until its head is acknowledged, which the peer puts off for 40 ms. asyncio would see to it,
    but not on sockets that Python's `socket` module made or systemd handed over: they do not name their protocol.
    """
    if listener.family in {socket.AF_INET, socket.AF_INET6}:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def url_of(listener: socket.socket, *, tls: bool) -> str:
    """The base URL at which this socket is reached from where it listens; for a Unix socket its path."""
    name = listener.getsockname()
    if not isinstance(name, tuple):
        return f"unix:{name}"
    host = f"[{name[0]}]" if ":" in name[0] else name[0]
    return f"{'https' if tls else 'http'}://{host}:{name[1]}"


@contextmanager
def serving(
    app: ASGIApp, listener: socket.socket, *, tls: ssl.SSLContext | None, stays: bool = False
) -> Iterator[str]:
    """Serve in a thread while the block runs; gives the base URL. Requests under way at its end get STOP_S seconds.

    `tls` is None only for a Unix socket, or where docs/contracts/http.md names plain HTTP. `stays`: somebody else keeps the
    socket, and who serves next goes on with it; a Unix socket's file is left then.
    Raises: BadSettings when it does not start.
    """
    url = url_of(listener, tls=tls is not None)
    send_at_once(listener)
    server = _Server(_config(app, tls))
    thread = threading.Thread(target=server.run_until_told, args=(listener,), name=f"serving {url}")
    thread.start()
    try:
        server.has_begun.wait()
        if not server.started:
            raise BadSettings(f"the service at {url} did not start; its log says why")
        yield url
    finally:
        server.tell_to_stop()
        thread.join()
        listener.close()
        if url.startswith("unix:") and not stays:
            Path(url.removeprefix("unix:")).unlink(missing_ok=True)


def wait_for_signal() -> signal.Signals:
    """Returns when the process is asked to end (SIGTERM, SIGINT), with what it was asked by. Main thread only."""
    told: list[int] = []
    was_told = threading.Event()

    def tell(number: int, _frame: object) -> None:
        told.append(number)
        was_told.set()

    before = {number: signal.signal(number, tell) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        was_told.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return signal.Signals(told[0])


def _config(app: ASGIApp, tls: ssl.SSLContext | None) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        loop="asyncio",
        http=_ImpatientProtocol,
        ws="none",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=IDLE_S,
        timeout_graceful_shutdown=STOP_S,
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        ssl_context_factory=None if tls is None else lambda _config, _default: tls,
    )


def peer_name(certificate: Mapping[str, Any] | None) -> str | None:
    """The common name in a client's certificate, as `ssl` gives it, else its serial number; None where there is none."""
    if not certificate:
        return None
    fields = {name: value for part in certificate.get("subject", ()) for name, value in part}
    return str(fields.get("commonName") or f"certificate {certificate.get('serialNumber')}")


def peer_uid(connection: socket.socket | None) -> int | None:
    """The user at the other end of a Unix socket, as the kernel saw it connect; None for any other socket."""
    if connection is None or connection.family != socket.AF_UNIX:
        return None
    _, uid, _ = PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER.size))
    return int(uid)


class _Server(uvicorn.Server):
    """A server that tells when it has begun, or that it will not, and that sleeps until somebody calls or tells it to stop."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.has_begun = threading.Event()
        self._told: Callable[[], object] | None = None  # until there is a loop that can be told

    def tell_to_stop(self) -> None:
        """Callable from any thread."""
        self.should_exit = True
        if self._told is not None:
            self._told()

    async def main_loop(self) -> None:
        """Until told. uvicorn's own looks ten times a second, to date its answers too: see `handle_events` below."""
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        self._told = lambda: loop.call_soon_threadsafe(stop.set)
        try:
            if not self.should_exit:  # what is told from here on sets the event
                await stop.wait()
        finally:
            self._told = None

    def run_until_told(self, listener: socket.socket) -> None:
        try:
            self.run([listener])
        except SystemExit:  # how uvicorn says that the application did not start; `started` stays False
            pass
        finally:
            self.has_begun.set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.has_begun.set()


class _ImpatientProtocol(H11Protocol):
    """uvicorn's protocol, but a peer that dawdles over a request's head, or does not read its answer, is cut off.

    What is no HTTP is answered with a problem document, as every refusal is.
    """

    # What handlers find as `request.state.peer_uid`: who the kernel says is at the other end of a Unix socket; and as
    # `peer_name` whom the certificate of a client names.
    _head_timer: asyncio.TimerHandle | None = None
    _stall_timer: asyncio.TimerHandle | None = None
    _stop_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self.transport = Gathered(transport, self.loop)  # type: ignore[assignment]  # what it does not do, that one does
        self.app_state = {
            **self.app_state,
            PEER_UID: peer_uid(transport.get_extra_info("socket")),
            PEER_NAME: peer_name(transport.get_extra_info("peercert")),
            CUT: self._cut,
            ARRIVED: self._has_arrived,
        }
        self._head_timer = self.loop.call_later(HEAD_S, transport.abort)

    def handle_events(self) -> None:
        """Answers bear the time at which their request was read."""
        self.server_state.default_headers = _dated(int(time.time()))
        super().handle_events()

    def data_received(self, data: bytes) -> None:
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self._head_timer = _stopped(self._head_timer)
        elif self._head_timer is None and self.cycle.response_complete:
            self._head_timer = self.loop.call_later(HEAD_S, self.transport.abort)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stall_timer = self.loop.call_later(STALL_S, self.transport.abort)

    def resume_writing(self) -> None:
        self._stall_timer = _stopped(self._stall_timer)
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_timer = _stopped(self._head_timer)
        self._stall_timer = _stopped(self._stall_timer)
        self._stop_timer = _stopped(self._stop_timer)
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer what h11 cannot read, then close. Where an answer has begun, there is room for no other."""
        error = BadHttp(msg)
        log.warning("request.refused", code=error.code, detail=error.detail)
        if self.cycle is not None:
            self.cycle.disconnected = True  # the application may still be at it: it has nobody to answer
            self.cycle.message_event.set()
        if self.conn.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            answer = problem(error)
            head = h11.Response(
                status_code=answer.status_code,
                headers=[*answer.raw_headers, (b"connection", b"close")],
                reason=b"Bad Request",
            )
            for event in (head, h11.Data(data=bytes(answer.body)), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def shutdown(self) -> None:
        """An idle connection is cut at once, an upload soon: waiting for their peers would hold up the stop."""
        if self.cycle is not None and not self.cycle.response_complete:
            super().shutdown()
            self._stop_timer = self.loop.call_later(UPLOAD_STOP_S, self._cut_upload)
            return
        self._cut()

    def _cut_upload(self) -> None:
        if self.conn.their_state is h11.SEND_BODY:
            log.info("request.abandoned", advice="Its body had not arrived when the service stopped.")
            self._cut()

    def _has_arrived(self) -> bool:
        return self.cycle is not None and not self.cycle.more_body

    def _cut(self) -> None:
        with suppress(AttributeError):  # Python 3.11 cannot abort a TLS transport that was closed twice
            self.transport.abort()


@lru_cache(maxsize=1)
def _dated(second: int) -> list[tuple[bytes, bytes]]:
    """The headers of every answer in this second since 1970."""
    return [(b"date", formatdate(second, usegmt=True).encode())]


def _stopped(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    """No timer, for the place where this one was kept."""
    if timer is not None:
        timer.cancel()
    return None
