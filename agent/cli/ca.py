"""`ca init|request|issue|install|renew|list`: a TLS authority for a consortium, and the certificates of its hosts.

On a host: `request` makes the key, which stays, and a signing request; `install` puts the certificate that came back in its
place. Where the authority is kept, by one person on one machine: `init`, `issue`, `renew`, `list`.
"""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from msgspec.structs import replace

from agent.cli.files import give_to_owner_of_folder, make_folder, replace_file, write_new
from agent.cli.here import Here, here_of, read_file
from agent.cli.keys import load_key
from agent.cli.out import JsonFlag, print_json, print_table, say, when
from agent.cli.roster_file import read, tell_services, write
from agent.errors import BadSettings
from agent.trust.authority import MAX_LEAF_DAYS, Authority, Purpose, new_authority, new_request, read_request
from agent.trust.certificates import (
    CertificateView,
    TlsIdentity,
    is_key_of,
    is_signed_by,
    read_certificates,
    split_chain,
)
from agent.trust.expiry import AHEAD
from agent.trust.keys import next_of, previous_of
from agent.trust.roster import Roster

app = typer.Typer(help="A TLS authority for a consortium, and certificates by it.")

CERTIFICATE, KEY = "ca.crt", "ca.key"
ISSUED, REQUESTS = "issued", "requests"
MAX_PEM_BYTES = 64 << 10

FolderArgument = Annotated[Path, typer.Argument(metavar="FOLDER", help="The authority's folder.")]
DaysOption = Annotated[int, typer.Option(min=1, max=MAX_LEAF_DAYS, help="How long the certificate holds.")]
ToOption = Annotated[Path, typer.Option("--to", metavar="FILE", help="Where to write it; never over a file.")]


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new folder for the authority.")],
    name: Annotated[str, typer.Option(help="The authority's name for people.")] = "dc-compute consortium",
    permit: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DOMAIN",
            help="Sign for hosts below this domain, or in this network (CIDR), only; may be repeated.",
        ),
    ] = None,
    days: Annotated[int, typer.Option(min=MAX_LEAF_DAYS, max=7305, help="How long it holds.")] = 3652,
    as_json: JsonFlag = False,
) -> None:
    """Make an authority. Its key (ca.key, mode 0600) signs for the whole consortium: keep it off the network."""
    made = new_authority(name, permitted=permit or (), now=datetime.now(UTC), days=days)
    make_folder(folder, 0o700)
    for inner in (ISSUED, REQUESTS):
        make_folder(folder / inner, 0o700)
    if not write_new(folder / KEY, made.private_key, 0o600):
        raise BadSettings(f"{folder / KEY} is there already: an authority is never overwritten")
    if not write_new(folder / CERTIFICATE, made.certificate, 0o644):
        raise BadSettings(f"{folder / CERTIFICATE} is there already: an authority is never overwritten")
    (view,) = read_certificates(made.certificate)
    if as_json:
        print_json(_document(folder / CERTIFICATE, view))
        return
    say(
        f"authority    {folder / CERTIFICATE}, until {when(view.not_after)}; give it to everybody (peers add --tls-ca)"
    )
    say(f"its key      {folder / KEY}; give it to nobody")


@app.command()
def request(
    context: typer.Context,
    host: Annotated[
        list[str], typer.Option("--host", metavar="HOST", help="A host name or address; may be repeated.")
    ],
    to: ToOption,
    as_json: JsonFlag = False,
) -> None:
    """Make this host's next TLS key, which stays here, and a signing request for it."""
    here = here_of(context)
    path = next_of(here.settings.listen.tls_key)
    made = new_request(host)
    read_request(made.certificate)  # what the authority would refuse is refused here
    make_folder(path.parent)
    if not write_new(to, made.certificate, 0o644):
        raise BadSettings(f"{to} is there already")
    if not write_new(path, made.private_key, 0o600):  # the key of a request that led nowhere
        replace_file(path, made.private_key)
    give_to_owner_of_folder(path)
    if as_json:
        print_json({"request": str(to), "key": str(path), "names": host})
    else:
        say(
            f"the request is {to}: `dc-compute ca issue` signs it, `dc-compute ca install` takes the certificate"
        )


