"""What `dc-compute doctor` found last, kept beside the ledger: the status page tells it with its time, and never looks so
closely itself. Whoever serves the page has no right to run containers.
"""

import os
from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from agent.domain.prepared import prepared

CHECKUP_FILE: Final = "doctor.json"
MAX_CHECKUP_BYTES: Final = 1 << 20


class Finding(Struct, frozen=True):
    """A line of the doctor. `state`: ok, warn, fail or note; `mend`: the command that mends it."""

    group: str
    name: str
    state: str
    seen: str
    mend: str | None = None


class Checkup(Struct, frozen=True):
    """A whole run of the doctor: when, of which version, and every line."""

    at: datetime
    version: str
    findings: tuple[Finding, ...]


def keep_checkup(checkup: Checkup, folder: Path) -> None:
    """Keep it in this folder, in place of the one before; the file appears whole. Raises: OSError."""
    path = folder / CHECKUP_FILE
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        part.write_bytes(msgspec.json.encode(checkup))
        part.chmod(0o600)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def last_checkup(folder: Path) -> Checkup | None:
    """The one that was kept there last; None where none was, or where it cannot be read."""
    try:
        with (folder / CHECKUP_FILE).open("rb") as file:
            return msgspec.json.decode(file.read(MAX_CHECKUP_BYTES), type=prepared(Checkup))
    except (OSError, msgspec.MsgspecError):
        return None
