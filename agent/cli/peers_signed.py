"""`peers trust|sync|sign`: a roster that a consortium's coordinator signs, with a root key that the operator has pinned."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from agent.cli.files import replace_file, write_new
from agent.cli.here import Here, here_of, read_file
from agent.cli.keys import load_key, tell
from agent.cli.out import JsonFlag, print_json, print_table, say, short
from agent.cli.roster_file import alone, read, read_or_empty, write
from agent.cli.told import FingerprintOption, YesFlag, confirm_key, key_in, read_pem
from agent.errors import BadSettings, RosterConflict, StaleRoster
from agent.trust.envelope import parse_envelope
from agent.trust.keys import PublicKey
from agent.trust.roster import MAX_ROSTER_BYTES, Roster, open_roster_bundle, sign_roster
from agent.trust.roster_changes import Change, plan_sync

BUNDLE_SUFFIX = ".bundle.json"  # the signed roster beside the roster's file, kept for its version
ROOT_SUFFIX = ".root"  # the pinned root key beside it
ROSTER_ROUTE = "/v1/roster"
WIRE_LIMIT = 2 * MAX_ROSTER_BYTES


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command()(trust)
    app.command()(sync)
    app.command()(sign)


def trust(
    context: typer.Context,
    root: Annotated[
        str | None, typer.Argument(metavar="BASE64", help="The root key; without it the pinned one is shown.")
    ] = None,
    fingerprint: FingerprintOption = None,
    yes: YesFlag = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Take this key instead of the one that is pinned.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Pin the key by which the consortium's coordinator signs rosters: `peers sync` takes no other one's."""
    here = here_of(context)
    path, pinned = _root_path(here), _pinned(here)
    if root is None:
        if pinned is None:
            raise BadSettings(f"no root key is pinned at {path}: dc-compute peers trust BASE64")
        tell(pinned, path, as_json)
        return
    key = key_in(root)
    if pinned is not None and pinned != key and not replace:
        raise RosterConflict(f"root key {pinned.keyid} is pinned at {path}; --replace takes {key.keyid}")
    confirm_key(key, "the consortium's root key", told=fingerprint, yes=yes)
    if not path.exists():
        write_new(path, f"{key.base64}\n".encode(), 0o640)
    replace_file(path, f"{key.base64}\n".encode())
    _forget_others(here, key)  # not before: the versions of a key that stays pinned are never forgotten
    tell(key, path, as_json)


def sync(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(help="An https URL, a file, or an orchestrator's name or key id, to be asked signed."),
    ],
    root: Annotated[
        str | None,
        typer.Option("--root", metavar="BASE64", help="The root key; default: the one of `peers trust`."),
    ] = None,
    tls_ca: Annotated[
        Path | None, typer.Option(metavar="PEM", help="The authority of the URL's certificate.")
    ] = None,
    accept_key: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Accept a new key without a statement for this name or key id; may be repeated.",
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Take over the roster that the consortium's root key signed. Its version never goes back, the own entry stays."""
    here, root_key = here_of(context), _root_of(here_of(context), root)
    data = _fetch(here, source, None if tls_ca is None else read_pem(tls_ca))
    version, signed = _open(here, data, root_key)
    roster = read_or_empty(here)
    wanted, changes = plan_sync(roster, signed, load_key(here.settings.identity.key).keyid, accept_key or ())
    if changes and not as_json:
        print_table(("", "role", "name", "key id", "what~"), [_row(change) for change in changes])
    if changes and not yes:
        typer.confirm(f"Take over version {version} with these {len(changes)} changes?", abort=True, err=True)
    with alone(here):
        _open(
            here, data, root_key
        )  # again: another sync may have gone on to a newer one while a person was asked
        _keep(here, data)  # first: what was seen once is not gone back on
    if wanted != roster:
        write(here, wanted, before=roster)
    if as_json:
        told = [
            {"what": one.kind, "role": one.entry.role, "name": one.entry.name, "keyid": one.entry.keyid,
             "fields": one.fields}
            for one in changes
        ]  # fmt: skip
        path = str(here.settings.trust.roster)
        print_json({"version": version, "entries": len(wanted.entries), "roster": path, "changes": told})
        return
    say(f"version {version} of the roster, {len(wanted.entries)} entries, is in {here.settings.trust.roster}")


