"""How applications are served: TLS 1.3 only, dawdlers cut off, a graceful stop."""

import asyncio
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from agent.api import serving as module
from agent.api.serving import listen, listen_unix, server_tls, serving, url_of
from agent.devkit.certificates import TlsFiles, write_identity
from agent.errors import BadSettings
from agent.trust.certificates import CertificateAuthority

began, may_end, uploading = threading.Event(), threading.Event(), threading.Event()


def hello(_request: Request) -> Response:
    return PlainTextResponse("hello")


def slow(_request: Request) -> Response:
    began.set()
    may_end.wait(10)
    return PlainTextResponse("done")


def endless(_request: Request) -> Response:
    def pieces() -> Iterator[bytes]:
        while True:
            yield b"x" * 65536

    return StreamingResponse(pieces())


async def upload(request: Request) -> Response:
    size = 0
    async for piece in request.stream():
        uploading.set()
        size += len(piece)
    return PlainTextResponse(f"{size} bytes")


APP = Starlette(
    routes=[
        Route("/", hello),
        Route("/slow", slow),
        Route("/endless", endless),
        Route("/upload", upload, methods=["POST"]),
    ]
)


@pytest.fixture(scope="module")
def authority() -> CertificateAuthority:
    return CertificateAuthority("test", now=datetime.now(UTC))


@pytest.fixture
def files(tmp_path: Path, authority: CertificateAuthority) -> TlsFiles:
    return write_identity(tmp_path, "server", authority, ["127.0.0.1", "localhost"], now=datetime.now(UTC))


@contextmanager
def served(files: TlsFiles) -> Iterator[str]:
    with serving(APP, listen("127.0.0.1", 0), tls=server_tls(files.certificate, files.private_key)) as url:
        yield url


def trusting(authority: CertificateAuthority) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=authority.certificate.decode())


@contextmanager
def dial(url: str, context: ssl.SSLContext) -> Iterator[ssl.SSLSocket]:
    host, _, port = url.removeprefix("https://").partition(":")
    plain = socket.create_connection((host, int(port)), 10)
    with context.wrap_socket(plain, server_hostname=host) as line:
        yield line


def test_an_application_is_served_at_the_address_that_was_bound(
    files: TlsFiles, authority: CertificateAuthority
) -> None:
    listener = listen("127.0.0.1", 0)
    expected = url_of(listener, tls=True)

    with serving(APP, listener, tls=server_tls(files.certificate, files.private_key)) as url:
        answer = httpx.get(url, verify=trusting(authority), trust_env=False)

    assert url == expected
    assert answer.text == "hello"
    assert "server" not in answer.headers


