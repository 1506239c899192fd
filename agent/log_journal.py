"""The journal's native protocol: one datagram a line, with fields that `journalctl DC_ORDER=…` finds by.

A field is `NAME=value` and a newline, or, for a value with a newline in it, `NAME`, a newline, the length as 64 bits little
endian, the value and a newline. What is too large for a datagram goes in a sealed memory file whose descriptor is sent instead.

Source: systemd's "Native Journal Protocol" and sd_journal_send(3).
"""

import array
import errno
import fcntl
import json
import os
import socket
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TextIO

SOCKET: Final = Path("/run/systemd/journal/socket")
IDENTIFIER: Final = "dc-compute"
STREAM: Final = "JOURNAL_STREAM"  # what systemd says of a service's standard error: "device:inode"

PRIORITIES: Final[Mapping[str, int]] = {  # syslog's
    "debug": 7,
    "info": 6,
    "warning": 4,
    "error": 3,
    "exception": 3,
    "critical": 2,
}
# What is found by name; whatever else a line tells is `DC_` and its name in capitals.
FIELDS: Final[Mapping[str, str]] = {
    "event": "DC_EVENT",
    "trace": "TRACE_ID",
    "code": "DC_CODE",
    "module": "CODE_MODULE",
}
MAX_FIELDS: Final = 64
MAX_NAME: Final = 64  # characters: the journal drops longer ones

_TOO_LARGE: Final = frozenset({errno.EMSGSIZE, errno.ENOBUFS})
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


def is_journal(stream: TextIO, environment: Mapping[str, str]) -> bool:
    """Whether the journal is what this stream writes to: systemd says so, and it is still the same file."""
    try:
        about = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return environment.get(STREAM) == f"{about.st_dev}:{about.st_ino}"


class Journal:
    """The way to the journal. Nothing is kept between lines: a restart of it loses none, and there is nothing to close."""

    def __init__(self, path: Path = SOCKET) -> None:
        """Raises: OSError when nobody listens there."""
        self._path = str(path)
        with _datagrams() as probe:
            probe.connect(self._path)

    def send(self, fields: Mapping[str, str]) -> None:
        """One entry. Raises: OSError when the journal does not take it."""
        entry = b"".join(_field(name, value) for name, value in fields.items())
        with _datagrams() as way:
            try:
                way.sendto(entry, self._path)
            except OSError as error:
                if error.errno not in _TOO_LARGE:
                    raise
                self._send_file(entry, way)

    def _send_file(self, entry: bytes, way: socket.socket) -> None:
        """As memory that nobody changes any more: the journal takes no other."""
        file = os.memfd_create("dc-compute-journal", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            view = memoryview(entry)
            while view:
                view = view[os.write(file, view) :]
            fcntl.fcntl(file, fcntl.F_ADD_SEALS, _SEALS)
            told = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [file]))]
            way.sendmsg([b""], told, 0, self._path)
        finally:
            os.close(file)


def _datagrams() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)


def fields_of(event: Mapping[str, Any]) -> dict[str, str]:
    """A line of the log as the fields of an entry. `MESSAGE` is the line in words: the event and its values."""
    told = {name: value for name, value in event.items() if name not in {"at", "level"}}
    words = [
        f"{name}={_text(value)}"
        for name, value in told.items()
        if name not in {"event", "exception", "module"}
    ]
    message = " ".join([str(event.get("event", "")), *words])
    if "exception" in event:
        message = f"{message}\n{event['exception']}"
    fields = {
        "MESSAGE": message,
        "PRIORITY": str(PRIORITIES.get(str(event.get("level", "")), PRIORITIES["info"])),
        "SYSLOG_IDENTIFIER": IDENTIFIER,
    }
    for name, value in told.items():
        key = FIELDS.get(name) or _name(name)
        if key and len(fields) < MAX_FIELDS:
            fields.setdefault(key, _text(value))
    return fields


def _field(name: str, value: str) -> bytes:
    data = value.encode("utf-8", "backslashreplace")
    if b"\n" in data:
        return name.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n"
    return name.encode() + b"=" + data + b"\n"


def _name(name: str) -> str:
    """The field of a value's name: capitals, digits and `_`, as the journal has it; "" for one that makes none."""
    kept = "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in name.upper())
    return f"DC_{kept}"[:MAX_NAME] if kept.strip("_") else ""


def _text(value: Any) -> str:
    """A value in a field: text as it is, anything nested as JSON."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    return json.dumps(value, default=str) if isinstance(value, dict | list | tuple | bool) else str(value)
