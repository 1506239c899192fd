"""Who gets in, what of a body is taken, and which answers are signed; over real TLS."""

import asyncio
import errno
import json
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.responses import Response
from starlette.routing import Route

from agent.api import bodies
from agent.api.claims import Claims
from agent.api.problems import json_answer, problem_app
from agent.api.serving import listen, server_tls, serving, url_of
from agent.api.signed_requests import Call, Guard, Upload, signed, uploaded
from agent.devkit.certificates import write_identity
from agent.domain.backups import signed_after
from agent.domain.ids import KeyId, digest_of
from agent.errors import AgentError, BadOrder, LedgerUnavailable, StaleRequest
from agent.trust.certificates import CertificateAuthority
from agent.trust.http_signatures import (
    ContentDigest,
    HttpAnswer,
    HttpRequest,
    check_body,
    content_digest,
    sign_request,
    verify_answer,
    verify_request,
)
from agent.trust.roster import Role, Roster
from tests.builders import NOW, SKEW, changed, consortium, key_of
from tests.fakes.ledger import MemoryLedger

LIMIT = 1000
UPLOAD_LIMIT = 8 << 20
BODY = b'{"a": 1}'
SECOND = timedelta(seconds=1)
RESTORED = NOW - 10 * SECOND


@dataclass
class Server:
    """A small server that says back what it was told."""

    url: str
    tls_ca: str
    roster: Roster
    folder: Path
    ledger: MemoryLedger = field(default_factory=MemoryLedger)
    moments: Iterator[datetime] = field(
        default_factory=lambda: repeat(NOW)
    )  # what its clock says, look by look
    refusals: list[tuple[str, KeyId | None]] = field(default_factory=list)
    handled: list[str] = field(default_factory=list)

    def note(self, error: AgentError, _method: str, _path: str, who: KeyId | None) -> None:
        self.refusals.append((error.code, who))

    def echo(self, call: Call) -> Response:
        self.handled.append("echo")
        return json_answer({"who": call.caller.keyid, "body": call.body.decode(), "query": call.query("q")})

    def refuse(self, call: Call) -> Response:
        raise BadOrder("not this one")

    def record_and_fail(self, call: Call) -> Response:
        self.ledger.remember_nonce(call.caller.keyid, call.caller.nonce, call.caller.expires + SKEW, NOW)
        raise LedgerUnavailable("not for the rest of it")

    def crash(self, call: Call) -> Response:
        raise ZeroDivisionError("the password is hunter2")

    def keep(self, upload: Upload) -> Response:
        content = upload.file.read_bytes()
        self.handled.append("upload")
        return json_answer({"digest": upload.digest, "size": upload.size_bytes, "seen": digest_of(content)})

    @property
    def left_over(self) -> list[Path]:
        return list(self.folder.iterdir())


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    authority = CertificateAuthority("test", now=datetime.now(UTC))
    files = write_identity(tmp_path / "tls", "server", authority, ["127.0.0.1"], now=datetime.now(UTC))
    listener = listen("127.0.0.1", 0)
    url = url_of(listener, tls=True)
    folder = tmp_path / "incoming"
    folder.mkdir()
    server = Server(url, authority.certificate.decode(), consortium().roster, folder)
    guard = Guard(
        lambda: server.roster,
        lambda: {url.removeprefix("https://")},
        key_of("agent-b"),
        lambda: next(server.moments),
        SKEW,
        server.ledger.remember_nonce,
        server.note,
    )
    restored = replace(guard, signed_after=RESTORED)
    claiming = replace(guard, claims=Claims(server.ledger.knows_nonce, server.ledger.remember_nonce))
    app = problem_app(
        [
            Route(
                "/echo",
                signed(server.echo, guard, limit_bytes=LIMIT, signs_answer=True),
                methods=["GET", "POST"],
            ),
            Route(
                "/kept", signed(server.echo, claiming, limit_bytes=LIMIT, keeps_nonce=True), methods=["POST"]
            ),
            Route("/plain", signed(server.echo, guard, limit_bytes=LIMIT), methods=["POST"]),
            Route("/agents", signed(server.echo, guard, roles=(Role.AGENT,), signs_answer=True)),
            Route(
                "/failing",
                signed(server.record_and_fail, claiming, limit_bytes=LIMIT, keeps_nonce=True),
                methods=["POST"],
            ),
            Route("/refuse", signed(server.refuse, guard, signs_answer=True)),
            Route("/crash", signed(server.crash, guard)),
            Route("/restored", signed(server.echo, restored, signs_answer=True)),
            Route(
                "/upload",
                uploaded(server.keep, guard, folder=folder, limit_bytes=UPLOAD_LIMIT),
                methods=["PUT"],
            ),
        ]
    )
    with serving(app, listener, tls=server_tls(files.certificate, files.private_key)):
        yield server


