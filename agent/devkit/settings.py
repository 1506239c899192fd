"""The settings of a devkit server, storage or orchestrator alike: one small TOML file. Paths are relative to it.

key = "storage-a.pem"                     # Ed25519, by `dc-compute keys`
roster = "roster.toml"                    # read again when it changes
folder = "storage-a"                      # everything it remembers
host = "127.0.0.1"
port = 8450
certificate = "storage-a.crt"             # TLS
private_key = "storage-a.tls.key"
authorities = ["127.0.0.1:8450"]          # host[:port] under which others call it
"""

import threading
import tomllib
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from agent.domain.prepared import prepared
from agent.errors import BadSettings
from agent.trust.roster import Roster


class ServerSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one server needs to know. `skew_s`: how far clocks may differ; `max_upload_bytes`: of one file (storage only)."""

    key: Path
    roster: Path
    folder: Path
    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)]
    certificate: Path
    private_key: Path
    authorities: tuple[str, ...]
    skew_s: Annotated[int, Meta(ge=0, le=300)] = 30
    max_upload_bytes: Annotated[int, Meta(ge=1)] = 1 << 40


def read_settings(path: Path) -> ServerSettings:
    """The settings in this file. Raises: BadSettings."""
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
        told = msgspec.convert(tree, prepared(ServerSettings), dec_hook=lambda kind, text: kind(text))
    except OSError as cause:
        raise BadSettings(f"cannot read {path}: {cause.strerror}") from cause
    except (ValueError, msgspec.ValidationError) as cause:
        raise BadSettings(f"{path}: {cause}") from cause
    here = path.absolute().parent
    places = {
        name: here / getattr(told, name) for name in ("key", "roster", "folder", "certificate", "private_key")
    }
    return msgspec.structs.replace(told, **places)


class RosterFile:
    """The roster in a file, read again whenever the file changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._seen: tuple[int, int, int] | None = None
        self._roster = Roster()

    def __call__(self) -> Roster:
        """The roster as it stands in the file now. Raises: BadSettings."""
        try:
            about = self._path.stat()
            with self._lock:
                version = (about.st_mtime_ns, about.st_size, about.st_ino)
                if version != self._seen:
                    self._roster = Roster.from_toml(self._path.read_text(encoding="utf-8"))
                    self._seen = version
                return self._roster
        except OSError as cause:
            raise BadSettings(f"cannot read the roster {self._path}: {cause.strerror}") from cause
