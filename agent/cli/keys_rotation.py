"""`keys rotate|switch|retire`: this agent's key gives way to a new one, with an overlap in which others take both.

`rotate` makes the new key and the statement, `switch` begins to sign with it once others know it, `retire` ends the old one.
What each step asks of whom: docs/operators.md, "A new key".
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer
from msgspec import Struct
from msgspec.structs import replace

from agent.cli.files import replace_file, write_new
from agent.cli.here import Here, here_of
from agent.cli.keys import load_key, make_key
from agent.cli.out import JsonFlag, fingerprint_lines, print_json, print_table, say, short, when
from agent.cli.roster_file import read, write
from agent.domain.ids import KeyId
from agent.domain.orders import DatasetRef
from agent.errors import AgentError, BadSettings
from agent.trust.dataset_header import parse_header
from agent.trust.keys import SigningKey, next_of, previous_of, switch_keys
from agent.trust.roster import Role, Roster, RosterEntry
from agent.trust.roster_changes import with_rotation
from agent.trust.rotation import Rotation, sign_rotation

STATEMENT_FILE = "rotation.json"
VALID = timedelta(days=365)
CALLS_AT_ONCE = 16


class Asked(Struct, frozen=True, kw_only=True):
    """Somebody who must take the new key. `knows` is None where nobody answered, and `why` says so."""

    role: Role
    name: str
    knows: bool | None
    why: str = ""


class Sealed(Struct, frozen=True, kw_only=True):
    """A dataset this agent has opened. `names_new`: its owner lists the new key; None when nobody could tell, and `why`."""

    dataset: str
    version: str
    names_new: bool | None
    why: str = ""


class Standing(Struct, frozen=True, kw_only=True):
    """How a rotation stands. `step`: rotated, switched, or over; `until`: when the old key ends."""

    step: str
    old: KeyId
    new: KeyId
    until: datetime
    others: tuple[Asked, ...]
    datasets: tuple[Sealed, ...]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command()(rotate)
    app.command()(switch)
    app.command()(retire)


def rotate(
    context: typer.Context,
    days: Annotated[
        int, typer.Option(min=1, max=365, help="How long others take the old key beside the new one.")
    ] = 60,
    to: Annotated[
        Path | None,
        typer.Option(
            "--to", metavar="FILE", help=f"The statement; default: {STATEMENT_FILE} beside the roster."
        ),
    ] = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Change nothing; ask who knows the new key and which datasets name it."),
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Make this agent's next key, and the statement by which others take it. It still signs with the old one."""
    here = here_of(context)
    if check:
        _tell(standing_of(here), as_json)
        return
    old, now = load_key(here.settings.identity.key), datetime.now(UTC)
    if previous_of(here.settings.identity.key).exists() and not next_of(here.settings.identity.key).exists():
        raise BadSettings("the key before this one is still kept: dc-compute keys retire")
    path = next_of(here.settings.identity.key)
    new = load_key(path) if path.exists() else make_key(path)  # one that was begun goes on
    roster = read(here)
    entry = roster.find(new.keyid)
    if entry is None:
        text = sign_rotation(old, new, issued=now, until=now + timedelta(days=days))
        wanted = with_rotation(roster, text, now=now, valid_until=now + VALID)
        write(here, wanted, before=roster)
        entry = wanted.find(new.keyid)
    if entry is None or entry.rotation is None:
        raise BadSettings(f"{path} holds a key that the roster knows without a statement: move it away")
    file = to or here.settings.trust.roster.with_name(STATEMENT_FILE)
    if not write_new(file, f"{entry.rotation}\n".encode(), 0o644):
        replace_file(file, f"{entry.rotation}\n".encode())
    _tell_rotation(entry, file, as_json)