def sign(
    file: Annotated[Path, typer.Argument(metavar="ROSTER", help="The roster as `roster.toml` has it.")],
    key: Annotated[Path, typer.Option("--key", metavar="PEM", help="The root key's file.")],
    version: Annotated[int, typer.Option(min=1, help="Higher than that of the one before.")],
    to: Annotated[Path, typer.Option("--to", metavar="FILE", help="Where to write it; never over a file.")],
    days: Annotated[int, typer.Option(min=1, max=3650, help="How long it may be taken over.")] = 90,
    as_json: JsonFlag = False,
) -> None:
    """Sign a roster as the consortium's coordinator, for the agents that pinned the key."""
    try:
        roster = Roster.from_toml(read_file(file, limit_bytes=MAX_ROSTER_BYTES).decode())
    except UnicodeDecodeError as cause:
        raise BadSettings(f"{file} is not UTF-8") from cause
    expires = datetime.now(UTC) + timedelta(days=days)
    if not write_new(to, sign_roster(roster, version, load_key(key), expires), 0o644):
        raise BadSettings(f"{to} is there already")
    if as_json:
        print_json({"file": str(to), "version": version, "entries": len(roster.entries), "expires": expires})
    else:
        say(
            f"version {version}, {len(roster.entries)} entries, is in {to}; agents take it over for {days} days"
        )


# ------------------------------------------------------------------ parts


def _root_path(here: Here) -> Path:
    path = here.settings.trust.roster
    return path.with_name(path.name + ROOT_SUFFIX)


def _bundle_path(here: Here) -> Path:
    path = here.settings.trust.roster
    return path.with_name(path.name + BUNDLE_SUFFIX)


def _pinned(here: Here) -> PublicKey | None:
    path = _root_path(here)
    if not path.exists():
        return None
    return key_in(read_file(path, limit_bytes=1024).decode("ascii", "replace").strip())


def _root_of(here: Here, told: str | None) -> PublicKey:
    """The root key to judge by. Raises: BadSettings without one, RosterConflict when another one is pinned."""
    pinned, key = _pinned(here), None if told is None else key_in(told)
    if pinned is not None and key is not None and pinned != key:
        raise RosterConflict(f"root key {pinned.keyid} is pinned; `peers trust --replace` takes another one")
    root = pinned or key
    if root is None:
        raise BadSettings("no root key is pinned: `dc-compute peers trust BASE64` first, or --root BASE64")
    return root


def _open(here: Here, data: bytes, root: PublicKey) -> tuple[int, Roster]:
    """The version and the roster of what is offered, held against the one before. Raises: StaleRoster, and as opening it."""
    bundle, known = _bundle_path(here), 0
    before = read_file(bundle, limit_bytes=WIRE_LIMIT) if bundle.exists() else None
    if before is not None:
        known, _ = open_roster_bundle(before, root, 0)
    version, signed = open_roster_bundle(data, root, known, now=datetime.now(UTC))
    if before is not None and version == known and _digest(before) != _digest(data):
        raise StaleRoster(
            f"another roster than the one offered had version {version}: the coordinator signs a new one"
        )
    return version, signed


def _forget_others(here: Here, root: PublicKey) -> None:
    """Forget the roster that another key signed: this one counts versions of its own."""
    bundle = _bundle_path(here)
    if not bundle.exists():
        return
    before = parse_envelope(read_file(bundle, limit_bytes=WIRE_LIMIT), limit_bytes=MAX_ROSTER_BYTES)
    if before.keyid != root.keyid:
        bundle.unlink()


def _digest(data: bytes) -> str:
    return parse_envelope(data, limit_bytes=MAX_ROSTER_BYTES).digest


def _keep(here: Here, data: bytes) -> None:
    path = _bundle_path(here)
    if not write_new(path, data, 0o640):
        replace_file(path, data)


def _fetch(here: Here, source: str, tls_ca: str | None) -> bytes:
    """The signed roster from a file, a URL, or an orchestrator of the roster in use."""
    from agent.wiring import open_orchestrator
    from agent.wiring_trust import fetch_public

    if source.startswith("https://"):
        return fetch_public(here.settings, source, tls_ca, WIRE_LIMIT)
    if Path(source).exists():
        return read_file(Path(source), limit_bytes=WIRE_LIMIT)
    if "://" in source:
        raise BadSettings(f"{source} is no https URL: a roster is fetched by https only")
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


def _row(change: Change) -> tuple[object, ...]:
    what = ", ".join(change.fields)
    if change.instead_of is not None:
        what = f"beside {change.instead_of.name}, key {short(change.instead_of.keyid)}"
    return (change.kind, change.entry.role, change.entry.name, short(change.entry.keyid), what)
