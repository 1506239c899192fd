"""Reads what Podman's service shows: its socket's file, and the names (never the values) of its environment."""

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from agent.doctor.lines import Unknown
from agent.doctor.look import attempt
from agent.doctor.podman import Socket


def look_at_socket(path: Path) -> Socket | Unknown | None:
    """The socket's file; None when there is none."""
    try:
        about = path.stat()
    except FileNotFoundError:
        return None
    except OSError as cause:
        return Unknown(f"{path}: {cause.strerror}")
    return Socket(str(path), stat.S_ISSOCK(about.st_mode), about.st_uid, stat.S_IMODE(about.st_mode))


def look_at_environment(pid: int) -> Sequence[str] | Unknown:
    """The names of a process's variables."""

    def look() -> tuple[str, ...]:
        rows = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        return tuple(os.fsdecode(row.partition(b"=")[0]) for row in rows if row)

    return attempt(look)
