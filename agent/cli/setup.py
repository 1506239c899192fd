"""`init`: a new agent's settings, keys and files. Nothing that is there is ever overwritten."""

import socket
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from agent.cli.files import make_folder, write_new
from agent.cli.here import here_of
from agent.cli.keys import document, load_key, make_key
from agent.cli.out import JsonFlag, fingerprint_lines, print_json, say
from agent.cli.peers import block, make_entry
from agent.config import SETTINGS_FILE, Settings, load_settings
from agent.config_reference import toml_text
from agent.trust.keys import SigningKey
from agent.trust.roster import Role

YEARS_10 = timedelta(days=3652)

POLICY = """\
# What may run on this host. An empty list admits nothing, so as it stands here nothing runs.
# `dc-compute policy show` tells what is in force, `dc-compute policy check ORDER` judges an order.

orchestrators = []   # whose orders run here: key ids of the roster
images = []          # which images run here: "sha256:…" of their archives, as `dc-compute image add` prints them
datasets = []        # which of this host's datasets may be used: their uuids, or "*" for every one
kinds = []           # what may be done with them: "learn", "test", "predict"
hold_unknown = false # true: an order that lacks nothing but an image waits for `dc-compute approve`, else it is refused
accept_missing = []  # ceilings that this host cannot enforce and that you do without, e.g. "memory_bytes"

# The most that one task may use; what is not said here has a default that `dc-compute policy show` tells.
# [ceilings]
# wall_s = 3600
# memory_bytes = 4294967296
"""

ROSTER = """\
# Who is who: one [[entries]] table for each orchestrator, agent, storage and owner of data that this agent knows.
# `dc-compute peers add` writes one after you compared fingerprints; a revoked key keeps its entry, with `revoked_at`.

"""


@dataclass(frozen=True, slots=True)
class Made:
    """A file of a new agent, and whether it was made now."""

    path: Path
    is_new: bool


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(init)


def init(
    context: typer.Context,
    name: Annotated[str | None, typer.Option(help="A name for people; default: the host's.")] = None,
    url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Where others reach this agent, as the roster tells them."),
    ] = None,
    storage_url: Annotated[
        str | None, typer.Option(metavar="URL", help="Where this node's storage answers.")
    ] = None,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="The address to listen on.")] = "0.0.0.0",  # noqa: S104
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port to listen on.")] = 8443,
    certificate: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST", help="Make a TLS certificate for this host name or address; may be repeated."
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a new agent: settings, an identity key, a roster with its own entry, and an empty policy."""
    here = here_of(context)
    settings = load_settings(here.home, {"XDG_RUNTIME_DIR": here.environment.get("XDG_RUNTIME_DIR", "")})
    key_was_there = settings.identity.key.exists()
    make_folder(settings.home, 0o750)
    make_folder(settings.paths.data)
    told = {("listen", "host"): host, ("listen", "port"): port}
    made = [
        Made(
            settings.home / SETTINGS_FILE,
            _write(settings.home / SETTINGS_FILE, toml_text(told, settings)),
        )
    ]
    settings = load_settings(here.home, here.environment)  # a file that was there may say otherwise
    make_folder(settings.identity.key.parent)
    key = load_key(settings.identity.key) if key_was_there else make_key(settings.identity.key)
    made.append(Made(settings.identity.key, not key_was_there))
    made += _make_certificate(settings, certificate or [])
    entry = make_entry(
        key.public.base64,
        Role.AGENT,
        name or socket.gethostname(),
        agent_url=url,
        storage_url=storage_url,
        tls_ca=_authority_of(settings),
        valid_from=datetime.now(UTC) - timedelta(minutes=5),
        valid_until=datetime.now(UTC) + timedelta(days=365),
    )
    made.append(Made(settings.trust.roster, _write(settings.trust.roster, ROSTER + block(entry))))
    made.append(Made(settings.trust.policy, _write(settings.trust.policy, POLICY)))
    _tell(settings, key, made, as_json)


def _write(path: Path, text: str) -> bool:
    """A file that the service's group may read. Whether it is new."""
    make_folder(path.parent, 0o750)
    return write_new(path, text.encode(), 0o640)


def _make_certificate(settings: Settings, names: list[str]) -> list[Made]:
    """The TLS certificate by an authority of its own, whose key is thrown away; nothing unless names are given."""
    told = settings.listen
    if not names:
        return []
    if told.tls_cert.exists() or told.tls_key.exists():
        return [Made(told.tls_cert, False), Made(told.tls_key, False)]
    from agent.trust.certificates import CertificateAuthority

    now, days = datetime.now(UTC), YEARS_10.days
    authority = CertificateAuthority(f"dc-compute {names[0]}"[:64], now=now, days=days)
    server = authority.server(names, now=now, days=days)
    make_folder(told.tls_key.parent)
    make_folder(told.tls_cert.parent)
    return [
        Made(told.tls_key, write_new(told.tls_key, server.private_key, 0o600)),
        Made(told.tls_cert, write_new(told.tls_cert, server.certificate + authority.certificate, 0o644)),
    ]


def _authority_of(settings: Settings) -> str | None:
    """The last certificate of the chain that `init` wrote: the authority that others must trust."""
    marker = "-----BEGIN CERTIFICATE-----"
    try:
        chain = settings.listen.tls_cert.read_text(encoding="ascii").split(marker)
    except (OSError, UnicodeDecodeError):
        return None
    return marker + chain[-1] if len(chain) > 2 else None


def _tell(settings: Settings, key: SigningKey, made: list[Made], as_json: bool) -> None:
    if as_json:
        told: dict[str, Any] = document(key.public, settings.identity.key)
        files = [{"path": str(file.path), "is_new": file.is_new} for file in made]
        print_json({**told, "home": str(settings.home), "files": files})
        return
    for file in made:
        say(f"{'made' if file.is_new else 'kept'}  {file.path}")
    say(f"key id       {key.keyid}")
    for number, line in enumerate(fingerprint_lines(key.keyid).splitlines()):
        say(("fingerprint  " if number == 0 else "             ") + line)
    if not settings.listen.tls_cert.exists():
        say(f"Put a TLS certificate at {settings.listen.tls_cert} and its key at {settings.listen.tls_key}.")
    say("Next: read the fingerprint to your orchestrators and peers, add theirs with `dc-compute peers add`,")
    say(f"and say in {settings.trust.policy} what may run here.")
