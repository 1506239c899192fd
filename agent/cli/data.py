"""`data seal|inspect`: at the data owner's desk."""

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, cast

import typer

from agent.cli.audit import digest_of_file
from agent.cli.files import make_folder, write_new
from agent.cli.here import here_of
from agent.cli.out import JsonFlag, print_json, say, short, size
from agent.domain.ids import KeyId, parse_keyid
from agent.domain.orders import DatasetRef
from agent.domain.strict_json import encode
from agent.errors import BadSettings
from agent.trust.dataset_header import DatasetHeader, Use
from agent.trust.envelope import parse_envelope
from agent.trust.keys import SigningKey, encode_base64
from agent.trust.seal import MAX_HEADER_BYTES, make_seal, parse_header, read_preamble

app = typer.Typer(help="Seal datasets for a list of orchestrators, and look at sealed ones.")


class Purpose(StrEnum):
    """The words of a header's `uses`."""

    TRAIN = "train"
    TEST = "test"
    PREDICT = "predict"


@app.command()
def seal(
    file: Annotated[Path, typer.Argument(help="The plain file.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The sealed file. Never overwritten.")],
    shares: Annotated[
        Path,
        typer.Option("--shares", metavar="DIR", help="Folder for one share file (0600) per orchestrator."),
    ],
    dataset: Annotated[str, typer.Option(metavar="UUID", help="The dataset's id.")],
    key: Annotated[Path, typer.Option("--key", metavar="KEY", help="The owner's key file.")],
    orchestrator: Annotated[
        list[str], typer.Option(metavar="KEYID", help="Who keeps a share; all are needed.")
    ],
    node: Annotated[
        list[str], typer.Option(metavar="KEYID", help="An agent that may open it; may be repeated.")
    ],
    use: Annotated[list[Purpose], typer.Option(help="What it may be opened for; may be repeated.")],
    version: Annotated[str, typer.Option(help="The dataset's version.")] = "1",
    as_json: JsonFlag = False,
) -> None:
    """Seal a file. Its key is split over the orchestrators: give each its own share file, then delete the files."""
    owner, ref = SigningKey.load(key), DatasetRef(dataset, version)
    keepers = [_keyid(text) for text in orchestrator]
    names = {keyid: shares / f"{dataset}@{version}.{short(keyid)}.share.json" for keyid in keepers}
    for path in (out, *names.values()):
        if path.exists():
            raise BadSettings(f"{path} exists; nothing is overwritten, move it away first")
    make_folder(shares)
    made = _seal(
        file, out, ref=ref, keepers=keepers, nodes=[_keyid(text) for text in node], uses=use, owner=owner
    )
    for keyid, share in made:
        document = {
            "dataset": dataset,
            "version": version,
            "orchestrator": keyid,
            "share": encode_base64(share),
        }
        if not write_new(names[keyid], encode(document), 0o600):
            raise BadSettings(f"{names[keyid]} exists; nothing is overwritten")
    digest = digest_of_file(out)
    if as_json:
        told = {keyid: str(path) for keyid, path in names.items()}
        print_json({"file": str(out), "digest": digest, "size": out.stat().st_size, "shares": told})
        return
    say(f"sealed {file} as {out}: {digest}, {size(out.stat().st_size)}")
    for keyid, path in names.items():
        say(f"share of orchestrator {short(keyid)}: {path}")


@app.command()
def inspect(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="A sealed file.")],
    roster: Annotated[
        bool,
        typer.Option("--verify/--no-verify", help="Check the owner's signature against the agent's roster."),
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Show the header of a sealed file. The data need no opening for that."""
    from agent.domain.strict_json import decode

    try:
        with file.open("rb") as stream:
            envelope = read_preamble(stream)
    except OSError as cause:
        raise BadSettings(f"{file} cannot be read: {cause.strerror}") from cause
    opened = parse_envelope(envelope, limit_bytes=MAX_HEADER_BYTES)
    header = decode(opened.payload, DatasetHeader, limit_bytes=MAX_HEADER_BYTES, what="the header")
    if roster:
        from agent.wiring import now, read_roster

        header = parse_header(envelope, read_roster(here_of(context).settings), at=now()).header
    if as_json:
        print_json({"owner": opened.keyid, "is_verified": roster, "header": header})
        return
    say(f"dataset        {header.ref}")
    say(f"size           {size(header.size)} of plaintext")
    say(f"owner          {opened.keyid} ({'signature holds' if roster else 'not verified: use --verify'})")
    say(f"cipher         {header.cipher}, key {header.scheme}")
    for name, values in (
        ("orchestrators", [holder.keyid for holder in header.orchestrators]),
        ("nodes", list(header.nodes)),
        ("uses", list(header.uses)),
    ):
        for number, value in enumerate(values):
            say(f"{name if number == 0 else '':<14} {value}")


def _seal(
    file: Path,
    out: Path,
    *,
    ref: DatasetRef,
    keepers: list[KeyId],
    nodes: list[KeyId],
    uses: list[Purpose],
    owner: SigningKey,
) -> tuple[tuple[KeyId, bytes], ...]:
    """Write the sealed file, whole or not at all. Raises: BadSettings."""
    beside = out.with_name(f".{out.name}.new")
    try:
        make_folder(out.parent, 0o755)
        with file.open("rb") as plain, beside.open("xb") as sealed:
            made = make_seal(
                plain,
                sealed,
                size=os.fstat(plain.fileno()).st_size,
                dataset=ref.id,
                version=ref.version,
                orchestrators=keepers,
                nodes=nodes,
                uses=cast(list[Use], [use.value for use in uses]),
                owner=owner,
            )
            sealed.flush()
            os.fsync(sealed.fileno())
        os.replace(beside, out)
    except OSError as cause:
        raise BadSettings(f"{file} cannot be sealed as {out}: {cause.strerror}") from cause
    finally:
        beside.unlink(missing_ok=True)
    return made


def _keyid(text: str) -> KeyId:
    try:
        return parse_keyid(text)
    except ValueError as cause:
        raise BadSettings(str(cause)) from cause