def prepared(
    server: Server,
    method: str,
    target: str,
    body: bytes | None = None,
    *,
    key: str = "agent-a",
    now: datetime = NOW,
    url: str | None = None,
    **changes: str,
) -> httpx.Request:
    """A signed request. `changes`: fields that replace what is signed; `url`: what the signature says it is for."""
    fields = {}
    if body is not None:
        kind = "application/octet-stream" if method == "PUT" else "application/json"
        fields = {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Content-Digest": content_digest(body),
        }
    fields |= {name.replace("_", "-"): value for name, value in changes.items()}
    told = HttpRequest(method, (url or server.url) + target, tuple(fields.items()))
    fields |= sign_request(told, key_of(key), now=now, has_body=body is not None)
    return httpx.Request(method, server.url + target, headers=fields, content=body)


def send(server: Server, request: httpx.Request) -> httpx.Response:
    with httpx.Client(verify=ssl.create_default_context(cadata=server.tls_ca), trust_env=False) as client:
        return client.send(request)


def code_of(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


def verify(server: Server, request: httpx.Request, answer: httpx.Response) -> None:
    sent = HttpRequest(request.method, str(request.url), tuple(request.headers.multi_items()))
    verified = verify_answer(
        HttpAnswer(answer.status_code, tuple(answer.headers.multi_items())),
        sent,
        server.roster,
        expected=key_of("agent-b").keyid,
        now=NOW,
        skew=SKEW,
    )
    digest = ContentDigest()
    digest.update(answer.content)
    check_body(verified, digest)


# ------------------------------------------------------------------ after a restore


@pytest.mark.parametrize("age", [SKEW + 2 * SECOND, SECOND, timedelta(0)])
def test_a_request_that_the_lost_ledger_may_have_known_is_refused_for_now(
    server: Server, age: timedelta
) -> None:
    request = prepared(server, "GET", "/restored", now=RESTORED - age)

    answer = send(server, request)

    assert code_of(answer) == (503, "just-restored")
    assert "Retry-After" in answer.headers
    verify(server, request, answer)
    assert server.handled == []


def test_what_was_signed_after_that_is_taken_once(server: Server) -> None:
    request = prepared(server, "GET", "/restored", now=RESTORED + SECOND)

    assert send(server, request).status_code == 200
    assert code_of(send(server, request)) == (401, "replayed-request")


@given(
    offset=st.integers(-30, 30),
    taken=st.integers(0, 10_000),
    skew=st.integers(0, 30),
    late=st.integers(0, 200),
)
def test_no_request_that_was_ever_taken_before_a_restore_is_taken_after_it(
    offset: int, taken: int, skew: int, late: int
) -> None:
    at, allowed = NOW + taken * SECOND, timedelta(seconds=skew)
    request = HttpRequest("GET", "https://here.test/x", ())
    sender_clock = at + offset * SECOND
    fields = sign_request(request, key_of("agent-a"), now=sender_clock, has_body=False)
    signed_then = HttpRequest("GET", request.url, tuple(fields.items()))
    roster = consortium().roster
    try:
        then = verify_request(signed_then, roster, now=at, skew=allowed, authorities={"here.test"})
    except StaleRequest:
        return

    assert then.created <= signed_after(at + late * SECOND, NOW, allowed)


# ------------------------------------------------------------------ who gets in


def test_a_signed_request_reaches_its_handler(server: Server) -> None:
    answer = send(server, prepared(server, "POST", "/echo?q=x%20y", BODY))

    assert answer.status_code == 200
    assert answer.json() == {"who": key_of("agent-a").keyid, "body": BODY.decode(), "query": "x y"}


def test_a_request_without_a_body_needs_no_digest(server: Server) -> None:
    assert send(server, prepared(server, "GET", "/echo")).status_code == 200


def test_an_unsigned_request_is_refused_as_such(server: Server) -> None:
    answer = send(server, httpx.Request("GET", server.url + "/echo"))

    assert code_of(answer) == (401, "unsigned-request")
    assert server.handled == []


def test_an_unknown_key_is_refused(server: Server) -> None:
    assert code_of(send(server, prepared(server, "GET", "/echo", key="nobody"))) == (401, "unknown-key")


def test_a_key_that_was_revoked_meanwhile_is_refused(server: Server) -> None:
    send(server, prepared(server, "GET", "/echo"))
    server.roster = changed(server.roster, key_of("agent-a").keyid, revoked_at=NOW)

    assert code_of(send(server, prepared(server, "GET", "/echo"))) == (403, "key-not-valid")


@pytest.mark.parametrize("minutes", [-5, 5])
def test_an_old_or_future_signature_is_refused(server: Server, minutes: int) -> None:
    request = prepared(server, "GET", "/echo", now=NOW + timedelta(minutes=minutes))

    assert code_of(send(server, request)) == (401, "stale-request")


def test_a_request_for_another_host_is_refused(server: Server) -> None:
    request = prepared(server, "GET", "/echo", url="https://elsewhere.test")
    request.headers["host"] = "elsewhere.test"

    assert code_of(send(server, request)) == (401, "bad-request-signature")


@pytest.mark.parametrize(
    "host", ["", "a b", "x:99999", "[::1", "user@host", "a.test/x", "a.test?x", "a.test#", "a.test\\"]
)
def test_a_host_that_is_none_is_refused(server: Server, host: str) -> None:
    request = prepared(server, "GET", "/echo")
    request.headers["host"] = host

    assert 400 <= send(server, request).status_code < 500


@pytest.mark.parametrize("behind", ["/echo#", "/echo?", "/echo?x=", "#", "?"])
def test_a_host_that_brings_its_own_path_is_refused(server: Server, behind: str) -> None:
    request = prepared(server, "GET", "/echo")
    request.headers["host"] += behind

    assert code_of(send(server, request)) == (401, "bad-request-signature")


@pytest.mark.parametrize("target", ["/echo#", "/echo?x#", "https://elsewhere.test/echo"])
def test_a_target_that_is_no_path_with_a_query_is_refused(server: Server, target: str) -> None:
    """Written to the line as it is: a client would take the fragment away."""
    head = head_of(prepared(server, "GET", "/echo")).replace(b" /echo ", f" {target} ".encode(), 1)

    with dial(server) as line:
        line.sendall(head)
        answer = line.recv(4096)

    assert answer.startswith((b"HTTP/1.1 401 ", b"HTTP/1.1 404 "))
    assert server.handled == []


def test_the_same_request_twice_is_refused(server: Server) -> None:
    request = prepared(server, "POST", "/echo", BODY)

    assert send(server, request).status_code == 200
    assert code_of(send(server, request)) == (401, "replayed-request")
    assert server.handled == ["echo"]


def test_what_fails_after_the_nonce_was_recorded_is_told_as_what_it_is(server: Server) -> None:
    request = prepared(server, "POST", "/failing", BODY)

    assert code_of(send(server, request)) == (503, "ledger-unavailable")  # 401, signed, would be final
    assert code_of(send(server, request)) == (401, "replayed-request")


@pytest.mark.parametrize("target", ["/echo", "/kept"])
def test_the_same_request_again_while_its_time_runs_out_is_refused(server: Server, target: str) -> None:
    request = prepared(server, "POST", target, BODY)  # for 60 s
    assert send(server, request).status_code == 200

    last = NOW + timedelta(seconds=60) + SKEW - timedelta(microseconds=1)
    server.moments = chain([last], repeat(last + 2 * SECOND))

    assert code_of(send(server, request)) == (401, "replayed-request")
    assert server.handled == ["echo"]


@pytest.mark.parametrize(("method", "target"), [("POST", "/plain"), ("GET", "/echo?q=1"), ("GET", "/agents")])
def test_a_signature_for_another_call_is_refused(server: Server, method: str, target: str) -> None:
    request = prepared(server, "GET", "/echo")
    moved = httpx.Request(method, server.url + target, headers=request.headers)

    assert code_of(send(server, moved)) == (401, "bad-request-signature")


def test_a_role_that_the_route_does_not_admit_is_refused(server: Server) -> None:
    assert code_of(send(server, prepared(server, "GET", "/agents", key="o1"))) == (403, "wrong-role")


def test_a_refusal_is_told_with_its_caller_once_it_is_known(server: Server) -> None:
    send(server, httpx.Request("GET", server.url + "/echo"))
    send(server, prepared(server, "GET", "/refuse"))

    assert server.refusals == [("unsigned-request", None), ("bad-order", key_of("agent-a").keyid)]


# ------------------------------------------------------------------ bodies in memory


def test_a_body_that_is_not_the_signed_one_is_refused(server: Server) -> None:
    request = prepared(server, "POST", "/echo", BODY)
    other = httpx.Request("POST", request.url, headers=request.headers, content=BODY.replace(b"1", b"2"))

    assert code_of(send(server, other)) == (400, "digest-mismatch")
    assert server.handled == []


def test_a_body_of_another_type_is_refused(server: Server) -> None:
    request = prepared(server, "POST", "/echo", BODY, Content_Type="text/plain")

    assert code_of(send(server, request)) == (415, "wrong-media-type")


def test_a_body_over_the_limit_is_refused_by_its_length_alone(server: Server) -> None:
    request = prepared(server, "POST", "/echo", b"x" * (LIMIT + 1))

    with dial(server) as line:
        line.sendall(head_of(request))
        answer = line.recv(4096)

    assert answer.startswith(b"HTTP/1.1 413 ")


def test_a_body_where_none_is_taken_is_refused(server: Server) -> None:
    request = prepared(server, "GET", "/agents", BODY)

    assert code_of(send(server, request)) == (413, "too-large")


def test_a_body_without_a_length_is_refused(server: Server) -> None:
    request = prepared(server, "POST", "/echo", BODY)
    del request.headers["content-length"]
    chunked = httpx.Request("POST", request.url, headers=request.headers, content=iter([BODY]))

    assert 400 <= send(server, chunked).status_code < 500
    assert server.handled == []


def dial(server: Server) -> ssl.SSLSocket:
    """A bare TLS line to the server."""
    host, _, port = server.url.removeprefix("https://").partition(":")
    context = ssl.create_default_context(cadata=server.tls_ca)
    return context.wrap_socket(socket.create_connection((host, int(port)), 10), server_hostname=host)


def head_of(request: httpx.Request) -> bytes:
    lines = [f"{request.method} {request.url.raw_path.decode()} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in request.headers.multi_items()]
    return "\r\n".join([*lines, "", ""]).encode()


def test_nothing_of_a_strangers_body_is_awaited(server: Server) -> None:
    request = prepared(server, "PUT", "/upload", b"x" * (4 << 20), key="nobody")

    with dial(server) as line:
        line.sendall(head_of(request))
        answer = line.recv(4096)

    assert answer.startswith(b"HTTP/1.1 401 ")
    assert server.left_over == []


def test_a_body_that_does_not_arrive_is_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "BODY_S", 0.2)
    request = prepared(server, "POST", "/echo", BODY)

    with dial(server) as line:
        line.sendall(head_of(request) + BODY[:-1])
        answer = line.recv(4096)

    assert answer.startswith(b"HTTP/1.1 408 ")


# ------------------------------------------------------------------ bodies in files


def test_an_upload_lies_whole_in_a_file_while_it_is_handled_and_is_gone_after(server: Server) -> None:
    content = bytes(range(256)) * 20_000  # 5 MB

    answer = send(server, prepared(server, "PUT", "/upload", content))

    assert answer.json() == {"digest": digest_of(content), "size": len(content), "seen": digest_of(content)}
    assert server.left_over == []


def test_an_upload_that_comes_in_one_piece_with_its_head_is_taken_like_any_other(server: Server) -> None:
    content = b"small"
    request = prepared(server, "PUT", "/upload", content)

    with dial(server) as line:
        line.sendall(head_of(request) + content)  # one record of TLS
        answer = line.recv(4096)

    assert answer.startswith(b"HTTP/1.1 200 ")
    assert server.handled == ["upload"]


def test_an_upload_of_other_bytes_is_refused_and_leaves_nothing(server: Server) -> None:
    request = prepared(server, "PUT", "/upload", b"x" * 100_000)
    other = httpx.Request("PUT", request.url, headers=request.headers, content=b"y" * 100_000)

    assert code_of(send(server, other)) == (400, "digest-mismatch")
    assert server.handled == []
    assert server.left_over == []


def test_an_upload_over_the_limit_is_refused(server: Server) -> None:
    request = prepared(server, "PUT", "/upload", b"x" * (UPLOAD_LIMIT + 1))

    assert code_of(send(server, request)) == (413, "too-large")


def test_an_upload_that_breaks_off_leaves_nothing(server: Server) -> None:
    request = prepared(server, "PUT", "/upload", b"x" * (4 << 20))

    with dial(server) as line:
        line.sendall(head_of(request) + b"x" * (2 << 20))
        wait_until(lambda: server.left_over != [])
    wait_until(lambda: server.left_over == [])

    assert server.handled == []


def wait_until(is_so: Callable[[], bool]) -> None:
    """Returns when it is so; fails after ten seconds."""
    over = threading.Event()
    for _ in range(1000):
        if is_so():
            return
        over.wait(0.01)
    raise AssertionError("it did not come to pass")


def test_an_upload_that_stops_arriving_is_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "PIECE_S", 0.2)
    request = prepared(server, "PUT", "/upload", b"x" * (4 << 20))

    with dial(server) as line:
        line.sendall(head_of(request) + b"x" * (2 << 20))
        answer = line.recv(4096)

    assert answer.startswith(b"HTTP/1.1 408 ")
    assert server.left_over == []


