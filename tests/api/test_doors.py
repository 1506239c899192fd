"""The doors of an agent: handed over by systemd or opened by itself, and compared with what the settings say."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from agent.api.doors import knock, open_doors
from agent.api.serving import listen, listen_unix, serving
from agent.errors import BadSettings

APP = Starlette(routes=[Route("/health", lambda _request: PlainTextResponse("well"))])


@pytest.fixture
def handed(tmp_path: Path) -> Iterator[tuple[socket.socket, socket.socket]]:
    """What systemd would hand over: one socket for the network, one for the operator."""
    with listen("127.0.0.1", 0) as network, listen_unix(tmp_path / "op.sock", 0o600) as operator:
        yield network, operator


def port_of(listener: socket.socket) -> int:
    return int(listener.getsockname()[1])


def test_without_systemd_an_agent_opens_both_doors_itself(tmp_path: Path) -> None:
    path = tmp_path / "op" / "operator.sock"

    doors = open_doors("127.0.0.1", 0, path, None, ())

    with doors.network, doors.operator:
        assert not doors.stay
        assert path.is_socket()


def test_sockets_of_systemd_are_taken_in_whatever_order(
    tmp_path: Path, handed: tuple[socket.socket, socket.socket]
) -> None:
    network, operator = handed
    doors = open_doors("127.0.0.1", port_of(network), tmp_path / "op.sock", None, (operator, network))

    assert (doors.network, doors.operator, doors.stay) == (network, operator, True)


def test_one_that_listens_everywhere_is_the_same_in_both_families(tmp_path: Path) -> None:
    with (
        socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as network,
        listen_unix(tmp_path / "op.sock", 0o600) as operator,
    ):
        port = port_of(network)
        assert open_doors("0.0.0.0", port, tmp_path / "op.sock", None, (network, operator)).stay


@pytest.mark.parametrize("what", ["port", "host", "operator"])
def test_settings_that_say_something_else_than_systemd_are_refused(
    tmp_path: Path, handed: tuple[socket.socket, socket.socket], what: str
) -> None:
    port = port_of(handed[0]) + (what == "port")
    host = "192.0.2.1" if what == "host" else "127.0.0.1"
    path = tmp_path / ("other.sock" if what == "operator" else "op.sock")

    with pytest.raises(BadSettings, match="systemctl edit"):
        open_doors(host, port, path, None, handed)


def test_a_socket_too_few_is_refused(tmp_path: Path, handed: tuple[socket.socket, socket.socket]) -> None:
    with pytest.raises(BadSettings, match="one for each"):
        open_doors("127.0.0.1", port_of(handed[0]), tmp_path / "op.sock", None, handed[:1])


def test_who_calls_between_two_servers_waits_and_nobody_is_refused(
    tmp_path: Path, handed: tuple[socket.socket, socket.socket]
) -> None:
    answers: list[bool] = []

    def call() -> None:
        knock(handed[1], tls=False)
        answers.append(True)

    first, second = handed[1].dup(), handed[1].dup()  # the third hand is systemd's
    with serving(APP, first, tls=None, stays=True):
        call()
    caller = threading.Thread(target=call)
    caller.start()
    with serving(APP, second, tls=None, stays=True):
        caller.join(20)

    assert answers == [True, True]
    assert (tmp_path / "op.sock").is_socket()


def test_a_knock_where_nobody_answers_fails(
    monkeypatch: pytest.MonkeyPatch, handed: tuple[socket.socket, socket.socket]
) -> None:
    monkeypatch.setattr("agent.api.doors.KNOCK_S", 0.1)

    with pytest.raises(TimeoutError):
        knock(handed[0], tls=False)
