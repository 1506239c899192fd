"""What no client of ours sends, on both doors: each is refused with a code or answered, and the process goes on."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing

import httpx
import pytest

from agent.api.routes import TABLE
from agent.api.serving import listen, serving
from tests.api.house import House, open_house

SOON_S = 20.0
READS = sorted({row.path for row in TABLE if row.method == "GET" and not row.is_stream})


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    house: House = open_house(tmp_path_factory.mktemp("house"))
    with ExitStack() as stack:
        yield {
            "operator": stack.enter_context(serving(house.operator.app, listen("127.0.0.1", 0), tls=None)),
            "network": stack.enter_context(serving(house.network.app, listen("127.0.0.1", 0), tls=None)),
        }


@pytest.fixture(params=["operator", "network"])
def door(request: pytest.FixtureRequest, doors: dict[str, str]) -> str:
    return doors[request.param]


def by_hand(door: str, raw: bytes) -> bytes:
    """What comes back for these very bytes, until the server closes."""
    host, _, port = door.removeprefix("http://").rpartition(":")
    with closing(socket.create_connection((host, int(port)), SOON_S)) as line:
        line.sendall(raw)
        found = b""
        while piece := line.recv(65536):
            found += piece
        return found


@pytest.mark.parametrize("method", ["OPTIONS", "TRACE", "PUT", "DELETE", "PATCH", "PROPFIND"])
def test_another_method_is_refused_with_a_code(door: str, method: str) -> None:
    answer = httpx.request(method, f"{door}/v1/orders", trust_env=False)

    assert (answer.status_code, answer.json()["code"]) == (405, "method-not-allowed")
    assert "GET" in answer.headers["allow"]


@pytest.mark.parametrize("path", READS)
def test_a_head_is_answered_without_a_body(door: str, path: str) -> None:
    answer = httpx.head(door + path, trust_env=False)

    assert answer.status_code < 500 or path == "/ready"
    assert answer.content == b""


@pytest.mark.parametrize(
    "query",
    ["limit=-1", "limit=0", "limit=501", "limit=NaN", "limit=1e3", "limit=" + "9" * 400, "limit=1&limit=2", "after=x",
     "state=nobody", "order=%00", "x=" + "y" * 8000, "%ff=%fe", "&" * 200, "limit=٣"],
)  # fmt: skip
def test_an_absurd_query_is_refused(doors: dict[str, str], query: str) -> None:
    answer = httpx.get(f"{doors['operator']}/v1/orders?{query}", trust_env=False)

    assert answer.status_code == (200 if set(query) == {"&"} else 400)
    assert set(query) == {"&"} or answer.json()["code"] == "bad-query"


@pytest.mark.parametrize(
    "path",
    ["/v1/orders/" + "a" * 60_000, "/v1/orders/%2e%2e/%2e%2e", "/v1/orders/%00", "/v1/orders/%ff%fe", "/v1/orders/..%2f..",
     "//v1/orders", "/v1/orders/", "/v1/orders;x=1", "/v1/orders/%", "/v1/orders/x/events", "/v1/%65vents/x"],
)  # fmt: skip
def test_a_path_of_nonsense_is_no_server_error(door: str, path: str) -> None:
    raw = f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()

    status = int(by_hand(door, raw).split()[1])

    assert 400 <= status < 500


def test_requests_sent_in_one_piece_are_answered_one_after_the_other(doors: dict[str, str]) -> None:
    one = b"GET /health HTTP/1.1\r\nHost: operator\r\n\r\n"
    last = b"GET /v1/orders?limit=-1 HTTP/1.1\r\nHost: operator\r\nConnection: close\r\n\r\n"

    found = by_hand(doors["operator"], one * 20 + last)

    assert found.count(b"HTTP/1.1 200 ") == 20
    assert found.count(b"HTTP/1.1 400 ") == 1


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/json, text/plain", "multipart/form-data", "\x7f", ""]
)
def test_another_content_type_is_refused(doors: dict[str, str], content_type: str) -> None:
    headers = {"content-type": content_type}
    answer = httpx.post(f"{doors['operator']}/v1/rulings", content=b"{}", headers=headers, trust_env=False)

    assert answer.status_code in {400, 415}
    assert answer.json()["code"] in {"bad-http", "wrong-media-type"}
