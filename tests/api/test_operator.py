"""The operator's socket: its file mode is the permission, so the modes are the check. And what a browser may do at it."""

import grp
import os
import socket
import stat
from pathlib import Path

import pytest

from agent.api.operator import MAX_SOCKET_PATH, listen_for_operator
from agent.errors import BadSettings
from tests.api.house import House, open_house


def modes(path: Path) -> tuple[int, int]:
    """Of the socket's folder and of the socket."""
    return stat.S_IMODE(path.parent.stat().st_mode), stat.S_IMODE(path.stat().st_mode)


def test_the_socket_is_its_user_s_alone_whatever_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "run" / "operator.sock"
    before = os.umask(0)
    try:
        with listen_for_operator(path):
            assert modes(path) == (0o700, 0o600)
    finally:
        os.umask(before)


def test_with_a_group_the_socket_is_the_group_s_too_and_nobody_else_s(tmp_path: Path) -> None:
    path, group = tmp_path / "run" / "operator.sock", grp.getgrgid(os.getgid())

    with listen_for_operator(path, group.gr_name):
        assert modes(path) == (0o750, 0o660)
        assert path.stat().st_gid == group.gr_gid


def test_a_folder_that_others_may_enter_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)

    with pytest.raises(BadSettings, match="chmod 700"):
        listen_for_operator(tmp_path / "operator.sock")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes a folder another user's")
def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir(mode=0o700)
    os.chown(folder, 65534, 65534)

    with pytest.raises(BadSettings, match="another user"):
        listen_for_operator(folder / "operator.sock")


def test_a_socket_that_was_left_there_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "run" / "operator.sock"
    listen_for_operator(path).close()

    with listen_for_operator(path), socket.socket(socket.AF_UNIX) as caller:
        caller.connect(str(path))


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / "operator.sock").write_text("precious")

    with pytest.raises(BadSettings):
        listen_for_operator(tmp_path / "operator.sock")

    assert (tmp_path / "operator.sock").read_text() == "precious"


def test_a_path_too_long_for_a_socket_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match=str(MAX_SOCKET_PATH)):
        listen_for_operator(tmp_path / ("x" * 120))


def test_an_unknown_group_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match="no group 'nobody knows'"):
        listen_for_operator(tmp_path / "run" / "operator.sock", "nobody knows")


# ------------------------------------------------------------------ browsers


@pytest.fixture
def house(tmp_path: Path) -> House:
    return open_house(tmp_path)


@pytest.mark.parametrize(
    "name", ["operator", "localhost", "localhost:8080", "127.0.0.1:8080", "[::1]:8080", "LOCALHOST"]
)
def test_the_door_is_called_by_names_of_the_own_host(house: House, name: str) -> None:
    assert house.operator.get("/v1/control", headers={"host": name}).status_code == 200
    assert house.operator.get("/", headers={"host": name}).status_code == 200


@pytest.mark.parametrize(
    "name", ["evil.test", "evil.test:8080", "localhost.evil.test", "[::2]:8080", "user@evil.test", ""]
)
def test_a_name_that_somebody_pointed_at_the_own_host_reads_nothing(house: House, name: str) -> None:
    answer = house.operator.get("/v1/orders", headers={"host": name})

    assert (answer.status_code, answer.json()["code"]) == (403, "not-yours")
    assert house.operator.get("/", headers={"host": name}).status_code == 403


@pytest.mark.parametrize(
    "told", [{"origin": "http://localhost:8080"}, {"origin": "null"}, {"sec-fetch-site": "same-origin"}]
)
def test_a_browser_writes_nothing_not_even_from_the_own_page(house: House, told: dict[str, str]) -> None:
    headers = {"content-type": "application/json"} | told

    answer = house.operator.request("POST", "/v1/control", content=b'{"mode": "paused"}', headers=headers)

    assert (answer.status_code, answer.json()["code"]) == (403, "not-yours")
    assert house.ledger.control().may_start


def test_another_site_reads_nothing_and_may_link_to_a_page(house: House) -> None:
    asked = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}
    followed = {
        "sec-fetch-site": "cross-site",
        "sec-fetch-mode": "navigate",
        "sec-fetch-dest": "document",
    }
    framed = [followed | {"sec-fetch-dest": kind} for kind in ("iframe", "frame", "object", "embed")]

    assert house.operator.get("/v1/orders", headers=asked).status_code == 403
    assert house.operator.get("/", headers=asked).status_code == 403
    assert house.operator.get("/", headers=followed).status_code == 200
    assert {house.operator.get("/v1/orders", headers=one).status_code for one in framed} == {403}
