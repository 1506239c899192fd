"""The two doors of an agent: sockets that systemd opened for it or that it opens itself, and a knock at one of them."""

import os
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.api.operator import listen_for_operator
from agent.api.serving import listen
from agent.errors import BadSettings

KNOCK_S = 30.0
ANY_ADDRESS = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared with, not listened on
LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - as above
REQUEST = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Doors:
    """Listening sockets for the network and for the operator. `stay`: systemd keeps them open for who comes next."""

    network: socket.socket
    operator: socket.socket
    stay: bool


def open_doors(
    host: str, port: int, operator_socket: Path, group: str | None, handed: Sequence[socket.socket]
) -> Doors:
    """The sockets of these settings: those that were handed over, or new ones where none was. Raises: BadSettings."""
    if not handed:
        network = listen(host, port)  # first: a second agent of this home ends here
        return Doors(network, listen_for_operator(operator_socket, group), stay=False)
    network, operator = (
        _one(handed, "the network's", {socket.AF_INET, socket.AF_INET6}),
        _one(handed, "the operator's", {socket.AF_UNIX}),
    )
    _check_network(network, host, port)
    _check_operator(operator, operator_socket)
    return Doors(network, operator, stay=True)


def _one(handed: Sequence[socket.socket], whose: str, families: set[socket.AddressFamily]) -> socket.socket:
    found = [one for one in handed if one.family in families]
    if len(found) != 1 or len(handed) != 2:
        raise BadSettings(
            f"dc-compute-api.socket has {len(handed)} sockets, {len(found)} of them {whose}: it wants one for each of both"
        )
    return found[0]


def _check_network(network: socket.socket, host: str, port: int) -> None:
    """Raises: BadSettings when systemd listens elsewhere than the settings say: one of both is not what was meant."""
    is_at, at_port = network.getsockname()[:2]
    is_meant = is_at == host or {is_at, host} <= ANY_ADDRESS
    if not is_meant or at_port != port:
        raise BadSettings(
            f"systemd listens on {is_at} port {at_port}, and [listen] says {host} port {port}: write the latter into a "
            "drop-in, `systemctl edit dc-compute-api.socket`, as ListenStream= after an empty one, then restart that socket"
        )


def _check_operator(operator: socket.socket, path: Path) -> None:
    is_at = Path(os.fsdecode(operator.getsockname()))
    if is_at != path:
        raise BadSettings(
            f"systemd listens on {is_at}, and [listen] operator_socket says {path}: change one of both "
            "(`systemctl edit dc-compute-api.socket`)"
        )


def knock(listener: socket.socket, *, tls: bool) -> None:
    """Return when somebody answers a request at this socket, whatever the answer. Raises: OSError when nobody does in time."""
    with socket.socket(listener.family, socket.SOCK_STREAM) as plain:
        plain.settimeout(KNOCK_S)
        name = listener.getsockname()
        plain.connect(name if isinstance(name, str | bytes) else (LOOPBACK.get(name[0], name[0]), *name[1:]))
        if not tls:
            return _ask(plain)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # it is ourselves whom we ask
        with context.wrap_socket(plain) as secure:
            return _ask(secure)


def _ask(door: socket.socket) -> None:
    door.sendall(REQUEST)
    if not door.recv(64).startswith(b"HTTP/1.1 "):
        raise OSError("what answers there does not speak HTTP")
