"""`peers list|add|remove|sync`: the roster, edited by hand or taken from the consortium."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from agent.cli.files import make_folder, replace_file
from agent.cli.here import Here, here_of, read_file
from agent.cli.keys import load_key
from agent.cli.out import JsonFlag, fingerprint_lines, print_json, print_table, say, short, when
from agent.errors import BadSettings
from agent.trust.keys import PublicKey
from agent.trust.roster import MAX_ROSTER_BYTES, Role, Roster, RosterEntry, open_roster_bundle

app = typer.Typer(help="The roster: whom this agent knows.")

BUNDLE_SUFFIX = ".bundle.json"  # the signed roster beside the roster's file, kept for its version
ROSTER_ROUTE = "/v1/roster"
MAX_PEM_BYTES = 64 << 10

_BLOCK = re.compile(r"(?m)^(?=\[\[entries\]\])")


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
    days: Annotated[int, typer.Option(min=1, max=3650, help="How long the key holds from now.")] = 365,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask: the fingerprints were compared.")] = False,
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
    if not yes:
        say(f"{entry.role} {entry.name}\n".rstrip())
        for line in fingerprint_lines(entry.keyid).splitlines():
            say(f"  {line}")
        typer.confirm("Did its owner read you the same fingerprint?", abort=True, err=True)
    append(here, entry)
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
    found = [e for e in roster.entries if who == e.name or (len(who) >= 8 and e.keyid.startswith(who))]
    if len(found) != 1:
        raise BadSettings(f"{who!r} means {len(found)} entries of {path}")
    (entry,) = found
    replace_file(path, without(_text(path), entry, roster).encode())
    if as_json:
        print_json(_document(entry))
    else:
        say(f"{entry.role} {entry.name} ({short(entry.keyid)}) is no longer in {path}")


@app.command()
def sync(
    context: typer.Context,
    source: Annotated[
        str, typer.Argument(help="A file with a signed roster, or an orchestrator's name or key id.")
    ],
    root: Annotated[
        str,
        typer.Option("--root", metavar="BASE64", help="The consortium's root key, as `keys show` prints it."),
    ],
    as_json: JsonFlag = False,
) -> None:
    """Take over the roster that the consortium's root key signed. Its version never goes back."""
    here = here_of(context)
    path, root_key = here.settings.trust.roster, _public_key(root)
    bundle = path.with_name(path.name + BUNDLE_SUFFIX)
    known = 0
    if bundle.exists():
        known, _ = open_roster_bundle(read_file(bundle, limit_bytes=2 * MAX_ROSTER_BYTES), root_key, 0)
    data = _fetch(here, source)
    version, roster = open_roster_bundle(data, root_key, known)
    text = (
        f"# Version {version} of the consortium's roster. `dc-compute peers sync` writes this file anew.\n\n"
    )
    replace_file(path, (text + roster.to_toml()).encode())
    replace_file(bundle, data)
    if as_json:
        print_json({"version": version, "entries": len(roster.entries), "roster": str(path)})
    else:
        say(f"version {version} of the roster, {len(roster.entries)} entries, is in {path}")


# ------------------------------------------------------------------ the roster's file


def read(here: Here) -> Roster:
    """The roster of this agent. Raises: BadSettings."""
    return Roster.from_toml(_text(here.settings.trust.roster))


def append(here: Here, entry: RosterEntry) -> None:
    """Add an entry at the end of the file; what stands there, comments too, stays. Raises: BadSettings."""
    path = here.settings.trust.roster
    text = _text(path) if path.exists() else ""
    if Roster.from_toml(text).find(entry.keyid) is not None:
        raise BadSettings(f"key {entry.keyid} is in {path} already")
    more = text + ("" if not text or text.endswith("\n\n") else "\n") + block(entry)
    Roster.from_toml(more)
    make_folder(path.parent)
    replace_file(path, more.encode())


def block(entry: RosterEntry) -> str:
    """The entry as it stands in the file."""
    return Roster((entry,)).to_toml()


def without(text: str, entry: RosterEntry, roster: Roster) -> str:
    """The file's text without this entry, other text left as it is where that gives the right roster."""
    wanted = Roster(tuple(other for other in roster.entries if other.keyid != entry.keyid))
    pieces = [piece for piece in _BLOCK.split(text) if not _is_block_of(piece, entry)]
    left = "".join(pieces)
    try:
        return left if Roster.from_toml(left) == wanted else wanted.to_toml()
    except BadSettings:
        return wanted.to_toml()


def _is_block_of(piece: str, entry: RosterEntry) -> bool:
    return piece.startswith("[[entries]]") and f'"{entry.keyid}"' in piece


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as cause:
        raise BadSettings(f"the roster {path} cannot be read: {cause}") from cause


# ------------------------------------------------------------------ parts


def make_entry(public_key: str, role: Role, name: str, **fields: object) -> RosterEntry:
    """An entry from what the command line says. Raises: BadSettings."""
    try:
        entry = RosterEntry.of(_public_key(public_key), role, name, **fields)
        Roster.from_toml(block(entry))  # the constraints of its fields
    except ValueError as cause:
        raise BadSettings(f"this is no roster entry: {cause}") from cause
    return entry


def read_pem(path: Path) -> str:
    """Certificates in PEM. Raises: BadSettings."""
    try:
        return read_file(path, limit_bytes=MAX_PEM_BYTES).decode("ascii")
    except ValueError as cause:
        raise BadSettings(f"{path} is not PEM") from cause


def _public_key(text: str) -> PublicKey:
    try:
        return PublicKey.from_base64(text)
    except ValueError as cause:
        raise BadSettings(f"{text[:80]!r} is not a public key as `keys show` prints it: {cause}") from cause


def _fetch(here: Here, source: str) -> bytes:
    """The signed roster from a file, or from an orchestrator of the roster in use."""
    from agent.wiring import open_orchestrator

    if Path(source).exists():
        return read_file(Path(source), limit_bytes=2 * MAX_ROSTER_BYTES)
    known = [
        e
        for e in read(here).orchestrators()
        if source == e.name or (len(source) >= 8 and e.keyid.startswith(source))
    ]
    if len(known) != 1:
        raise BadSettings(f"{source!r} is no file, and means {len(known)} orchestrators of the roster")
    key = load_key(here.settings.identity.key)
    with open_orchestrator(here.settings, known[0], key) as client:
        answer = client.get(ROSTER_ROUTE)
    if not answer.is_success:
        raise BadSettings(f"{known[0].name} answers {answer.status} when asked for {ROSTER_ROUTE}")
    return answer.body


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