@app.command()
def issue(
    folder: FolderArgument,
    file: Annotated[Path, typer.Argument(metavar="REQUEST", help="What `ca request` made.")],
    to: ToOption,
    purpose: Annotated[Purpose, typer.Option("--for", help="What the certificate is for.")] = Purpose.SERVER,
    days: DaysOption = MAX_LEAF_DAYS,
    yes: Annotated[
        bool, typer.Option("--yes", help="Do not ask whether these names are the asker's.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Sign a request, after you made sure that its names are its sender's."""
    asked = read_request(read_file(file, limit_bytes=MAX_PEM_BYTES))
    if not yes:
        say("\n".join(asked.names))
        typer.confirm("Are these names those of who sent the request?", abort=True, err=True)
    _issue(folder, asked.pem, to, purpose, days, as_json)


@app.command()
def renew(
    folder: FolderArgument,
    name: Annotated[str, typer.Argument(help="A host name of the certificate, or its serial number.")],
    to: ToOption,
    days: DaysOption = MAX_LEAF_DAYS,
    as_json: JsonFlag = False,
) -> None:
    """Sign the newest request for a host again, for the same key. `ca request` on the host makes a new one instead."""
    found = [one for one in _issued(folder) if name in (one.serial, *one.names)]
    if not found:
        raise BadSettings(f"{folder} issued nothing for {name!r}: dc-compute ca list {folder}")
    newest = max(found, key=lambda one: one.not_before)
    pem = read_file(folder / REQUESTS / f"{newest.serial}.csr", limit_bytes=MAX_PEM_BYTES)
    _issue(folder, pem, to, Purpose.SERVER if newest.is_for_servers else Purpose.CLIENT, days, as_json)


@app.command(name="list")
def list_(folder: FolderArgument, as_json: JsonFlag = False) -> None:
    """List what the authority issued, and when each ends."""
    found, now = sorted(_issued(folder), key=lambda one: one.not_after), datetime.now(UTC)
    if as_json:
        print_json([_document(folder / ISSUED / f"{one.serial}.crt", one) for one in found])
        return
    rows = [
        (", ".join(one.names), "server" if one.is_for_servers else "client", one.serial, when(one.not_after), _told(one, now))
        for one in found
    ]  # fmt: skip
    print_table(("names~", "for", "serial~", "until", ""), rows)


@app.command()
def install(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="CERTIFICATE", help="What `ca issue` wrote.")],
    as_json: JsonFlag = False,
) -> None:
    """Take the certificate for the key of this host's last request, and its authority into the own roster entry."""
    here = here_of(context)
    told, chain = here.settings.listen, read_file(file, limit_bytes=MAX_PEM_BYTES)
    key = next_of(told.tls_key)
    private = read_file(key if key.exists() else told.tls_key, limit_bytes=MAX_PEM_BYTES)
    view, authority = _judge(chain, private)
    if key.exists():
        if told.tls_key.exists():
            replace_or_new(previous_of(told.tls_key), told.tls_key.read_bytes(), 0o600)
        os.replace(key, told.tls_key)
    replace_or_new(told.tls_cert, chain, 0o644)
    if not _tell_roster(here, authority):
        tell_services(here)
    if as_json:
        print_json(_document(told.tls_cert, view))
    else:
        say(f"{told.tls_cert} is for {', '.join(view.names)}, until {when(view.not_after)}")


def replace_or_new(path: Path, data: bytes, mode: int) -> None:
    """The file with this content, whether it is there or not."""
    if not write_new(path, data, mode):
        replace_file(path, data)


# ------------------------------------------------------------------ parts


def _issue(folder: Path, pem: bytes, to: Path, purpose: Purpose, days: int, as_json: bool) -> None:
    root = read_file(folder / CERTIFICATE, limit_bytes=MAX_PEM_BYTES)
    key = read_file(folder / KEY, limit_bytes=MAX_PEM_BYTES)
    now = datetime.now(UTC)
    authority = Authority(TlsIdentity(root, key))
    left = (authority.not_after - now).days
    made = authority.issue(read_request(pem), purpose=purpose, now=now, days=min(days, max(left, 1)))
    (view,) = read_certificates(made)
    write_new(folder / REQUESTS / f"{view.serial}.csr", pem, 0o600)
    write_new(folder / ISSUED / f"{view.serial}.crt", made, 0o600)
    if not write_new(to, made + root, 0o644):
        raise BadSettings(f"{to} is there already; the certificate is {folder / ISSUED / view.serial}.crt")
    if as_json:
        print_json(_document(to, view))
    else:
        say(
            f"{to} is for {', '.join(view.names)}, until {when(view.not_after)}: `dc-compute ca install` takes it"
        )


def _issued(folder: Path) -> list[CertificateView]:
    if not (folder / CERTIFICATE).exists():
        raise BadSettings(f"{folder} is no authority's folder: dc-compute ca init {folder}")
    found: list[CertificateView] = []
    for path in (folder / ISSUED).glob("*.crt"):
        try:
            found += read_certificates(read_file(path, limit_bytes=MAX_PEM_BYTES))
        except ValueError as cause:
            raise BadSettings(f"{path} is no certificate: {cause}") from cause
    return found


def _judge(chain: bytes, private: bytes) -> tuple[CertificateView, str]:
    """What the certificate says, and its authority (PEM). Raises: BadSettings for what nobody could use."""
    try:
        parts = split_chain(chain)
        view = read_certificates(chain)[0]
        if not is_key_of(private, chain):
            raise BadSettings("the certificate is not for the key of this host's last request")
        if len(parts) < 2 or not is_signed_by(parts[0], parts[-1]):
            raise BadSettings("the file is to hold the certificate and then the authority that signed it")
    except ValueError as cause:
        raise BadSettings(f"the file holds no certificates that can be used: {cause}") from cause
    now = datetime.now(UTC)
    if not view.not_before <= now < view.not_after:
        raise BadSettings(f"the certificate holds from {view.not_before} to {view.not_after}, and not now")
    if not view.is_for_servers:
        raise BadSettings("the certificate is for clients: this agent serves")
    return view, parts[-1].decode("ascii")


def _tell_roster(here: Here, authority: str) -> bool:
    """Name the authority in the own entry, for every key of this agent; whether the roster changed, and services know."""
    if not here.settings.trust.roster.exists():
        return False
    roster = read(here)
    own = roster.keys_of(load_key(here.settings.identity.key).keyid)
    entries = tuple(replace(one, tls_ca=authority) if one.keyid in own else one for one in roster.entries)
    if entries == roster.entries:
        return False
    write(here, Roster(entries), before=roster)
    return True


def _told(view: CertificateView, now: datetime) -> str:
    if view.not_after <= now:
        return "over"
    return "ends soon" if view.not_after <= now + AHEAD else ""


def _document(path: Path, view: CertificateView) -> dict[str, Any]:
    return {
        "file": str(path),
        "names": view.names,
        "serial": view.serial,
        "not_before": view.not_before,
        "not_after": view.not_after,
    }
