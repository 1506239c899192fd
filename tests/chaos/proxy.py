"""A host's front door: it ends TLS with each target's own certificate, passes every request on, and mangles some.

    python -m tests.chaos.proxy SETTINGS

SETTINGS is JSON: {"doors": [{"target", "host", "port", "certificate", "private_key"}], "rules": file, "log": file}. A door
listens at host:port and passes on to the same port of 127.0.0.1, under TLS again. The rules' file holds a list, read again when
it changes: {"id", "target", "sender": key id or null for anybody, "act", "count", "s"}. What an act does: `ACTS`.

Every request leaves a line in the log; of hand-offs and orders with what came, for whoever checks the run from outside.
"""

import base64
import hashlib
import http.client
import json
import re
import ssl
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

KEYID = re.compile(r'keyid="([0-9a-f]{64})"')
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}
UPSTREAM_S = 60.0
ACTS = {
    "cut": "the request is lost, and so is every other while the rule stands",
    "drop": "the request is lost",
    "lose": "it is passed on, the answer is lost",
    "after500": "it is passed on, and answered 500",
    "garbage": "it is passed on, and answered 200 with garbage",
    "half": "it is passed on, and half of the answer comes",
    "slow": "it is passed on after a while, and answered after another",
    "repeat": "it is passed on twice at once",
    "late": "it is passed on, and once more after a while",
    "hold": "it waits until the next one has passed: they arrive in another order",
    "forbid": "it is not passed on, and answered 403 by somebody in between",
}


@dataclass(frozen=True)
class Sent:
    """A request as it came."""

    method: str
    path: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    @property
    def sender(self) -> str | None:
        told = next((value for name, value in self.headers if name.lower() == "signature-input"), "")
        found = KEYID.search(told)
        return found[1] if found else None


