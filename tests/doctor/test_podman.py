"""Podman's service: whose it is, how it keeps images, and what its environment holds, by name only."""

import os
import socket as sockets
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from agent.doctor.lines import Check, State, Unknown
from agent.doctor.look_podman import look_at_environment, look_at_socket
from agent.doctor.podman import Podman, Socket, Storage, judge, storage_of

STORAGE = Storage(
    version="5.8.10",
    driver="overlay",
    graph_root="/var/lib/dc-compute/.local/share/containers/storage",
    file_system="ext4",
    is_rootless=True,
    has_seccomp=True,
)
FACTS = Podman(
    uid=990,
    start="start podman",
    socket=Socket("/run/dc-compute/podman/podman.sock", True, 990, 0o600),
    storage=STORAGE,
    environment=(
        "PATH",
        "HOME",
        "XDG_RUNTIME_DIR",
        "LANG",
        "DBUS_SESSION_BUS_ADDRESS",
        "_CONTAINERS_ROOTLESS_UID",
    ),
)


def line(facts: Podman, name: str) -> Check:
    (found,) = [check for check in judge(facts) if check.name == name]
    return found


def test_a_service_as_our_unit_starts_it_has_nothing_to_mend() -> None:
    assert {check.state for check in judge(FACTS)} == {State.OK}


@pytest.mark.parametrize(
    ("change", "name", "state"),
    [
        ({"driver": "vfs"}, "storage driver", State.FAIL),
        ({"is_rootless": False}, "rootless", State.FAIL),
        ({"has_seccomp": False}, "seccomp", State.FAIL),
        ({"file_system": "tmpfs"}, "images", State.WARN),
        ({"file_system": "nfs4"}, "images", State.FAIL),
        ({"file_system": "xfs"}, "images", State.OK),
    ],
)
def test_what_the_service_tells(change: dict[str, Any], name: str, state: State) -> None:
    assert line(replace(FACTS, storage=replace(STORAGE, **change)), name).state is state


@pytest.mark.parametrize(
    ("socket", "state"),
    [
        (None, State.FAIL),
        (Unknown("Permission denied"), State.NOTE),
        (Socket("/s", False, 990, 0o600), State.FAIL),
        (Socket("/s", True, 0, 0o600), State.FAIL),
        (Socket("/s", True, 1000, 0o600), State.FAIL),
        (Socket("/s", True, 990, 0o666), State.WARN),
        (Socket("/s", True, 990, 0o660), State.OK),
    ],
)
def test_the_socket_is_the_agents_own(socket: Socket | Unknown | None, state: State) -> None:
    assert line(replace(FACTS, socket=socket), "socket").state is state


def test_a_socket_where_nobody_answers_fails() -> None:
    assert line(replace(FACTS, storage=Unknown("refused")), "service").state is State.FAIL


@pytest.mark.parametrize(
    "name", ["AWS_SECRET_ACCESS_KEY", "SSH_AUTH_SOCK", "DATABASE_URL", "PATHS", "MY_HOME"]
)
def test_a_variable_that_no_service_needs_is_named(name: str) -> None:
    found = line(replace(FACTS, environment=("PATH", name)), "environment")

    assert found.state is State.WARN
    assert name in found.seen


def test_an_environment_that_cannot_be_read_is_not_judged() -> None:
    assert line(replace(FACTS, environment=Unknown("Permission denied")), "environment").state is State.NOTE


def test_of_an_environment_only_names_are_read() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); input()"],
        env={"PLANTED": "swordfish", "EMPTY": ""},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        names = look_at_environment(child.pid)
        child.communicate(b"\n")

    assert not isinstance(names, Unknown)
    assert set(names) >= {"PLANTED", "EMPTY"}
    assert "swordfish" not in repr(names)


def test_a_document_that_is_not_podmans_is_refused() -> None:
    with pytest.raises(LookupError):
        storage_of({"host": {}}, "ext4")


def test_a_socket_is_looked_at_as_it_lies(tmp_path: Path) -> None:
    path = tmp_path / "s"
    assert look_at_socket(path) is None

    with sockets.socket(sockets.AF_UNIX) as door:
        door.bind(str(path))
        path.chmod(0o640)

        assert look_at_socket(path) == Socket(str(path), True, os.getuid(), 0o640)
