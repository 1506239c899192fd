"""Requests that are not what was signed, refusals that should not be final, and insiders who tell the servers lies."""

import json
import socket
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from agent.api import bodies
from agent.api.serving import listen, serving
from agent.devkit.shelf import Shelf
from agent.domain.ids import digest_of, wire_time
from agent.domain.reports import ReportBody, ReportState
from agent.domain.standings import OrderState
from agent.domain.strict_json import encode
from agent.errors import AgentError, OrderNotYetValid, PeerUnavailable
from agent.ports.peers_https import HttpsPeers
from agent.ports.storage import BlobInfo, BlobKind
from agent.ports.storage_https import HttpsStorage
from tests.api.house import AUTHORITY, House, open_house, signed_headers
from tests.builders import NOW, key_of
from tests.devkit.town import Town, open_town


@pytest.fixture
def house(tmp_path: Path) -> House:
    return open_house(tmp_path)


@pytest.fixture
def town(tmp_path: Path) -> Iterator[Town]:
    with open_town(tmp_path, "agent-b", "o1", "storage-a", "storage-b", "storage-c") as town:
        yield town


# ------------------------------------------------------------------ what was signed, and what is served


def test_a_host_field_cannot_carry_another_path_than_the_one_that_is_served(house: House) -> None:
    """Promise 2 (nothing altered) and http.md ("path and query are signed as on the wire"): one signature serves for any
    other path.

    `http_request_of` pastes the Host field before the target: `Host: agent-a.test:8440/v1/orders#` makes the URL
    `https://agent-a.test:8440/v1/orders#/v1/orders/<id>/receipts`. The signature library drops the fragment and finds the
    signed path /v1/orders, Starlette serves /v1/orders/<id>/receipts. Whoever stands between TLS and the application (a
    proxy, against whom alone RFC 9421 is there) turns a signed GET of a list into a GET of anything that the signer may
    read, and a signed POST into one to another route.
    Mend: agent/api/signed_requests.py `http_request_of`: refuse a Host that holds anything but `[A-Za-z0-9.:\\[\\]-]`,
    and a target that holds `#`.
    """
    order = house.world.order()
    house.call(house.world.orchestrator, "POST", "/v1/learnuplets", order.envelope)
    signed = signed_headers(house.world.orchestrator, "GET", "/v1/orders", None, now=house.clock())

    answer = house.network.get(
        f"/v1/orders/{order.order.id}/receipts", headers=signed | {"host": f"{AUTHORITY}/v1/orders#"}
    )

    assert answer.status_code == 401


def test_what_is_no_http_is_refused_with_a_code_too(house: House) -> None:
    """Promise 5: "every refusal has a code, a sentence, an entry". What h11 cannot read is answered by uvicorn as text,
    without any.

    Mend: agent/api/serving.py `_ImpatientProtocol`: override `send_400_response` with a problem document and a log line.
    """
    with serving(house.network.app, listen("127.0.0.1", 0), tls=None) as url:
        host, _, port = url.removeprefix("http://").rpartition(":")
        with socket.create_connection((host, int(port)), timeout=20) as line:
            line.sendall(b"GET /health HTTP/1.1\r\nhost: a\r\ncontent-length: many\r\n\r\n")
            line.shutdown(socket.SHUT_WR)
            answer = b"".join(iter(lambda: line.recv(65536), b""))

    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400")
    assert body.startswith(b"{"), body
    assert json.loads(body)["code"]


# ------------------------------------------------------------------ refusals that are taken for final


