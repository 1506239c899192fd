"""Reads modes and owners, following no link at a file's own name."""

import stat
from pathlib import Path

from agent.doctor.files import About, Kind, Named, parents_of
from agent.doctor.lines import Unknown
from agent.trust.keys import is_private


def look_at(name: str, path: Path, kind: Kind, *, make: str | None = None) -> Named:
    """One file or folder."""
    return Named(name, _about(path, kind), str(path), make)


def look_above(path: Path) -> tuple[Named, ...]:
    """Every folder above a file."""
    return tuple(
        Named(f"folder {parent}", _about(Path(parent), Kind.ABOVE), parent)
        for parent in parents_of(str(path.absolute()))
    )


def _about(path: Path, kind: Kind) -> About | Unknown | None:
    try:
        about = path.stat() if kind in (Kind.ABOVE, Kind.FOLDER) else path.lstat()
    except FileNotFoundError:
        return None
    except OSError as cause:
        return Unknown(f"{path}: {cause.strerror}")
    is_folder = kind in (Kind.ABOVE, Kind.FOLDER)
    is_right = stat.S_ISDIR(about.st_mode) if is_folder else stat.S_ISREG(about.st_mode)
    is_alone = kind is Kind.KEY and is_right and is_private(path)
    return About(str(path), kind, is_right, about.st_uid, stat.S_IMODE(about.st_mode), is_alone)
