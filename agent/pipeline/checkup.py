"""What `dc-compute doctor` found last, kept beside the ledger: the status page tells it with its time, and never looks so
closely itself. Whoever serves the page has no right to run containers.
"""

from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from agent.domain.prepared import prepared
from agent.whole_files import write_whole

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
    write_whole(folder / CHECKUP_FILE, msgspec.json.encode(checkup), mode=0o600)


def last_checkup(folder: Path) -> Checkup | None:
    """The one that was kept there last; None where none was, or where it cannot be read."""
    try:
        with (folder / CHECKUP_FILE).open("rb") as file:
            return msgspec.json.decode(file.read(MAX_CHECKUP_BYTES), type=prepared(Checkup))
    except (OSError, msgspec.MsgspecError):
        return None
