"""The status page's own address: who lost the right to read it by a reload does not get in by what the server gave before."""

import socket
import ssl
from pathlib import Path

import pytest
import trustme
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from agent.api.serving import ServedTls, listen, mutual_tls, serving


def _page(_request: Request) -> Response:
    return PlainTextResponse("the page")


APP = Starlette(routes=[Route("/", _page)])


def _read(port: int, context: ssl.SSLContext, session: ssl.SSLSession | None = None) -> ssl.SSLSession | None:
    """Read the page; gives the session by which a client may come again. Raises: OSError for who is not let in."""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=5) as raw,
        context.wrap_socket(raw, server_hostname="localhost", session=session) as tls,
    ):
        tls.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answer = b""
        while piece := tls.recv(4096):
            answer += piece
        if not answer.endswith(b"the page"):
            raise ConnectionError(answer)
        return tls.session


def test_a_reader_whose_authority_went_by_a_reload_does_not_come_again(tmp_path: Path) -> None:
    ours, theirs = trustme.CA(), trustme.CA()
    server, reader = ours.issue_cert("localhost"), theirs.issue_cert("reader@there.test")
    (tmp_path / "tls.crt").write_bytes(server.cert_chain_pems[0].bytes())
    (tmp_path / "tls.key").write_bytes(server.private_key_pem.bytes())
    (tmp_path / "ca.crt").write_bytes(ours.cert_pem.bytes() + theirs.cert_pem.bytes())
    door = ServedTls(lambda: mutual_tls(tmp_path / "tls.crt", tmp_path / "tls.key", tmp_path / "ca.crt"))
    client = ssl.create_default_context()
    ours.configure_trust(client)
    reader.configure_cert(client)

    with serving(APP, listen("127.0.0.1", 0), tls=door.context) as url:
        port = int(url.rpartition(":")[2])
        session = _read(port, client)
        (tmp_path / "ca.crt").write_bytes(ours.cert_pem.bytes())
        door.exchange(door.read())

        with pytest.raises((ssl.SSLError, ConnectionError)):
            _read(port, client)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            _read(port, client, session)