@pytest.mark.parametrize("step", ["_take", "_flush"])
def test_an_upload_that_the_disk_does_not_take_is_refused_and_leaves_nothing(
    server: Server, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(bodies, "FLUSH_BYTES", 1 << 20)
    monkeypatch.setattr(bodies, step, full)

    answer = send(server, prepared(server, "PUT", "/upload", b"x" * (4 << 20)))

    assert code_of(answer) == (507, "no-space")
    assert server.handled == []
    assert server.left_over == []


def test_a_block_ends_when_no_thread_has_anything_of_it_in_hand_however_often_it_is_cancelled() -> None:
    may_end = threading.Event()

    async def cancelled_twice() -> None:
        has_begun = asyncio.Event()

        async def work() -> None:
            async with bodies.Behind() as behind:
                await behind.begin(may_end.wait)
                has_begun.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(work())
        await has_begun.wait()
        for _ in range(2):
            task.cancel()
            for _ in range(10):
                await asyncio.sleep(0)
            assert not task.done()
        may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled_twice())


def test_what_a_thread_raised_is_raised_by_the_next_step() -> None:
    def refuse() -> None:
        raise OSError("the disk is gone")

    async def one_after_the_other() -> None:
        async with bodies.Behind() as behind:
            await behind.begin(refuse)
            with pytest.raises(OSError, match="the disk is gone"):
                await behind.begin(refuse)
            await behind.settle()

    asyncio.run(one_after_the_other())