def switch(
    context: typer.Context,
    force: Annotated[
        bool, typer.Option("--force", help="Though somebody does not know the new key, or does not answer.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Sign with the new key from the next start of the services on. Both are known from now to the overlap's end."""
    here = here_of(context)
    path = here.settings.identity.key
    if not next_of(path).exists():
        raise BadSettings("there is no next key: dc-compute keys rotate")
    told = standing_of(here)
    deaf = [f"{one.role} {one.name}" for one in told.others if not one.knows]
    if deaf and not force:
        raise BadSettings(
            f"not known to take the new key: {', '.join(deaf)}; `keys rotate --check` tells why, --force goes on"
        )
    switch_keys(path)
    if as_json:
        print_json({"old": told.old, "new": told.new, "until": told.until})
        return
    say(
        f"this agent signs with {short(told.new)} once its services were started anew: systemctl restart dc-compute.target"
    )
    say(f"the old key, {short(told.old)}, is taken until {when(told.until)}")


def retire(
    context: typer.Context,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Though datasets name the old key alone: they can then not be used here."
        ),
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """End the old key here and delete its file. Logs of jobs that ran under it can then not be read any more."""
    here = here_of(context)
    kept = previous_of(here.settings.identity.key)
    if next_of(
        here.settings.identity.key
    ).exists():  # a switch was interrupted: what is kept is the key in use
        raise BadSettings("the next key is not in use yet: dc-compute keys switch")
    if not kept.exists():
        raise BadSettings("no key waits to be retired: `keys rotate`, then `keys switch` come before")
    told, now = standing_of(here), datetime.now(UTC)
    lost = [f"{one.dataset}@{one.version}" for one in told.datasets if not one.names_new]
    if lost and now < told.until and not force:
        raise BadSettings(
            f"sealed for the old key alone, or not known: {', '.join(lost)}; seal them anew, or --force"
        )
    roster = read(here)
    if (entry := roster.find(told.old)) is not None and entry.is_valid(now):
        ended = replace(entry, valid_until=now.replace(microsecond=0))
        wanted = Roster(tuple(ended if one is entry else one for one in roster.entries))
        write(here, wanted, before=roster)
    kept.unlink()
    if as_json:
        print_json({"old": told.old, "new": told.new, "until": told.until})
        return
    say(f"key {short(told.old)} is gone from this host; others take it until {when(told.until)}")


# ------------------------------------------------------------------ how it stands


def standing_of(here: Here) -> Standing:
    """How the rotation stands, everybody asked. Raises: BadSettings when there is none."""
    path, roster = here.settings.identity.key, read(here)
    has_switched = not next_of(path).exists()
    new = load_key(path if has_switched else next_of(path))
    entry = roster.find(new.keyid)
    told = None if entry is None else entry.took_place_of
    if told is None:
        raise BadSettings("no rotation is under way: dc-compute keys rotate")
    step = "over" if datetime.now(UTC) >= told.until else "switched" if has_switched else "rotated"
    return Standing(
        step=step,
        old=told.old,
        new=told.new,
        until=told.until,
        others=_ask_others(here, roster, new),
        datasets=tuple(_datasets(here, roster, new, told)),
    )


def _ask_others(here: Here, roster: Roster, new: SigningKey) -> tuple[Asked, ...]:
    """Everybody whom this agent calls, at the same time."""
    now, own = datetime.now(UTC), roster.keys_of(new.keyid)
    storage = roster.storage_of(new.keyid)
    called = [
        e for e in (*roster.agents(), *roster.orchestrators()) if e.is_valid(now) and e.keyid not in own
    ]
    called = [
        e for e in called if roster.keys_of(e.keyid)[-1] == e.keyid
    ]  # an agent with two keys is asked once
    with ThreadPoolExecutor(CALLS_AT_ONCE) as threads:
        return tuple(
            threads.map(lambda e: _ask(here, e, new), [*([] if storage is None else [storage]), *called])
        )


def _ask(here: Here, entry: RosterEntry, new: SigningKey) -> Asked:
    from agent.wiring_trust import knows_key

    try:
        return Asked(role=entry.role, name=entry.name, knows=knows_key(here.settings, entry, new))
    except AgentError as error:
        return Asked(role=entry.role, name=entry.name, knows=None, why=error.detail)


def _datasets(here: Here, roster: Roster, new: SigningKey, told: Rotation) -> Iterator[Sealed]:
    """Every version of a dataset that this agent has opened, as storage shows its header now."""
    from agent.wiring import open_storage

    refs = _opened(here)
    if not refs:
        return
    # Asked with the key that storage takes: the one in use.
    with open_storage(here.settings, load_key(here.settings.identity.key)) as storage:
        for ref in sorted(refs, key=str):
            try:
                header = parse_header(storage.dataset(ref).header, roster, at=datetime.now(UTC)).header
            except AgentError as error:
                yield Sealed(dataset=ref.id, version=ref.version, names_new=None, why=error.detail)
                continue
            if told.new in header.nodes or told.old in header.nodes:
                yield Sealed(dataset=ref.id, version=ref.version, names_new=told.new in header.nodes)


def _opened(here: Here) -> set[DatasetRef]:
    """The datasets whose shares this agent received, as its audit log tells."""
    from agent.wiring import open_audit

    ledger = here.settings.paths.ledger
    if not ledger.exists():
        return set()
    with open_audit(ledger) as log:
        lines = (one.line for one in log.recorded(1, log.newest()) if one.line is not None)
        values = (line.told for line in lines if line.name == "share.received")
        return {DatasetRef(str(told["dataset"]), str(told["version"])) for told in values}


# ------------------------------------------------------------------ telling


def _tell_rotation(entry: RosterEntry, file: Path, as_json: bool) -> None:
    told = entry.took_place_of
    assert told is not None  # noqa: S101 - the caller looked
    if as_json:
        print_json({"old": told.old, "new": told.new, "until": told.until, "statement": str(file)})
        return
    say(f"old key      {told.old}, taken until {when(told.until)}")
    say(f"new key      {told.new}")
    for number, line in enumerate(fingerprint_lines(told.new).splitlines()):
        say(("fingerprint  " if number == 0 else "             ") + line)
    say(f"statement    {file}")
    say(
        "Next: give everybody of the roster the statement (`dc-compute peers rotate` takes it), ask owners of datasets to"
    )
    say(
        "name the new key, see who does with `dc-compute keys rotate --check`, then `dc-compute keys switch`."
    )


def _tell(told: Standing, as_json: bool) -> None:
    if as_json:
        print_json(told)
        return
    say(
        f"{told.step}: {short(told.old)} gives way to {short(told.new)}, and is taken until {when(told.until)}"
    )
    words = {True: "yes", False: "NO", None: "absent"}
    if told.others:
        print_table(
            ("", "name", "takes the new key", "why~"),
            [(one.role, one.name, words[one.knows], one.why) for one in told.others],
        )
    if told.datasets:
        print_table(
            ("dataset", "version", "names the new key", "why~"),
            [(one.dataset, one.version, words[one.names_new], one.why) for one in told.datasets],
        )
    else:
        say("no dataset was opened here yet; ask the owners of those that are to be")
