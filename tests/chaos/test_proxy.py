"""The proxies do to requests what their rules say, no more often than they say, and note what passed."""

import json
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from agent.devkit.certificates import write_identity
from agent.trust.certificates import CertificateAuthority
from tests.chaos.proxy import ACTS, Door, Rules
from tests.chaos.stage import write_whole

HERE = "127.77.7.7"


@dataclass
class Setting:
    """A target behind its door."""

    folder: Path
    client: httpx.Client
    url: str
    came: list[bytes] = field(default_factory=list)

    def rule(self, act: str, count: int = 1, sender: str | None = None, s: float = 0.2) -> None:
        rule = {
            "id": f"{act} {count}",
            "target": "target",
            "sender": sender,
            "act": act,
            "count": count,
            "s": s,
        }
        write_whole(self.folder / "rules.json", [rule])

    def put(self, body: bytes = b"a body", sender: str = "0" * 64) -> httpx.Response:
        return self.client.put(
            f"{self.url}/thing", content=body, headers={"signature-input": f'x=();keyid="{sender}"'}
        )

    @property
    def noted(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "log").read_text().splitlines()]


@pytest.fixture
def setting(tmp_path: Path) -> Iterator[Setting]:
    now = datetime.now(UTC)
    authority = CertificateAuthority("test", now=now)
    files = write_identity(tmp_path, "tls", authority, [HERE, "127.0.0.1"], now=now)
    came: list[bytes] = []

    class Target(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            came.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(201)
            self.send_header("Content-Length", "12")
            self.end_headers()
            self.wfile.write(b"twelve bytes")

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(files.certificate, files.private_key)
    target = HTTPServer(("127.0.0.1", 0), Target)
    target.socket = tls.wrap_socket(target.socket, server_side=True)
    write_whole(tmp_path / "rules.json", [])
    about = {
        "target": "target", "host": HERE, "port": target.server_port,
        "certificate": files.certificate, "private_key": files.private_key,
    }  # fmt: skip
    door = Door(about, Rules(tmp_path / "rules.json"), tmp_path / "log")
    threads = [threading.Thread(target=server.serve_forever) for server in (target, door)]
    for thread in threads:
        thread.start()
    trust = ssl.create_default_context(cadata=authority.certificate.decode())
    try:
        with httpx.Client(verify=trust, trust_env=False) as client:
            yield Setting(tmp_path, client, f"https://{HERE}:{target.server_port}", came)
    finally:
        for server in (door, target):
            server.shutdown()
            server.server_close()
        for thread in threads:
            thread.join()


def test_without_a_rule_everything_passes_as_it_is(setting: Setting) -> None:
    answer = setting.put()

    assert (answer.status_code, answer.content) == (201, b"twelve bytes")
    assert setting.came == [b"a body"]
    assert [(line["target"], line["status"], line["act"]) for line in setting.noted] == [
        ("target", 201, None)
    ]


@pytest.mark.parametrize("act", ["drop", "cut"])
def test_a_request_that_is_lost_never_arrives(setting: Setting, act: str) -> None:
    setting.rule(act)

    with pytest.raises(httpx.RemoteProtocolError):
        setting.put()

    assert setting.came == []
    assert setting.put().status_code == 201  # the rule is used up


@pytest.mark.parametrize(
    ("act", "seen"), [("lose", None), ("half", None), ("after500", 500), ("garbage", 200)]
)
def test_what_was_recorded_is_answered_wrongly(setting: Setting, act: str, seen: int | None) -> None:
    setting.rule(act)

    if seen is None:
        with pytest.raises(httpx.RemoteProtocolError):
            setting.put()
    else:
        answer = setting.put()
        assert answer.status_code == seen
        assert b"twelve bytes" not in answer.content

    assert setting.came == [b"a body"]


def test_somebody_in_between_forbids(setting: Setting) -> None:
    setting.rule("forbid")

    assert setting.put().status_code == 403
    assert setting.came == []


def test_a_request_is_repeated_whole(setting: Setting) -> None:
    setting.rule("repeat")

    assert setting.put().status_code == 201
    assert setting.came == [b"a body", b"a body"]


def test_two_requests_arrive_in_the_other_order(setting: Setting) -> None:
    setting.rule("hold", sender="a" * 64, s=30.0)
    first = threading.Thread(target=setting.put, args=(b"first", "a" * 64))

    first.start()
    while first.is_alive():
        setting.put(b"second", "b" * 64)
    first.join()

    assert setting.came.index(b"first") > 0


def test_a_rule_for_one_sender_leaves_the_others_alone(setting: Setting) -> None:
    setting.rule("forbid", count=5, sender="a" * 64)

    assert setting.put(sender="b" * 64).status_code == 201
    assert setting.put(sender="a" * 64).status_code == 403


def test_every_act_has_its_sentence() -> None:
    assert set(ACTS) >= {
        "drop",
        "lose",
        "after500",
        "garbage",
        "half",
        "slow",
        "repeat",
        "late",
        "hold",
        "forbid",
        "cut",
    }