def test_an_answer_bears_the_time_of_its_request_however_long_its_server_has_slept(
    files: TlsFiles, authority: CertificateAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    an_hour_on = time.time() + 3600

    with served(files) as url, httpx.Client(verify=trusting(authority), trust_env=False) as client:
        first = parsedate_to_datetime(client.get(url).headers["date"])
        monkeypatch.setattr(module, "time", SimpleNamespace(time=lambda: an_hour_on))
        later = parsedate_to_datetime(client.get(url).headers["date"])

    assert abs((datetime.now(UTC) - first).total_seconds()) < 60
    assert later == datetime.fromtimestamp(int(an_hour_on), UTC)


def test_a_server_that_is_told_to_stop_before_anybody_called_stops(files: TlsFiles) -> None:
    before = threading.active_count()

    for _ in range(20):
        with served(files):
            pass

    assert threading.active_count() == before


def test_an_answer_does_not_wait_until_its_head_is_acknowledged(
    files: TlsFiles, authority: CertificateAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    accepted: list[int] = []
    made = module._ImpatientProtocol.connection_made

    def note(protocol: module._ImpatientProtocol, transport: asyncio.Transport) -> None:
        accepted.append(transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        made(protocol, transport)

    monkeypatch.setattr(module._ImpatientProtocol, "connection_made", note)

    with served(files) as url:
        httpx.get(url, verify=trusting(authority), trust_env=False)

    assert accepted == [1]


def test_tls_1_2_is_refused(files: TlsFiles, authority: CertificateAuthority) -> None:
    old = trusting(authority)
    old.maximum_version = ssl.TLSVersion.TLSv1_2

    with served(files) as url, pytest.raises(ssl.SSLError), dial(url, old):
        pass


def test_strict_clients_accept_the_certificates(files: TlsFiles, authority: CertificateAuthority) -> None:
    strict = trusting(authority)
    strict.verify_flags |= ssl.VERIFY_X509_STRICT

    with served(files) as url, dial(url, strict) as line:
        assert line.version() == "TLSv1.3"


def test_a_taken_port_is_an_error_at_once() -> None:
    with listen("127.0.0.1", 0) as taken, pytest.raises(BadSettings, match="cannot listen"):
        listen("127.0.0.1", taken.getsockname()[1])


def test_a_certificate_that_is_missing_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match="absent"):
        server_tls(tmp_path / "absent.crt", tmp_path / "absent.key")


class Failing:
    """A lifespan that fails as it begins."""

    async def __aenter__(self) -> None:
        raise ZeroDivisionError

    async def __aexit__(self, *_: object) -> None:
        pass


def test_an_application_that_cannot_start_is_an_error(files: TlsFiles) -> None:
    app = Starlette(lifespan=lambda _app: Failing())
    tls = server_tls(files.certificate, files.private_key)

    with pytest.raises(BadSettings, match="did not start"), serving(app, listen("127.0.0.1", 0), tls=tls):
        pass


# ------------------------------------------------------------------ dawdlers


def read_until(line: socket.socket, end: bytes) -> None:
    """Returns when the answer ended so."""
    seen = b""
    while not seen.endswith(end):
        piece = line.recv(4096)
        assert piece, seen
        seen += piece


def is_cut_off(line: socket.socket) -> bool:
    """Whether the other side ends the line within ten seconds, whatever it still sends."""
    line.settimeout(10)
    try:
        while line.recv(65536):
            pass
    except ConnectionError:
        return True
    return True


def test_what_is_no_http_is_refused_in_the_place_of_a_second_request_too(
    files: TlsFiles, authority: CertificateAuthority
) -> None:
    with served(files) as url, dial(url, trusting(authority)) as line:
        line.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        read_until(line, b"hello")
        line.sendall(b"no HTTP\r\n\r\n")
        told = b"".join(iter(lambda: line.recv(4096), b""))

    assert told.startswith(b"HTTP/1.1 400 ")
    assert b"application/problem+json" in told
    assert b'"code":"bad-http"' in told


def test_a_body_that_turns_into_no_http_ends_an_answer_that_has_begun(
    files: TlsFiles, authority: CertificateAuthority
) -> None:
    with served(files) as url, dial(url, trusting(authority)) as line:
        line.sendall(b"GET /endless HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        read_until(line, b"xxx")
        line.sendall(b"no length\r\n")
        assert is_cut_off(line)


def test_a_request_head_that_drips_is_cut_off(
    files: TlsFiles, authority: CertificateAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HEAD_S", 0.3)

    with served(files) as url, dial(url, trusting(authority)) as line:
        line.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX: ")
        assert is_cut_off(line)


def test_a_second_request_head_that_drips_is_cut_off_too(
    files: TlsFiles, authority: CertificateAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HEAD_S", 0.3)

    with served(files) as url, dial(url, trusting(authority)) as line:
        line.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        read_until(line, b"hello")
        line.sendall(b"G")
        assert is_cut_off(line)


def test_a_request_that_takes_long_to_answer_is_not_cut_off(
    files: TlsFiles, authority: CertificateAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HEAD_S", 0.2)
    began.clear()
    may_end.clear()

    with served(files) as url, dial(url, trusting(authority)) as line:
        line.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        assert began.wait(10)
        may_end.wait(0.6)  # longer than a head may take
        may_end.set()
        read_until(line, b"done")


def test_a_reader_that_takes_nothing_is_cut_off(
    files: TlsFiles, authority: CertificateAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STALL_S", 0.5)

    with served(files) as url, dial(url, trusting(authority)) as line:
        line.sendall(b"GET /endless HTTP/1.1\r\nHost: x\r\n\r\n")
        threading.Event().wait(1.5)  # read nothing meanwhile
        assert is_cut_off(line)


# ------------------------------------------------------------------ the stop


def test_a_stop_waits_for_the_request_under_way(files: TlsFiles, authority: CertificateAuthority) -> None:
    began.clear()
    may_end.clear()
    answers: list[str] = []

    def ask(url: str) -> None:
        answers.append(httpx.get(f"{url}/slow", verify=trusting(authority), trust_env=False, timeout=20).text)

    with served(files) as url:
        asking = threading.Thread(target=ask, args=(url,))
        asking.start()
        assert began.wait(10)
        threading.Timer(0.3, may_end.set).start()
    asking.join()

    assert answers == ["done"]


def test_an_upload_that_dawdles_does_not_hold_up_the_stop(
    files: TlsFiles, authority: CertificateAuthority
) -> None:
    uploading.clear()
    with ExitStack() as lines, served(files) as url:  # the line outlives the server
        line = lines.enter_context(dial(url, trusting(authority)))
        line.sendall(b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nsome of it")
        assert uploading.wait(10)
        began_s = time.monotonic()
    took_s = time.monotonic() - began_s

    assert took_s < module.STOP_S / 2


def test_an_upload_that_is_whole_in_time_is_answered_before_the_stop(
    files: TlsFiles, authority: CertificateAuthority
) -> None:
    uploading.clear()
    answer: list[bytes] = []

    def upload(url: str) -> None:
        with dial(url, trusting(authority)) as line:
            line.sendall(b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nfirst")
            stopping.wait(10)
            line.sendall(b"other")
            answer.append(b"".join(iter(lambda: line.recv(4096), b"")))

    stopping = threading.Event()
    with served(files) as url:
        sender = threading.Thread(target=upload, args=(url,))
        sender.start()
        assert uploading.wait(10)
        threading.Timer(0.3, stopping.set).start()  # the server stops meanwhile
    sender.join(20)

    assert answer[0].endswith(b"10 bytes")


def test_an_idle_connection_does_not_hold_up_the_stop(
    files: TlsFiles, authority: CertificateAuthority
) -> None:
    with served(files) as url, dial(url, trusting(authority)) as line:
        line.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        read_until(line, b"hello")
        stopped = threading.Event()
        threading.Timer(module.STOP_S / 2, lambda: None if stopped.is_set() else line.close()).start()
    stopped.set()


def test_a_process_that_is_told_to_end_ends_in_order(tmp_path: Path) -> None:
    program = (
        "import signal, threading, time\n"
        "from agent.api.serving import wait_for_signal\n"
        "def tell():\n"
        "    while signal.getsignal(signal.SIGTERM) is signal.SIG_DFL: time.sleep(0.001)\n"
        "    print('waiting', flush=True)\n"
        "threading.Thread(target=tell).start()\n"
        "print(wait_for_signal().name, flush=True)"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"

    process.terminate()

    assert process.communicate(timeout=20)[0] == "SIGTERM\n"
    assert process.returncode == 0


# ------------------------------------------------------------------ the Unix socket


def test_a_unix_socket_has_the_mode_it_was_given_and_is_gone_after(tmp_path: Path) -> None:
    path = tmp_path / "operator.sock"

    with serving(APP, listen_unix(path, 0o660), tls=None):
        mode = stat.S_IMODE(path.stat().st_mode)
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://operator") as client:
            answer = client.get("/")

    assert mode == 0o660
    assert answer.text == "hello"
    assert not path.exists()


def test_a_socket_that_a_killed_process_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "operator.sock"
    listen_unix(path, 0o600).close()

    with listen_unix(path, 0o600):
        assert path.is_socket()


def test_a_file_that_is_no_socket_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "operator.sock"
    path.write_text("precious")

    with pytest.raises(BadSettings):
        listen_unix(path, 0o600)

    assert path.read_text() == "precious"