# ------------------------------------------------------------------ answers


def test_an_answer_is_signed_for_its_request(server: Server) -> None:
    request = prepared(server, "POST", "/echo", BODY)

    verify(server, request, send(server, request))


def test_a_refusal_of_a_known_caller_is_signed(server: Server) -> None:
    refused = [
        prepared(server, "GET", "/refuse"),
        prepared(server, "GET", "/agents", key="o1"),
        prepared(server, "POST", "/echo", b"x" * (LIMIT + 1)),
        prepared(server, "POST", "/echo", BODY, Content_Type="text/plain"),
    ]
    for request in refused:
        answer = send(server, request)

        assert 400 <= answer.status_code < 500
        verify(server, request, answer)


def test_an_answer_to_a_stranger_is_not_signed(server: Server) -> None:
    answer = send(server, prepared(server, "GET", "/echo", key="nobody"))

    assert "signature" not in answer.headers


def test_an_answer_is_not_signed_where_the_contract_does_not_ask(server: Server) -> None:
    answer = send(server, prepared(server, "POST", "/plain", BODY))

    assert answer.status_code == 200
    assert "signature" not in answer.headers


def test_a_crash_is_a_500_without_its_words_and_the_next_call_is_served(server: Server) -> None:
    answer = send(server, prepared(server, "GET", "/crash"))

    assert code_of(answer) == (500, "agent-error")
    assert "hunter2" not in answer.text
    assert send(server, prepared(server, "GET", "/echo")).status_code == 200


def test_a_problem_is_json_with_a_code(server: Server) -> None:
    told: dict[str, Any] = json.loads(send(server, httpx.Request("GET", server.url + "/echo")).content)

    assert told["docs"] == "docs/errors.md#unsigned-request"
