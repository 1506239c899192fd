"""Reads free space, and lets SQLite look through the ledger without writing to it."""

import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from agent.doctor.disk import Ledger, Space
from agent.doctor.lines import Unknown
from agent.doctor.look import attempt

LEDGER_TIMEOUT_S = 20.0
STEPS_BETWEEN_LOOKS = 100_000


def look_at_space(name: str, path: Path) -> Space | Unknown:
    """The file system of a folder, or of the nearest one above it that is there."""

    def look() -> Space:
        there = next(folder for folder in (path, *path.parents) if folder.exists())
        about = os.statvfs(there)
        return Space(name, str(path), about.f_bavail * about.f_frsize, about.f_files, about.f_favail)

    return attempt(look)


def look_at_ledger(path: Path) -> Ledger:
    """What SQLite says of the file, within a time."""
    if not path.exists():
        return Ledger(str(path), None)
    deadline = time.monotonic() + LEDGER_TIMEOUT_S
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=5)) as ledger:
            ledger.set_progress_handler(lambda: time.monotonic() > deadline, STEPS_BETWEEN_LOOKS)
            told = tuple(str(row[0]) for row in ledger.execute("PRAGMA quick_check(5)"))
    except sqlite3.OperationalError as cause:
        return Ledger(str(path), Unknown(f"{path}: {cause}"))
    except sqlite3.DatabaseError as cause:
        return Ledger(str(path), (str(cause),))
    return Ledger(str(path), () if told == ("ok",) else told)
