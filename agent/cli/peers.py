"""`peers list|show|add|remove|rotate`: the roster, edited by hand. With a signed one: `peers_signed.py`."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from agent.cli import peers_signed
from agent.cli.here import here_of
from agent.cli.out import JsonFlag, fingerprint_lines, print_json, print_table, say, short, when
from agent.cli.roster_file import block, entry_named, read, read_or_empty, write
from agent.cli.told import (
    DaysOption,
    FingerprintOption,
    YesFlag,
    confirm_key,
    key_in,
    read_pem,
    read_statement,
)
from agent.errors import BadSettings
from agent.trust.fingerprints import fingerprint as fingerprint_of
from agent.trust.roster import Role, Roster, RosterEntry
from agent.trust.roster_changes import with_entry, with_rotation
from agent.trust.rotation import open_rotation

app = typer.Typer(help="The roster: whom this agent knows.")


@app.command(name="list")
def list_(context: typer.Context, as_json: JsonFlag = False) -> None:
    """List everybody of the roster."""
    roster, now = read(here_of(context)), datetime.now(UTC)
    if as_json:
        print_json([
            {**_document(entry), "is_valid": entry.is_valid(now)} for entry in roster.entries
        ])  # fmt: skip
        return
    rows = [
        (entry.role, entry.name, short(entry.keyid),
         entry.agent_url or entry.orchestrator_url or entry.storage_url, _standing(entry, now))
        for entry in roster.entries
    ]  # fmt: skip
    print_table(("role", "name", "key id", "address~", "valid"), rows)


@app.command()
def show(
    context: typer.Context,
    who: Annotated[str, typer.Argument(help="A name, a key id, or the first 8 digits or more of one.")],
    as_json: JsonFlag = False,
) -> None:
    """Show one entry, with its fingerprint to read aloud."""
    here, now = here_of(context), datetime.now(UTC)
    roster = read(here)
    entry = entry_named(who, roster, here.settings.trust.roster)
    others = [key for key in roster.keys_of(entry.keyid) if key != entry.keyid]
    if as_json:
        told = {**_document(entry), "is_valid": entry.is_valid(now), "tls_ca": entry.tls_ca}
        print_json(told | {"fingerprint": fingerprint_of(entry.keyid), "other_keys": others})
        return
    say(f"{entry.role} {entry.name}, {_standing(entry, now)}")
    say(f"key id       {entry.keyid}")
    say(f"public key   {entry.public_key_base64}")
    for number, line in enumerate(fingerprint_lines(entry.keyid).splitlines()):
        say(("fingerprint  " if number == 0 else "             ") + line)
    for name in ("agent_url", "storage_url", "orchestrator_url"):
        if (url := getattr(entry, name)) is not None:
            say(f"{name.replace('_url', ' at'):<12} {url}")
    say(f"TLS          {'the authority of its entry' if entry.tls_ca else 'the authorities of this system'}")
    for key in others:
        say(f"also         {key}, by a rotation")


@app.command()
def add(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A name for people.")],
    role: Annotated[Role, typer.Option(help="What its key may do.")],
    public_key: Annotated[
        str, typer.Option("--public-key", metavar="BASE64", help="As `keys show` prints it.")
    ],
    agent_url: Annotated[str | None, typer.Option(metavar="URL", help="Where the agent answers.")] = None,
    storage_url: Annotated[
        str | None, typer.Option(metavar="URL", help="Where (its) storage answers.")
    ] = None,
    orchestrator_url: Annotated[str | None, typer.Option(metavar="URL", help="Where it answers.")] = None,
    tls_ca: Annotated[
        Path | None, typer.Option(metavar="PEM", help="The authority of its certificate.")
    ] = None,
    days: DaysOption = 365,
    fingerprint: FingerprintOption = None,
    yes: YesFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Add somebody to the roster, after their fingerprint was compared with them."""
    here, now = here_of(context), datetime.now(UTC)
    entry = make_entry(
        public_key,
        role,
        name,
        agent_url=agent_url,
        storage_url=storage_url,
        orchestrator_url=orchestrator_url,
        tls_ca=None if tls_ca is None else read_pem(tls_ca),
        valid_from=now - timedelta(minutes=5),
        valid_until=now + timedelta(days=days),
    )
    roster = read_or_empty(here)
    wanted = with_entry(roster, entry)
    confirm_key(entry.public_key, f"{entry.role} {entry.name}", told=fingerprint, yes=yes)
    write(here, wanted, before=roster)
    if as_json:
        print_json(_document(entry))
    else:
        say(f"{entry.role} {entry.name} ({short(entry.keyid)}) is in {here.settings.trust.roster}")


@app.command()
def remove(
    context: typer.Context,
    who: Annotated[str, typer.Argument(help="A name, a key id, or the first 8 digits or more of one.")],
    as_json: JsonFlag = False,
) -> None:
    """Take somebody out of the roster. To bar a key for good, set `revoked_at` instead."""
    here = here_of(context)
    path, roster = here.settings.trust.roster, read(here)
    entry = entry_named(who, roster, path)
    wanted = Roster(tuple(other for other in roster.entries if other.keyid != entry.keyid))
    write(here, wanted, before=roster)
    if as_json:
        print_json(_document(entry))
    else:
        say(f"{entry.role} {entry.name} ({short(entry.keyid)}) is no longer in {path}")


@app.command()
def rotate(
    context: typer.Context,
    statement: Annotated[Path, typer.Argument(help="The file that an agent's `keys rotate` wrote.")],
    days: DaysOption = 365,
    fingerprint: FingerprintOption = None,
    yes: YesFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Take in an agent's new key beside its old one, by a statement that both have signed."""
    here, now = here_of(context), datetime.now(UTC)
    roster, text = read(here), read_statement(statement)
    wanted = with_rotation(roster, text, now=now, valid_until=now + timedelta(days=days))
    told = open_rotation(text)
    entry = wanted.find(told.new)
    assert entry is not None  # noqa: S101 - with_rotation put it there
    if wanted != roster:
        confirm_key(entry.public_key, f"the new key of {entry.role} {entry.name}", told=fingerprint, yes=yes)
        write(here, wanted, before=roster)
    if as_json:
        print_json({**_document(entry), "follows": told.old, "until": told.until})
        return
    say(
        f"{entry.role} {entry.name} signs with {short(told.new)}, and with {short(told.old)} until {when(told.until)}"
    )


peers_signed.register(app)


# ------------------------------------------------------------------ parts


def make_entry(public_key: str, role: Role, name: str, **fields: object) -> RosterEntry:
    """An entry from what the command line says. Raises: BadSettings."""
    try:
        entry = RosterEntry.of(key_in(public_key), role, name, **fields)
        Roster.from_toml(block(entry))  # the constraints of its fields
    except ValueError as cause:
        raise BadSettings(f"this is no roster entry: {cause}") from cause
    return entry


def _standing(entry: RosterEntry, now: datetime) -> str:
    if entry.revoked_at is not None:
        return f"revoked {when(entry.revoked_at)}"
    if now < entry.valid_from:
        return f"from {when(entry.valid_from)}"
    return f"{'until' if now < entry.valid_until else 'expired'} {when(entry.valid_until)}"


def _document(entry: RosterEntry) -> dict[str, object]:
    return {
        "keyid": entry.keyid,
        "role": entry.role,
        "name": entry.name,
        "public_key": entry.public_key_base64,
        "agent_url": entry.agent_url,
        "storage_url": entry.storage_url,
        "orchestrator_url": entry.orchestrator_url,
        "valid_from": entry.valid_from,
        "valid_until": entry.valid_until,
        "revoked_at": entry.revoked_at,
    }
