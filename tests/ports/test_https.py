"""What the adapters' shared HTTPS refuses from a peer that misbehaves, and what it sends; over real TLS."""

import io
import json
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from agent.api.serving import listen, url_of
from agent.domain.ids import digest_of
from agent.errors import BadAnswer, BlobMissing, DigestMismatch, PeerUnavailable, StorageUnavailable
from agent.log import bound
from agent.ports.https import HttpsClient, Peer, Timeouts
from agent.ports.peers_https import HttpsPeers
from agent.ports.storage import BlobKind, DatasetInfo
from agent.ports.storage_https import HttpsStorage
from agent.ports.storage_https_download import MAX_FRUITLESS
from agent.trust.certificates import CertificateAuthority
from agent.trust.http_signatures import (
    HttpAnswer,
    HttpRequest,
    content_digest,
    sign_answer,
    verify_request,
)
from tests.builders import NOW, SKEW, changed, key_of
from tests.devkit.town import Town, open_town
from tests.ports import rude
from tests.ports.rude import Manner, RudeServer, answer, rude_server

A, B = key_of("agent-a").keyid, key_of("agent-b").keyid
PROBLEM = json.dumps({"code": "broken-link", "detail": "receipt 2 does not link"}).encode()
CONTENT = bytes(range(256)) * 8000  # 2 MB


@pytest.fixture
def town(tmp_path: Path) -> Iterator[Town]:
    """Nobody runs; b's and storage a's places are kept for servers of the test."""
    with open_town(tmp_path) as town:
        yield town


def reserve(town: Town, name: str) -> None:
    """Keep a place on this machine for the server of that name."""
    town.listeners[name] = listen("127.0.0.1", 0)
    url = url_of(town.listeners[name], tls=True)
    told: dict[str, Any] = {"agent_url": url} if name.startswith("agent") else {"storage_url": url}
    town.roster = changed(town.roster, key_of(name).keyid, **told)
    if name.startswith("storage"):
        town.roster = changed(town.roster, key_of(name.replace("storage", "agent")).keyid, storage_url=url)


def hand_off_to(town: Town, manner: Manner, timeouts: Timeouts | None = None, **served: Any) -> RudeServer:
    """Hand off to a peer of these manners; what it heard."""
    reserve(town, "agent-b")
    peers = HttpsPeers(town.identity("agent-a"), timeouts or town.timeouts)
    try:
        with rude_server(town, "agent-b", manner, **served) as server:
            peers.hand_off(B, b"{}")
    finally:
        peers.close()
    return server


def signed_answer(
    heard: list[bytes], town: Town, *, key: str = "agent-b", status: int = 200, body: bytes = b"{}"
) -> bytes:
    """An answer to the last request heard, signed by that key."""
    fields = {"content-digest": content_digest(body), "content-length": str(len(body))}
    signature = sign_answer(HttpAnswer(status, fields), request_heard(heard[-1]), key_of(key), now=NOW)
    return answer(body, status, **{name.lower(): value for name, value in {**fields, **signature}.items()})


