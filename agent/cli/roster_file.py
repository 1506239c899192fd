"""The roster's file: read, and changed so that comments and what does not change stay as they stand."""

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agent.cli.files import make_folder, replace_file
from agent.cli.here import Here
from agent.cli.out import warn
from agent.cli.reload import ask_all
from agent.errors import AgentUnreachable, BadSettings, RosterConflict
from agent.trust.roster import Roster, RosterEntry

_BLOCK = re.compile(r"(?m)^(?=\[\[entries\]\])")


def read(here: Here) -> Roster:
    """The roster in force. Raises: BadSettings."""
    return Roster.from_toml(text_of(here.settings.trust.roster))


def read_or_empty(here: Here) -> Roster:
    """The same, the empty one where there is no file yet."""
    return read(here) if here.settings.trust.roster.exists() else Roster()


def write(here: Here, roster: Roster, *, before: Roster) -> None:
    """Make this the roster in force, whole or not at all, and say who must read it anew.

    `before`: the roster that it was made from. Raises: BadSettings; RosterConflict when somebody changed that meanwhile, as
    while a person was asked: their change would be lost.
    """
    path = here.settings.trust.roster
    make_folder(path.parent)
    with alone(here):
        text = text_of(path) if path.exists() else ""
        if Roster.from_toml(text) != before:
            raise RosterConflict(f"{path} was changed meanwhile: run the command again")
        replace_file(path, edited(text, roster).encode())
    tell_services(here)


@contextmanager
def alone(here: Here) -> Iterator[None]:
    """While the block runs no other command of ours writes the roster or what lies beside it.

    Raises: BadSettings; RosterConflict while another one does, for nobody is to hold up a person who bars a key.
    """
    folder = here.settings.trust.roster.parent
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as cause:
        raise BadSettings(f"the folder {folder} cannot be read: {cause.strerror}") from cause
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as cause:
            raise RosterConflict(
                f"{folder} is being changed by another command: run this one again"
            ) from cause
        yield
    finally:
        os.close(lock)


def tell_services(here: Here) -> None:
    """Let the services of this agent that run read their files again. What came of it is theirs to tell."""
    try:
        ask_all(here.settings.paths.services)
    except AgentUnreachable:
        return
    except (BadSettings, OSError):
        warn("running services must be told: run `dc-compute reload` as root or as the agent's user")
        return
    warn("running services were told to read it; `dc-compute status` says when one did not take it")


def block(entry: RosterEntry) -> str:
    """The entry as it stands in the file."""
    return Roster((entry,)).to_toml()


def edited(text: str, wanted: Roster) -> str:
    """The file's text as it tells of this roster: entries that stay keep their text and the comments in it, changed ones
    are written anew in their place, new ones at the end."""
    head, *pieces = _BLOCK.split(text)
    if head.startswith("[[entries]]"):
        head, pieces = "", [head, *pieces]
    kept, known = [head], set()
    for piece in pieces:
        (before,) = Roster.from_toml(piece).entries
        entry = wanted.find(before.keyid)
        if entry is not None:
            known.add(entry.keyid)
            kept.append(piece if entry == before else block(entry) + "\n")
    for entry in wanted.entries:
        if entry.keyid not in known:
            if kept[-1] and not kept[-1].endswith("\n\n"):
                kept.append("\n" if kept[-1].endswith("\n") else "\n\n")
            kept.append(block(entry))
    made = "".join(kept)
    if {entry.keyid: entry for entry in Roster.from_toml(made).entries} != {
        e.keyid: e for e in wanted.entries
    }:
        raise BadSettings("the roster's file cannot be changed: write its entries as [[entries]] tables")
    return made


def text_of(path: Path) -> str:
    """The file's text. Raises: BadSettings."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as cause:
        raise BadSettings(f"the roster {path} cannot be read: {cause}") from cause


def entry_named(who: str, roster: Roster, path: Path) -> RosterEntry:
    """The one entry with this name, or whose key id begins so (8 digits or more). Raises: BadSettings."""
    found = [e for e in roster.entries if who == e.name or (len(who) >= 8 and e.keyid.startswith(who))]
    if len(found) != 1:
        raise BadSettings(f"{who!r} means {len(found)} entries of {path}; a key id is never mistaken")
    return found[0]
