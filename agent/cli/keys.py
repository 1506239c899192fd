"""`keys show|new`: Ed25519 keys of agents, orchestrators, owners and storages."""

from pathlib import Path
from typing import Annotated, Any

import typer

from agent.cli.files import as_owner_of, give_to_owner_of_folder, make_folder
from agent.cli.here import here_of
from agent.cli.out import JsonFlag, fingerprint_lines, print_json, say
from agent.trust.fingerprints import fingerprint
from agent.trust.keys import PublicKey, SigningKey

app = typer.Typer(help="Make keys, and show the public half of one.")


@app.command()
def show(
    context: typer.Context,
    file: Annotated[Path | None, typer.Argument(help="A key file; default: this agent's own.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show a key's id, its fingerprint to read aloud, and its public half."""
    path = here_of(context).settings.identity.key if file is None else file
    tell(load_key(path).public, path, as_json)


@app.command()
def new(
    file: Annotated[Path, typer.Argument(help="Where to write it (mode 0600). Never overwritten.")],
    as_json: JsonFlag = False,
) -> None:
    """Make a key."""
    tell(make_key(file).public, file, as_json)


def load_key(path: Path) -> SigningKey:
    """The key in this file; root may read that of a service. Raises: BadSettings."""
    with as_owner_of(path):
        return SigningKey.load(path)


def make_key(path: Path) -> SigningKey:
    """A new key in a new file. Raises: BadSettings when something stands there."""
    make_folder(path.parent)
    key = SigningKey.generate()
    key.save(path)
    give_to_owner_of_folder(path)
    return key


def tell(key: PublicKey, path: Path, as_json: bool) -> None:
    """Print the public half."""
    if as_json:
        print_json(document(key, path))
        return
    say(f"file         {path}")
    say(f"key id       {key.keyid}")
    say(f"public key   {key.base64}")
    for number, line in enumerate(fingerprint_lines(key.keyid).splitlines()):
        say(("fingerprint  " if number == 0 else "             ") + line)


def document(key: PublicKey, path: Path) -> dict[str, Any]:
    """The public half for programs."""
    return {
        "file": str(path),
        "keyid": key.keyid,
        "public_key": key.base64,
        "fingerprint": fingerprint(key.keyid),
    }