def request_heard(request: bytes) -> HttpRequest:
    head = request.split(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
    method, target, _ = head[0].split(" ")
    headers = tuple(
        (name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in head[1:])
    )
    host = dict(headers)["host"]
    return HttpRequest(method, f"https://{host}{target}", headers)


def time_told_by(town: Town, answers: bytes) -> datetime | None:
    """What time it is at a peer that answers so when asked for its health."""
    reserve(town, "agent-b")
    entry = town.roster.find(B)
    assert entry is not None
    client = HttpsClient(town.identity("agent-a"), town.timeouts)
    try:
        with rude_server(town, "agent-b", lambda line, heard: line.sendall(answers)):
            return client.check_health(Peer.of(entry, entry.agent_url, PeerUnavailable))
    finally:
        client.close()


# ------------------------------------------------------------------ the time there


@pytest.mark.parametrize(
    ("date", "expected"),
    [
        ("Sun, 01 Mar 2026 12:00:00 GMT", NOW),
        ("Sun, 01 Mar 2026 13:00:00 +0100", NOW),
        ("Sun, 01 Mar 2026 12:00:00 -0000", NOW),
        ("Fri, 31 Dec 9999 23:00:00 -1200", None),
        ("yesterday", None),
        ("", None),
    ],
)
def test_an_answer_about_health_tells_the_time_there(
    town: Town, date: str, expected: datetime | None
) -> None:
    assert time_told_by(town, answer(b"{}", 200, date=date)) == expected


def test_a_peer_that_is_not_well_is_unavailable(town: Town) -> None:
    with pytest.raises(PeerUnavailable, match="503"):
        time_told_by(town, answer(b"{}", 503))


# ------------------------------------------------------------------ what is sent


def test_a_request_is_signed_as_the_contract_asks(town: Town) -> None:
    server = hand_off_to(town, lambda line, heard: line.sendall(signed_answer(heard, town)))

    request = request_heard(server.heard[0])
    authority = request.url.removeprefix("https://").partition("/")[0]
    verified = verify_request(request, town.roster, now=NOW, skew=SKEW, authorities={authority})
    assert verified.keyid == A
    assert verified.content_digest == content_digest(b"{}")


def test_proxies_of_the_environment_are_ignored(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "SSL_CERT_FILE"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")

    hand_off_to(town, lambda line, heard: line.sendall(signed_answer(heard, town)))


def test_a_connection_is_kept_for_the_next_call(town: Town) -> None:
    reserve(town, "agent-b")
    peers = HttpsPeers(town.identity("agent-a"), town.timeouts)

    def go_on(line: ssl.SSLSocket, heard: list[bytes]) -> bool:
        line.sendall(signed_answer(heard, town))
        return True

    with rude_server(town, "agent-b", go_on) as server:
        for _ in range(5):
            peers.hand_off(B, b"{}")
        peers.close()

    assert len(server.heard) == 5
    assert server.connections == 1


def test_one_port_serves_many_threads(tmp_path: Path) -> None:
    with open_town(tmp_path, "agent-b") as town:
        received: list[bytes] = []
        town.doors["agent-b"] = lambda body, _sender: received.append(body)
        peers = HttpsPeers(town.identity("agent-a"), town.timeouts)

        bodies = [f'{{"n": {n}}}'.encode() for n in range(80)]
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda body: peers.hand_off(B, body), bodies))
        peers.close()

    assert sorted(received) == sorted(bodies)


def test_a_roster_that_changed_is_seen_at_the_next_call(town: Town) -> None:
    reserve(town, "agent-b")
    peers = HttpsPeers(town.identity("agent-a"), town.timeouts)
    town.roster = changed(town.roster, B, agent_url=None)

    with pytest.raises(PeerUnavailable, match="no address"):
        peers.check(B)


# ------------------------------------------------------------------ answers that break off, dawdle or are none


def test_an_answer_that_is_cut_short_is_no_answer(town: Town) -> None:
    with pytest.raises(PeerUnavailable):
        hand_off_to(town, lambda line, _: line.sendall(answer(b"{", content_length="2")))


def test_a_peer_that_hangs_up_is_unavailable(town: Town) -> None:
    with pytest.raises(PeerUnavailable):
        hand_off_to(town, lambda _line, _heard: None)


@pytest.mark.parametrize(
    "garbage",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: minus one\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 60000,
        b"\0" * 4096,
    ],
)
def test_an_answer_that_is_no_http_is_no_answer(town: Town, garbage: bytes) -> None:
    with pytest.raises(PeerUnavailable):
        hand_off_to(town, lambda line, _: line.sendall(garbage))


def test_a_peer_that_never_answers_is_given_up_after_the_read_timeout(town: Town) -> None:
    over = threading.Event()
    began = time.monotonic()

    with pytest.raises(PeerUnavailable, match="no answer within the time"):
        hand_off_to(town, lambda _line, _heard: over.wait(20), Timeouts(read_s=0.3, total_s=20))
    over.set()

    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "dripped", [answer(b"{}" * 500), answer(b"", x_long="y" * 1000)], ids=["body", "head"]
)
def test_an_answer_that_drips_is_given_up_after_the_total_timeout(town: Town, dripped: bytes) -> None:
    """No single read waits long: only the deadline of the whole call ends it."""
    over = threading.Event()

    def drip(line: ssl.SSLSocket, _heard: list[bytes]) -> None:
        for byte in dripped:
            line.sendall(bytes([byte]))
            if over.wait(0.05):
                return

    began = time.monotonic()
    with pytest.raises(PeerUnavailable, match="no answer within the time"):
        hand_off_to(town, drip, Timeouts(read_s=5, total_s=0.6))
    over.set()

    assert time.monotonic() - began < 4


