"""What people give the command about keys: public halves, fingerprints, statements, certificates, and their own word."""

from pathlib import Path
from typing import Annotated

import typer

from agent.cli.here import read_file
from agent.cli.out import fingerprint_lines, say
from agent.errors import BadSettings
from agent.trust.fingerprints import check_fingerprint
from agent.trust.keys import PublicKey
from agent.trust.rotation import MAX_ROTATION_BYTES

MAX_PEM_BYTES = 64 << 10

FingerprintOption = Annotated[
    str | None,
    typer.Option(
        metavar="DIGITS",
        help="What its owner read to you; compared instead of asking you. A key id does too.",
    ),
]
YesFlag = Annotated[bool, typer.Option("--yes", help="Do not ask: the fingerprints were compared.")]
DaysOption = Annotated[int, typer.Option(min=1, max=3650, help="How long the key holds from now.")]


def confirm_key(key: PublicKey, whose: str, *, told: str | None, yes: bool) -> None:
    """Return only when a person stands for this key: by what they were told, or by their word.

    Raises: WrongFingerprint; typer.Abort when they say no.
    """
    if told is not None:
        check_fingerprint(key.keyid, told)
    elif not yes:
        say(whose)
        for line in fingerprint_lines(key.keyid).splitlines():
            say(f"  {line}")
        typer.confirm("Did its owner read you the same fingerprint?", abort=True, err=True)


def read_pem(path: Path) -> str:
    """Certificates in PEM. Raises: BadSettings."""
    try:
        return read_file(path, limit_bytes=MAX_PEM_BYTES).decode("ascii")
    except ValueError as cause:
        raise BadSettings(f"{path} is not PEM") from cause


def read_statement(path: Path) -> str:
    """The text of a rotation statement, not judged. Raises: BadSettings."""
    try:
        return read_file(path, limit_bytes=2 * MAX_ROTATION_BYTES).decode("ascii").strip()
    except ValueError as cause:
        raise BadSettings(f"{path} is no rotation statement") from cause


def key_in(text: str) -> PublicKey:
    """The public key as `keys show` prints it. Raises: BadSettings."""
    try:
        return PublicKey.from_base64(text)
    except ValueError as cause:
        raise BadSettings(f"{text[:80]!r} is not a public key as `keys show` prints it: {cause}") from cause