@dataclass(frozen=True)
class Answer:
    """An answer of the target."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


@dataclass
class Rules:
    """What is mangled now."""

    file: Path
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _seen: tuple[int, int] | None = None
    _rules: list[dict[str, Any]] = field(default_factory=list)
    _used: dict[str, int] = field(default_factory=dict)

    def take(self, target: str, sender: str | None) -> dict[str, Any] | None:
        """The first rule for this request, used once more."""
        with self._lock:
            about = self.file.stat()
            if self._seen != (about.st_mtime_ns, about.st_ino):
                self._rules, self._seen = (
                    json.loads(self.file.read_bytes()),
                    (about.st_mtime_ns, about.st_ino),
                )
            for rule in self._rules:
                used = self._used.get(rule["id"], 0)
                if rule["target"] == target and rule["sender"] in {None, sender} and used < rule["count"]:
                    self._used[rule["id"]] = used + 1
                    return rule
        return None


class Door(ThreadingHTTPServer):
    """One target's address."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, about: dict[str, Any], rules: Rules, log: Path) -> None:
        super().__init__((about["host"], about["port"]), Handler)
        self.target, self.rules, self.log, self.port = about["target"], rules, log, about["port"]
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.tls.minimum_version = ssl.TLSVersion.TLSv1_3
        self.tls.load_cert_chain(about["certificate"], about["private_key"])
        self.upstream = ssl.create_default_context()
        self.upstream.check_hostname, self.upstream.verify_mode = False, ssl.CERT_NONE  # it is this very host
        self.passed = threading.Condition()
        self.count = 0

    def finish_request(self, request: Any, client_address: Any) -> None:
        """In the connection's own thread: a handshake that hangs holds up nobody."""
        request.settimeout(UPSTREAM_S)
        try:
            with self.tls.wrap_socket(request, server_side=True) as secure:
                Handler(secure, client_address, self)
        except OSError:
            return

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections break here all the time."""

    def pass_on(self, sent: Sent) -> Answer | None:
        """What the target answers; None when it does not."""
        connection = http.client.HTTPSConnection(
            "127.0.0.1", self.port, timeout=UPSTREAM_S, context=self.upstream
        )
        try:
            connection.putrequest(sent.method, sent.path, skip_host=True, skip_accept_encoding=True)
            for name, value in sent.headers:
                if name.lower() != "connection":
                    connection.putheader(name, value)
            connection.putheader("Connection", "close")
            connection.endheaders(sent.body or None)
            got = connection.getresponse()
            return Answer(got.status, tuple(got.getheaders()), got.read())
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()
            with self.passed:
                self.count += 1
                self.passed.notify_all()

    def wait_for_another(self, within_s: float) -> None:
        """Return when another request has passed."""
        with self.passed:
            before = self.count
            self.passed.wait_for(lambda: self.count > before, within_s)

    def note(self, sent: Sent, act: str | None, answer: Answer | None) -> None:
        """One line for this request."""
        line = {
            "at": round(time.time(), 3), "target": self.target, "sender": sent.sender, "method": sent.method,
            "path": sent.path, "act": act, "status": None if answer is None else answer.status,
        }  # fmt: skip
        if sent.method == "POST" and answer is not None and answer.status < 300:
            line |= what_came(sent)
        with self.log.open("a") as log:  # one write of a line that is appended: whole
            log.write(json.dumps(line) + "\n")


def what_came(sent: Sent) -> dict[str, Any]:
    """Of a hand-off: digest of the order, position, digest of the last receipt. Of an order: its digest."""
    if sent.path == "/v1/handoffs":
        told = json.loads(sent.body)
        digests = [payload_digest(receipt) for receipt in told["receipts"]]
        return {
            "order": payload_digest(told["order"]),
            "position": len(digests),
            "last_receipt": digests[-1] if digests else None,
        }
    if sent.path in {"/v1/learnuplets", "/v1/preduplets"}:
        return {"order": payload_digest(json.loads(sent.body))}
    return {}


def payload_digest(envelope: dict[str, Any]) -> str:
    return "sha256:" + hashlib.sha256(base64.b64decode(envelope["payload"])).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: Door

    def handle_any(self) -> None:
        length = int(self.headers.get("content-length", "0"))
        sent = Sent(self.command, self.path, tuple(self.headers.items()), self.rfile.read(length))
        if len(sent.body) < length:
            self.close_connection = True
            return
        rule = self.server.rules.take(self.server.target, sent.sender)
        act = None if rule is None else rule["act"]
        answer = self._do(act, 0.0 if rule is None else rule["s"], sent)
        self.server.note(sent, act, answer)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any

    def _do(self, act: str | None, rest_s: float, sent: Sent) -> Answer | None:
        """Pass the request on, and mangle it; what the target answered."""
        door = self.server
        if act in {"cut", "drop"}:
            self._break()
            return None
        if act == "forbid":
            self._say(Answer(403, (("content-type", "text/html"),), b"<h1>Blocked by policy</h1>"))
            return None
        if act == "slow":
            time.sleep(rest_s)
        if act == "hold":
            door.wait_for_another(rest_s)
        answer = door.pass_on(sent)
        if act == "repeat":
            door.note(sent, "repeated", door.pass_on(sent))
        if act == "late":
            threading.Timer(rest_s, lambda: door.note(sent, "came late", door.pass_on(sent))).start()
        if act == "lose" or answer is None:
            self._break()
        elif act == "after500":
            self._say(Answer(500, (("content-type", "text/plain"),), b"Internal Server Error"))
        elif act == "garbage":
            self._say(Answer(200, answer.headers, b"\x00\xff{" + answer.body[::-1]))
        elif act == "half":
            self._say(answer, cut_at=len(answer.body) // 2)
        else:
            if act == "slow":
                time.sleep(rest_s)
            self._say(answer)
        return answer

    def _say(self, answer: Answer, cut_at: int | None = None) -> None:
        lines = [f"HTTP/1.1 {answer.status} {http.client.responses.get(answer.status, 'Unknown')}"]
        lines += [f"{name}: {value}" for name, value in answer.headers if name.lower() not in HOP_BY_HOP]
        length = next(
            (value for name, value in answer.headers if name.lower() == "content-length"),
            str(len(answer.body)),
        )
        lines.append(f"content-length: {length if self.command == 'HEAD' else len(answer.body)}")
        self.wfile.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
        self.wfile.write(answer.body[:cut_at])
        if cut_at is not None:
            self._break()

    def _break(self) -> None:
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Lines of our own instead."""


def main(arguments: Sequence[str]) -> None:
    """Serve every door until killed."""
    told = json.loads(Path(arguments[0]).read_bytes())
    rules = Rules(Path(told["rules"]))
    doors = [Door(about, rules, Path(told["log"])) for about in told["doors"]]
    threads = [threading.Thread(target=door.serve_forever) for door in doors]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main(sys.argv[1:])