def test_a_hand_off_over_a_slow_line_is_not_refused_for_good(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promise 1 and 6, wrong retry class: an accepted order dies because a line is slow.

    A body that does not arrive within BODY_S (60 s for up to 32 MiB, 4.5 Mbit/s; or a busy moment) is answered
    `digest-mismatch`, 400, and *signed*, because the caller is known. A signed 4xx is final: the hand-off is buried, the
    chain is over. The same for reports, results (the order's score is lost) and shares (`share-withheld`, FAILED at the
    first attempt).
    Mend: agent/api/bodies.py `read` and `_gathered`: raise an error of status 408, which callers take as passing
    (agent/ports/https.py `_TRANSIENT`).
    """
    monkeypatch.setattr(bodies, "BODY_S", 0.0)
    town.doors["agent-b"] = lambda _body, _sender: None
    body = json.dumps({"order": "x" * (8 << 20), "receipts": []}).encode()

    with (
        closing(HttpsPeers(town.identity("agent-a"), town.timeouts)) as peers,
        pytest.raises(PeerUnavailable),
    ):
        peers.hand_off(key_of("agent-b").keyid, body)


def test_an_order_that_is_too_early_by_a_peers_clock_is_sent_again(town: Town) -> None:
    """Promise 1: two clocks within the allowed 30 s of the truth, and an accepted order is lost.

    a takes an order 30 s before its `not_before`; b, whose clock is some seconds behind, answers `order-not-yet-valid`,
    422, signed: final. The job FAILS, though it would have been welcome a minute later. Shares: the same, by an
    orchestrator's clock.
    Mend: agent/errors.py `OrderNotYetValid`: `status = 425` (Too Early), which is in agent/ports/https.py `_TRANSIENT`
    already; and tests/fakes/peers.py must know the same set.
    """

    def too_early(_body: bytes, _sender: str) -> None:
        raise OrderNotYetValid("order x may start in 5 s")

    town.doors["agent-b"] = too_early

    with (
        closing(HttpsPeers(town.identity("agent-a"), town.timeouts)) as peers,
        pytest.raises(PeerUnavailable),
    ):
        peers.hand_off(key_of("agent-b").keyid, b'{"order": {}, "receipts": []}')


def test_one_storage_that_lies_about_a_size_does_not_keep_a_blob_from_us(town: Town, tmp_path: Path) -> None:
    """Promise 6, lying storage: `fetch_blob` tries the next place after anything but TooLarge, an OrderError, which is
    final: one storage of the consortium that says "2^50 bytes" FAILS the tasks of all others, at attempt 1.

    Mend: agent/ports/storage_https.py `fetch_blob`: note TooLarge among the failures too; it is the answer only when
    nobody gives the blob.
    """
    content = b"a model"
    digest = digest_of(content)
    b, c = (key_of(f"storage-{hospital}").keyid for hospital in "bc")
    liar, honest = sorted((b, c))
    shelves = {b: town.shelves["storage-b"], c: town.shelves["storage-c"]}
    town.shelves["storage-a"].note_blob(BlobInfo(digest, len(content), BlobKind.MODEL, (liar, honest)))
    shelves[liar].note_blob(BlobInfo(digest, 1 << 50, BlobKind.MODEL, (liar,)))
    (tmp_path / "upload").write_bytes(content)
    shelves[honest].keep(tmp_path / "upload", digest)
    shelves[honest].note_blob(BlobInfo(digest, len(content), BlobKind.MODEL, (honest,)))

    with closing(HttpsStorage(town.identity("agent-a"), key_of("agent-a").keyid, town.timeouts)) as storage:
        assert storage.fetch_blob(digest, tmp_path / "model", limit_bytes=1 << 20) == len(content)


# ------------------------------------------------------------------ lies to the devkit's servers


def test_an_agent_outside_of_the_chain_cannot_end_an_order(town: Town) -> None:
    """Promise 1, lying agent: any agent of the roster may report `failed` (or `handoff-refused`) for any place of any
    order, without a receipt. The orchestrator then counts the order as failed, gives out no share for it any more, and
    the true chain dies of `share-withheld`.

    Mend: agent/devkit/orchestrator.py `put_report`: a report is taken from an agent that `locate` names for the place (or
    the one before it), or that the order was sent to; docs/contracts/http.md says nothing of it.
    """
    order = town.world.order()  # trains at a, b, c, a and tests at c
    town.books["o1"].record_order(order, NOW)
    lie = ReportBody(
        order=order.digest, position=0, state=ReportState.FAILED, attempt=1, max_attempts=3, at=wire_time(NOW)
    )
    o1 = town.roster.find(key_of("o1").keyid)
    assert o1 is not None

    target = f"/v1/orders/{order.order.id}/tasks/0/reports/1"
    with suppress(AgentError):  # refusing it is right
        town.client("agent-b").send(o1, "PUT", target, encode(lie), is_answer_signed=True)

    issued = town.books["o1"].order(order.order.id)
    assert issued is not None
    assert issued.state is OrderState.OPEN


def test_a_size_that_somebody_announced_gives_way_to_the_file_itself(tmp_path: Path) -> None:
    """Lying owner or orchestrator: who announces an image's digest to a storage before its author uploads it there fixes
    its `size` for ever (`INSERT OR IGNORE`); every download then ends as DigestMismatch, and no agent of that node runs
    the image.

    Mend: agent/devkit/shelf.py `note_blob`: when the file lies here, its own size and kind replace what was only told.
    """
    shelf = Shelf(tmp_path / "shelf")
    content, me = b"an image", key_of("storage-a").keyid
    shelf.note_blob(BlobInfo(digest_of(content), 1, BlobKind.IMAGE, (key_of("storage-b").keyid,)))
    (tmp_path / "upload").write_bytes(content)

    shelf.keep(tmp_path / "upload", digest_of(content))
    shelf.note_blob(BlobInfo(digest_of(content), len(content), BlobKind.IMAGE, (me,)))

    info = shelf.blob(digest_of(content))
    shelf.database.close()
    assert info is not None
    assert info.size == len(content)