def test_an_answer_over_the_limit_is_given_up(town: Town) -> None:
    sent: list[int] = []

    def flood(line: ssl.SSLSocket, _heard: list[bytes]) -> None:
        line.sendall(answer(b"", content_length=str(1 << 40)))
        for _ in range(4096):
            line.sendall(b"x" * 65536)
            sent.append(65536)

    with pytest.raises(PeerUnavailable, match="more than 65536 bytes"):
        hand_off_to(town, flood)

    assert sum(sent) < 64 << 20


def test_a_redirect_is_not_followed(town: Town) -> None:
    reserve(town, "agent-c")
    with rude_server(town, "agent-c", lambda line, heard: line.sendall(signed_answer(heard, town))) as other:
        there = town.url("agent-c") + "/v1/handoffs"
        with pytest.raises(PeerUnavailable, match="307"):
            hand_off_to(town, lambda line, _: line.sendall(answer(b"", 307, location=there)))

    assert other.connections == 0


# ------------------------------------------------------------------ whose TLS


def test_a_certificate_of_another_authority_is_refused(town: Town) -> None:
    other = CertificateAuthority("not the town's", now=datetime.now(UTC))

    with pytest.raises(PeerUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
        hand_off_to(town, lambda line, heard: line.sendall(signed_answer(heard, town)), authority=other)


def test_a_certificate_for_another_host_is_refused(town: Town) -> None:
    with pytest.raises(PeerUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
        hand_off_to(town, lambda line, heard: line.sendall(signed_answer(heard, town)), host="elsewhere.test")


def test_tls_before_1_3_is_refused(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    def old_tls(certificate: Path, private_key: Path) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(certificate, private_key)
        return context

    monkeypatch.setattr(rude, "server_tls", old_tls)

    with pytest.raises(PeerUnavailable, match="no connection"):
        hand_off_to(town, lambda line, heard: line.sendall(signed_answer(heard, town)))


def test_an_authority_that_is_no_certificate_is_told(town: Town) -> None:
    town.roster = changed(town.roster, B, tls_ca="not PEM")
    peers = HttpsPeers(town.identity("agent-a"), town.timeouts)

    with pytest.raises(PeerUnavailable, match="tls_ca"):
        peers.check(B)


# ------------------------------------------------------------------ whose answer


def test_an_unsigned_success_is_refused(town: Town) -> None:
    with pytest.raises(BadAnswer):
        hand_off_to(town, lambda line, _: line.sendall(answer()))


def test_a_success_signed_by_another_key_of_the_roster_is_refused(town: Town) -> None:
    with pytest.raises(BadAnswer):
        hand_off_to(town, lambda line, heard: line.sendall(signed_answer(heard, town, key="agent-c")))


def test_a_success_with_another_body_than_the_signed_one_is_refused(town: Town) -> None:
    def alter(line: ssl.SSLSocket, heard: list[bytes]) -> None:
        line.sendall(signed_answer(heard, town)[:-2] + b"[]")

    with pytest.raises(BadAnswer):
        hand_off_to(town, alter)


def test_the_signed_answer_to_another_request_is_refused(town: Town) -> None:
    kept: list[bytes] = []

    def keep(line: ssl.SSLSocket, heard: list[bytes]) -> None:
        kept.append(signed_answer(heard, town))
        line.sendall(kept[0])

    hand_off_to(town, keep)
    with pytest.raises(BadAnswer):
        hand_off_to(town, keep)

    assert len(kept) == 2


def test_a_refusal_that_nobody_signed_is_not_final(town: Town) -> None:
    with pytest.raises(PeerUnavailable, match="broken-link"):
        hand_off_to(town, lambda line, _: line.sendall(answer(PROBLEM, 403)))


def test_a_refusal_signed_by_another_is_not_final(town: Town) -> None:
    with pytest.raises(PeerUnavailable):
        hand_off_to(
            town,
            lambda line, heard: line.sendall(
                signed_answer(heard, town, key="agent-c", status=403, body=PROBLEM)
            ),
        )


# ------------------------------------------------------------------ downloads


def storage_of(town: Town, pauses: list[float] | None = None) -> HttpsStorage:
    """The port of a; a download's pauses are noted, not waited for."""
    return HttpsStorage(
        town.identity("agent-a"), A, town.timeouts, pause=(pauses if pauses is not None else []).append
    )


INFO = DatasetInfo("0" * 36, "1", len(CONTENT), digest_of(CONTENT), b"{}", ())


def download(town: Town, manner: Manner, pauses: list[float] | None = None) -> tuple[bytes, RudeServer]:
    """What comes of a dataset's file when storage has these manners."""
    reserve(town, "storage-a")
    storage, sink = storage_of(town, pauses), io.BytesIO()
    try:
        with rude_server(town, "storage-a", manner) as server:
            storage.open_dataset(INFO, sink)
    finally:
        storage.close()
    return sink.getvalue(), server


def start_of(heard: list[bytes]) -> int:
    """Where the last request asks to begin."""
    for line in heard[-1].lower().split(b"\r\n"):
        if line.startswith(b"range: bytes="):
            return int(line.removeprefix(b"range: bytes=").removesuffix(b"-"))
    return 0


def test_a_download_that_breaks_is_taken_up_where_it_broke(town: Town) -> None:
    def break_twice(line: ssl.SSLSocket, heard: list[bytes]) -> None:
        start, left = start_of(heard), len(CONTENT) - start_of(heard)
        status = 206 if start else 200
        content_range = f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}" if start else ""
        sent = left if len(heard) == 3 else 500_000
        line.sendall(
            answer(
                CONTENT[start : start + sent], status, content_length=str(left), content_range=content_range
            )
        )

    pauses: list[float] = []
    content, server = download(town, break_twice, pauses)

    assert content == CONTENT
    assert len(server.heard) == 3
    assert server.header("range", 1) == "bytes=500000-"
    assert server.header("if-range", 1) == f'"{digest_of(CONTENT)}"'
    assert len(pauses) == 2


def test_a_download_goes_on_when_storage_begins_anew(town: Town) -> None:
    """A storage without ranges answers 200: what the sink has swallowed is not given to it twice."""

    def know_no_ranges(line: ssl.SSLSocket, heard: list[bytes]) -> None:
        sent = CONTENT if len(heard) == 2 else CONTENT[:500_000]
        line.sendall(answer(sent, content_length=str(len(CONTENT))))

    content, _ = download(town, know_no_ranges)

    assert content == CONTENT


def test_a_download_that_must_come_in_time_ends_though_storage_goes_on_dripping(
    town: Town, tmp_path: Path
) -> None:
    """A storage that sends a piece before every timeout could hold its caller for days."""
    storage_id = key_of("storage-a").keyid
    told = {"digest": digest_of(CONTENT), "size": len(CONTENT), "kind": "image", "locations": [storage_id]}

    def drip(line: ssl.SSLSocket, heard: list[bytes]) -> None:
        if b"/content" not in heard[-1].split(b"\r\n")[0]:
            body = json.dumps(told).encode()
            line.sendall(signed_answer(heard, town, key="storage-a", status=200, body=body))
            return
        line.sendall(answer(b"", content_length=str(len(CONTENT))))
        with suppress(OSError):
            for _ in range(200):
                line.sendall(b"x")
                time.sleep(0.05)

    reserve(town, "storage-a")
    storage, began = storage_of(town), time.monotonic()
    with rude_server(town, "storage-a", drip), closing(storage):
        with pytest.raises(StorageUnavailable, match="too slowly"):
            storage.fetch_blob(digest_of(CONTENT), tmp_path / "image", limit_bytes=1 << 30, within_s=0.5)
        took_s = time.monotonic() - began

    assert took_s < 5
    assert list(tmp_path.glob("image*")) == []


def test_a_download_that_breaks_after_its_last_byte_is_whole(town: Town) -> None:
    def forget_the_end(line: ssl.SSLSocket, _heard: list[bytes]) -> None:
        told = answer(b"", content_length="", transfer_encoding="chunked")
        line.sendall(told + b"%x\r\n" % len(CONTENT) + CONTENT + b"\r\n")

    content, server = download(town, forget_the_end)

    assert content == CONTENT
    assert len(server.heard) == 1


def test_a_download_that_other_bytes_complete_is_refused(town: Town) -> None:
    def change_midway(line: ssl.SSLSocket, heard: list[bytes]) -> None:
        start = start_of(heard)
        if not start:
            line.sendall(answer(CONTENT[:500_000], content_length=str(len(CONTENT))))
            return
        left = len(CONTENT) - start
        content_range = f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"
        line.sendall(answer(b"x" * left, 206, content_range=content_range))

    with pytest.raises(DigestMismatch):
        download(town, change_midway)


def test_a_download_that_brings_nothing_new_is_given_up(town: Town) -> None:
    def stop_after_the_first_part(line: ssl.SSLSocket, heard: list[bytes]) -> None:
        if len(heard) == 1:
            line.sendall(answer(CONTENT[:500_000], content_length=str(len(CONTENT))))

    pauses: list[float] = []
    with pytest.raises(StorageUnavailable):
        download(town, stop_after_the_first_part, pauses)

    assert len(pauses) == MAX_FRUITLESS + 1
    assert pauses == sorted(pauses)


def test_a_download_that_cannot_begin_is_given_up_at_once(town: Town) -> None:
    pauses: list[float] = []

    with pytest.raises(StorageUnavailable):
        download(town, lambda _line, _heard: None, pauses)

    assert pauses == []


def test_a_download_that_does_not_end_is_refused_at_its_size(town: Town) -> None:
    def flood(line: ssl.SSLSocket, _heard: list[bytes]) -> None:
        line.sendall(answer(b"", content_length=str(1 << 40)))
        while True:
            line.sendall(CONTENT)

    with pytest.raises(DigestMismatch, match="more than"):
        download(town, flood)


def test_a_range_that_was_not_asked_for_is_refused(town: Town) -> None:
    def shift(line: ssl.SSLSocket, heard: list[bytes]) -> None:
        if len(heard) == 1:
            line.sendall(answer(CONTENT[:500_000], content_length=str(len(CONTENT))))
        else:
            line.sendall(answer(b"x" * 10, 206, content_range=f"bytes 0-9/{len(CONTENT)}"))

    with pytest.raises(StorageUnavailable, match="206"):
        download(town, shift)


def test_a_file_that_storage_does_not_hold_is_missing(town: Town) -> None:
    with pytest.raises(BlobMissing):
        download(town, lambda line, _: line.sendall(answer(PROBLEM, 404)))


# ------------------------------------------------------------------ documents


def test_an_unsigned_document_is_refused(town: Town) -> None:
    reserve(town, "storage-a")
    storage = storage_of(town)
    document = json.dumps(
        {"digest": digest_of(b""), "size": 0, "kind": BlobKind.MODEL, "locations": []}
    ).encode()

    with (
        rude_server(town, "storage-a", lambda line, _: line.sendall(answer(document))),
        pytest.raises(BadAnswer),
    ):
        storage.blob(digest_of(b""))
    storage.close()


@pytest.mark.parametrize("document", [b"not JSON", b"{}", b'{"digest": 1}', b"[" * 100_000])
def test_a_signed_document_that_is_none_is_refused(town: Town, document: bytes) -> None:
    reserve(town, "storage-a")
    storage = storage_of(town)

    def sign(line: ssl.SSLSocket, heard: list[bytes]) -> None:
        line.sendall(signed_answer(heard, town, key="storage-a", body=document))

    with rude_server(town, "storage-a", sign), pytest.raises(BadAnswer, match="does not know"):
        storage.blob(digest_of(b""))
    storage.close()


def test_a_document_of_another_blob_is_refused(town: Town) -> None:
    reserve(town, "storage-a")
    storage = storage_of(town)
    document = json.dumps({"digest": digest_of(b"x"), "size": 1, "kind": "model", "locations": []}).encode()

    def sign(line: ssl.SSLSocket, heard: list[bytes]) -> None:
        line.sendall(signed_answer(heard, town, key="storage-a", body=document))

    with rude_server(town, "storage-a", sign), pytest.raises(BadAnswer, match="when asked for"):
        storage.blob(digest_of(b""))
    storage.close()


# ------------------------------------------------------------------ traces


def test_a_call_carries_the_trace_of_what_is_worked_on_and_signs_it(town: Town) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    heard: list[bytes] = []

    def note(line: ssl.SSLSocket, told: list[bytes]) -> None:
        heard[:] = told
        line.sendall(signed_answer(told, town))

    with bound(trace=trace, order="x"):
        hand_off_to(town, note)

    request = request_heard(heard[-1])
    authority = dict(request.headers)["host"]
    verified = verify_request(request, town.roster, now=NOW, skew=SKEW, authorities={authority})
    field = dict(request.headers)["traceparent"]
    assert field.startswith(f"00-{trace}-")
    assert verified.trace == trace
    assert "tracestate" not in dict(request.headers)


def test_a_call_outside_any_order_carries_none(town: Town) -> None:
    heard: list[bytes] = []

    def note(line: ssl.SSLSocket, told: list[bytes]) -> None:
        heard[:] = told
        line.sendall(signed_answer(told, town))

    hand_off_to(town, note)

    assert "traceparent" not in dict(request_heard(heard[-1]).headers)
