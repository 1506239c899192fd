"""`image add|list`: images of jobs, as archives named by their digest."""

from pathlib import Path
from typing import Annotated

import typer

from agent.cli.audit import digest_of_file
from agent.cli.here import here_of
from agent.cli.out import JsonFlag, print_json, print_table, say, size
from agent.ports.storage import BlobKind

app = typer.Typer(
    help="Images of jobs: OCI archives (`podman save --format oci-archive`), named by their digest."
)


@app.command()
def add(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="The archive.")],
    upload: Annotated[
        bool, typer.Option("--upload/--no-upload", help="Give it to this node's storage.")
    ] = True,
    load: Annotated[bool, typer.Option("--load", help="Load it into the container engine now.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Look into an image's archive, refuse what no engine should see, give it to storage, and print its digest."""
    from agent.wiring import inspect_image, open_runtime, open_storage

    settings = here_of(context).settings
    digest = digest_of_file(file)
    about = inspect_image(file, digest)
    if upload:
        with open_storage(settings) as storage:
            storage.put_blob(digest, BlobKind.IMAGE, file)
    if load:
        open_runtime(settings).load(file, digest)
    if as_json:
        told = {"digest": digest, "size": about.size_bytes, "entrypoint": about.entrypoint}
        print_json({**told, "is_uploaded": upload, "is_loaded": load})
        return
    say(f"digest      {digest}")
    say(f"size        {size(about.size_bytes)} unpacked")
    say(f"entrypoint  {' '.join(about.entrypoint) or 'none'}")
    say(
        f"uploaded    {'yes' if upload else 'no'}, loaded {'yes' if load else 'no: the first task that needs it does'}"
    )
    say(f"To let it run here, add its digest to `images` of {settings.trust.policy}.")


@app.command(name="list")
def list_(context: typer.Context, as_json: JsonFlag = False) -> None:
    """List the images that the container engine of this host has loaded."""
    from agent.wiring import open_runtime

    images = open_runtime(here_of(context).settings).images()
    if as_json:
        print_json(images)
        return
    print_table(
        ("digest", "size#", "entrypoint"),
        [(image.digest, size(image.size_bytes), " ".join(image.entrypoint)) for image in images],
    )
