"""Modes and owners of the agent's files and folders: who else could read a key, or change what the agent believes."""

from collections.abc import Sequence
from enum import StrEnum

from msgspec import Struct

from agent.doctor.lines import Check, Group, Unknown

GROUP = Group("files")


class Kind(StrEnum):
    """What a file is for, which decides who may do what with it."""

    KEY = "key"  # nobody else reads it
    FOLDER = "folder"  # of the agent's own: nobody else writes in it, or looks into it
    SETTINGS = "settings"  # nobody else changes it
    ABOVE = "above"  # a folder above a key: who writes in it puts another key there


class About(Struct, frozen=True):
    """A file as it lies here. `mode` are its permissions; `is_ours_alone`: an access list behind the mode names nobody else."""

    path: str
    kind: Kind
    is_right_type: bool
    uid: int
    mode: int
    is_ours_alone: bool = False


class Named(Struct, frozen=True):
    """A file and what it is called; None: there is none. `make` is the command that makes it, None when that may wait."""

    name: str
    about: About | Unknown | None
    path: str
    make: str | None = None


class Files(Struct, frozen=True, kw_only=True):
    """What is there. `uid`, `user`: the agent's user; `user` may do as root what root may."""

    uid: int
    user: str
    files: tuple[Named, ...]


def judge(facts: Files) -> list[Check]:
    """A line for each file; folders above a key only when there is something to say."""
    lines = []
    for named in facts.files:
        line = _judge(named, facts)
        if named.about is None or not _is_quiet(named.about, line):
            lines.append(line)
    return lines


def _is_quiet(about: About | Unknown, line: Check) -> bool:
    return isinstance(about, About) and about.kind is Kind.ABOVE and line.state == "ok"


def _judge(named: Named, facts: Files) -> Check:
    name, about = named.name, named.about
    if isinstance(about, Unknown):
        return GROUP.unknown(name, about)
    if about is None:
        if named.make is None:
            return GROUP.note(name, f"{named.path} is not there yet")
        return GROUP.fail(name, f"{named.path} is not there", named.make)
    if not about.is_right_type:
        what = "a regular file, or it is a link" if about.kind in {Kind.KEY, Kind.SETTINGS} else "a folder"
        return GROUP.fail(name, f"{about.path} is not {what}", f"ls -ld {about.path}")
    seen = f"{about.path} {about.mode:04o}"
    if about.uid not in (0, facts.uid):
        return GROUP.fail(name, f"{seen} belongs to user {about.uid}", f"chown {facts.user} {about.path}")
    wrong = _too_open(about)
    if wrong is not None:
        what, mend = wrong
        return GROUP.fail(name, f"{seen}: {what}", f"{mend} {about.path}")
    return GROUP.ok(name, seen)


def _too_open(about: About) -> tuple[str, str] | None:
    """(what others can do, the command that stops it but for the path), None when they can do nothing."""
    mode = about.mode
    match about.kind:
        case Kind.KEY:
            return ("others may read it", "chmod 600") if mode & 0o077 and not about.is_ours_alone else None
        case Kind.FOLDER:
            if mode & 0o022:
                return "others may write in it", "chmod 700"
            # Rootless Podman, whose images lie below it, makes it 0711: its containers' ids pass through. Nobody can list it.
            return ("others may look into it", "chmod go-rw") if mode & 0o006 else None
        case Kind.SETTINGS:
            return ("others may change it", "chmod go-w") if mode & 0o022 else None
        case Kind.ABOVE:
            is_sticky = bool(mode & 0o1000)
            return (
                ("others may put another key below it", "chmod go-w")
                if mode & 0o022 and not is_sticky
                else None
            )


def parents_of(path: str) -> Sequence[str]:
    """Every folder above an absolute path, the root first."""
    parts = path.rstrip("/").split("/")[1:-1]
    return ["/", *("/" + "/".join(parts[: n + 1]) for n in range(len(parts)))]
