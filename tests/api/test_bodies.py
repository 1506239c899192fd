"""Bodies that no honest caller sends, over real HTTPS: each is refused with a code, and the process goes on answering."""

import json
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import hypothesis
import pytest
import schemathesis

from agent.api import events
from agent.api.openapi import describe
from agent.api.routes import ORDER_BODY, TABLE
from agent.api.serving import listen, server_tls, serving
from agent.domain.strict_json import encode
from agent.trust.certificates import CertificateAuthority
from tests.api.house import House, open_house, signed_headers

NAME = "agent-a.test"
GIB = 1 << 30
PATIENCE_S = 20.0


@dataclass
class Open:
    """The agent of a house, listening: at `network` by HTTPS; at `operator`, and the network's door at `plain`, by HTTP."""

    house: House
    network: str
    operator: str
    plain: str
    authority_file: Path

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.network.removeprefix("https://").rpartition(":")
        return host, int(port)

    def tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.authority_file)

    def is_alive(self) -> bool:
        """Whether it still answers a new connection."""
        answer = httpx.get(f"{self.network}/health", verify=self.tls(), trust_env=False)
        return answer.status_code == 200


@pytest.fixture(scope="module", autouse=True)
def short_streams() -> Iterator[None]:
    """A stream ends by itself: who sends by chance reads whole answers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(events, "STREAM_S", 0.05)
        yield


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Open]:
    folder = tmp_path_factory.mktemp("agent")
    house = open_house(folder)
    authority = CertificateAuthority("test", now=datetime.now(UTC))
    identity = authority.server([NAME, "127.0.0.1"], now=datetime.now(UTC))
    (folder / "tls.crt").write_bytes(identity.certificate)
    (folder / "tls.key").write_bytes(identity.private_key)
    (folder / "ca.crt").write_bytes(authority.certificate)
    with ExitStack() as doors:
        tls = server_tls(folder / "tls.crt", folder / "tls.key")
        network = doors.enter_context(serving(house.network.app, listen("127.0.0.1", 0), tls=tls))
        operator = doors.enter_context(serving(house.operator.app, listen("127.0.0.1", 0), tls=None))
        plain = doors.enter_context(serving(house.network.app, listen("127.0.0.1", 0), tls=None))
        yield Open(house, network, operator, plain, folder / "ca.crt")


def answer_to(
    agent: Open, head: str, body: Callable[[ssl.SSLSocket], None] = lambda _: None
) -> tuple[int, str]:
    """(status, code) of the answer to a request written by hand. `body` writes what follows the head, as far as it is taken."""
    with (
        socket.create_connection(agent.address, timeout=PATIENCE_S) as plain,
        agent.tls().wrap_socket(plain, server_hostname=NAME) as connection,
    ):
        connection.sendall(head.replace("\n", "\r\n").encode() + b"\r\n\r\n")
        with suppress(OSError):  # cut off: the answer is there already
            body(connection)
        return read_answer(connection)


def read_answer(connection: ssl.SSLSocket) -> tuple[int, str]:
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536) or pytest.fail(f"no answer, only {data!r}")
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
    )
    while len(body) < length:
        body += connection.recv(65536) or pytest.fail(f"half an answer: {head!r}")
    return int(head.split(b" ")[1]), json.loads(body)["code"]


def signed_post(agent: Open, body: bytes, path: str = "/v1/learnuplets") -> httpx.Response:
    """These bytes as o1 would send them: rightly signed, whatever they are."""
    key = agent.house.world.agent("b") if path == "/v1/handoffs" else agent.house.world.orchestrator
    headers = signed_headers(key, "POST", path, body, now=agent.house.clock())
    return httpx.post(
        f"{agent.network}{path}", content=body, headers=headers, verify=agent.tls(), trust_env=False
    )


# ------------------------------------------------------------------ bodies by a known caller

BODIES = {
    "100,000 nested arrays": b"[" * 100_000,
    "100,000 nested objects": b'{"a":' * 100_000,
    "duplicate keys": b'{"payloadType": "a", "payloadType": "b", "payload": "", "signatures": []}',
    "NaN": b'{"payloadType": NaN, "payload": "", "signatures": []}',
    "Infinity": b"[-Infinity]",
    "a number too large": b'{"payload": 1e999}',
    "invalid UTF-8": b'{"payload": "\xff\xfe"}',
    "a lone surrogate": b'{"payload": "\\ud800"}',
    "UTF-16": '{"payload": ""}'.encode("utf-16"),
    "a byte order mark": b"\xef\xbb\xbf{}",
    "nothing": b"",
    "a string": b'"order"',
    "null": b"null",
    "a list": b"[]",
    "an integer of a million digits": b"9" * 1_000_000,
    "half a document": b'{"payload": "',
    "zeros": b"\0" * 1000,
}


@pytest.mark.parametrize("path", ["/v1/learnuplets", "/v1/preduplets", "/v1/handoffs"])
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_malformed_body_is_refused_with_a_code(agent: Open, path: str, body: bytes) -> None:
    answer = signed_post(agent, body, path)

    assert answer.status_code in {400, 422}
    assert answer.json()["code"] in {"bad-json", "bad-envelope"}
    assert agent.is_alive()


def test_an_order_of_a_million_brackets_inside_its_payload_is_refused(agent: Open) -> None:
    import base64

    payload = base64.b64encode(b"[" * 700_000).decode()
    envelope = {
        "payloadType": "application/vnd.dc-compute.learnuplet.v1+json",
        "payload": payload,
        "signatures": [{"keyid": agent.house.world.orchestrator.keyid, "sig": "A" * 86 + "=="}],
    }

    answer = signed_post(agent, encode(envelope))

    assert (answer.status_code, answer.json()["code"]) == (401, "bad-signature")


# ------------------------------------------------------------------ bodies by anybody


def stream_zeros(count: int) -> Callable[[ssl.SSLSocket], None]:
    """Writes so many zeros, until it is cut off."""

    def body(connection: ssl.SSLSocket) -> None:
        piece = bytes(1 << 20)
        for _ in range(count // len(piece)):
            connection.sendall(piece)

    return body


def chunked_zeros(count: int) -> Callable[[ssl.SSLSocket], None]:
    """The same in chunks, without having told how many."""

    def body(connection: ssl.SSLSocket) -> None:
        piece = b"100000\r\n" + bytes(1 << 20) + b"\r\n"
        for _ in range(count >> 20):
            connection.sendall(piece)
        connection.sendall(b"0\r\n\r\n")

    return body


def post_head(*lines: str, path: str = "/v1/learnuplets") -> str:
    return "\n".join(
        (f"POST {path} HTTP/1.1", f"Host: {NAME}:8440", "Content-Type: application/json", *lines)
    )


def test_a_gibibyte_is_refused_by_its_announced_length(agent: Open) -> None:
    answer = answer_to(agent, post_head(f"Content-Length: {GIB}"))

    assert answer == (413, "too-large")


def test_a_gibibyte_of_zeros_is_refused_before_it_is_read(agent: Open) -> None:
    before = resident_bytes()

    answer = answer_to(agent, post_head(f"Content-Length: {GIB}"), stream_zeros(64 << 20))

    assert answer == (413, "too-large")
    assert resident_bytes() - before < 64 << 20
    assert agent.is_alive()


def test_a_gibibyte_without_a_length_is_refused(agent: Open) -> None:
    before = resident_bytes()

    answer = answer_to(agent, post_head("Transfer-Encoding: chunked"), chunked_zeros(64 << 20))

    assert answer == (401, "unsigned-request")
    assert resident_bytes() - before < 64 << 20
    assert agent.is_alive()


def test_a_signed_body_that_is_longer_than_it_was_announced_is_not_read_on(agent: Open) -> None:
    key, body = agent.house.world.orchestrator, b"{}"
    fields = signed_headers(key, "POST", "/v1/learnuplets", body, now=agent.house.clock())
    head = "\n".join(
        ("POST /v1/learnuplets HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()))
    )

    answer = answer_to(agent, head, lambda connection: connection.sendall(b"{}" + b"x" * 1000))

    assert answer[0] in {400, 422}
    assert agent.is_alive()


@pytest.mark.parametrize(
    "lines",
    [
        ("Content-Length: -1",),
        ("Content-Length: many",),
        ("Content-Length: 5", "Content-Length: 6"),
        ("Content-Length: 5", "Transfer-Encoding: chunked"),
        ("Transfer-Encoding: gzip",),
        ("Content-Length: 99999999999999999999999999",),
    ],
    ids=", ".join,
)
def test_a_length_that_makes_no_sense_is_no_server_error(agent: Open, lines: tuple[str, ...]) -> None:
    with (
        socket.create_connection(agent.address, timeout=PATIENCE_S) as plain,
        agent.tls().wrap_socket(plain, server_hostname=NAME) as connection,
    ):
        connection.sendall(post_head(*lines).replace("\n", "\r\n").encode() + b"\r\n\r\n")
        status = connection.recv(65536).split(b" ")[1]

    assert status.startswith(b"4")
    assert agent.is_alive()


def test_another_media_type_is_refused_before_anything_else(agent: Open) -> None:
    head = post_head("Content-Length: 2").replace("application/json", "text/plain")

    assert answer_to(agent, head, lambda connection: connection.sendall(b"{}")) == (415, "wrong-media-type")


@pytest.mark.parametrize("host", ["[", "a b", "a@b", "a/b", "\x7f", "x" * 3000])
def test_a_strange_host_is_no_server_error(agent: Open, host: str) -> None:
    for path in ("/nowhere", "/v1/orders", "/health"):
        with (
            socket.create_connection(agent.address, timeout=PATIENCE_S) as plain,
            agent.tls().wrap_socket(plain, server_hostname=NAME) as connection,
        ):
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            status = int(connection.recv(65536).split(b" ")[1])

        assert status < 500


def test_the_operator_s_door_has_the_same_limits(agent: Open) -> None:
    def zeros() -> Iterator[bytes]:
        for _ in range(64):
            yield bytes(1 << 20)

    answer = httpx.post(
        f"{agent.operator}/v1/learnuplets",
        content=zeros(),
        headers={"content-type": "application/json"},
        trust_env=False,
    )

    assert (answer.status_code, answer.json()["code"]) == (413, "too-large")
    assert ORDER_BODY < 2 << 20


def resident_bytes() -> int:
    """What this process, the agent in it, holds in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


# ------------------------------------------------------------------ bodies and queries by chance

SCHEMA = schemathesis.openapi.from_dict(describe(TABLE))


def assert_no_fault(case: schemathesis.Case[Any], answer: schemathesis.Response) -> None:
    """No answer but one that the document foresees: /ready says 503 once chance has called a drain."""
    assert answer.status_code < 500 or str(answer.status_code) in case.operation.definition.raw["responses"]
    assert answer.status_code != 500


@SCHEMA.parametrize()
@hypothesis.settings(max_examples=8, suppress_health_check=list(hypothesis.HealthCheck))
def test_nothing_that_a_stranger_sends_is_a_server_error(agent: Open, case: schemathesis.Case[Any]) -> None:
    answer = case.call(base_url=agent.plain, timeout=PATIENCE_S)

    assert_no_fault(case, answer)


@SCHEMA.parametrize()
@hypothesis.settings(max_examples=8, suppress_health_check=list(hypothesis.HealthCheck))
def test_nothing_that_the_operator_sends_is_a_server_error(agent: Open, case: schemathesis.Case[Any]) -> None:
    answer = case.call(base_url=agent.operator, timeout=PATIENCE_S)

    assert_no_fault(case, answer)
