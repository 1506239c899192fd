"""`image add|list|prune|build|try`: images of jobs, as archives named by their digest."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Annotated

import typer

from agent.cli.audit import digest_of_file
from agent.cli.doctor_patient import owner_file
from agent.cli.files import as_owner_of
from agent.cli.here import here_of
from agent.cli.image_try import try_
from agent.cli.keys import load_key
from agent.cli.out import JsonFlag, print_json, print_table, say, size, when
from agent.errors import BadSettings
from agent.ports.builder import Base
from agent.ports.storage import BlobKind

app = typer.Typer(
    help="Images of jobs: OCI archives (`podman save --format oci-archive`), named by their digest."
)
app.command(name="try")(try_)


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
    from agent.wiring import inspect_image, make_runtime, open_storage

    settings = here_of(context).settings
    digest = digest_of_file(file)
    about = inspect_image(file, digest)
    if upload:
        with open_storage(settings, load_key(settings.identity.key)) as storage:
            storage.put_blob(digest, BlobKind.IMAGE, file)
    if load:
        runtime = make_runtime(settings, load_key(settings.identity.key).keyid)
        with as_owner_of(owner_file(settings)), _readable(file):
            runtime.load(file, digest)
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
    from agent.wiring import make_runtime

    settings = here_of(context).settings
    runtime = make_runtime(settings, load_key(settings.identity.key).keyid)
    with as_owner_of(owner_file(settings)):
        images = runtime.images()
    if as_json:
        print_json(images)
        return
    print_table(
        ("digest", "size#", "used", "entrypoint"),
        [
            (image.digest, size(image.size_bytes), when(image.used_at), " ".join(image.entrypoint))
            for image in images
        ],
    )


@app.command()
def prune(
    context: typer.Context,
    everything: Annotated[
        bool, typer.Option("--all", help="Every image that no open job names, not only the old ones.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would go.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Discard loaded images that are not needed: unused for [limits] image_days, or more than images_bytes together.

    The worker does the same by itself every minute. What goes is fetched from storage again when an order names it.
    """
    from agent.pipeline.collect import collect_images
    from agent.wiring import open_host

    settings = here_of(context).settings
    with as_owner_of(owner_file(settings)), open_host(settings) as host:
        gone = collect_images(host, is_everything=everything, is_rehearsal=dry_run)
    if as_json:
        print_json({"is_rehearsal": dry_run, "images": gone})
        return
    print_table(
        ("digest", "size#", "used", "why"),
        [(one.image.digest, size(one.image.size_bytes), when(one.image.used_at), one.reason) for one in gone],
    )
    say(f"{len(gone)} image{'' if len(gone) == 1 else 's'} {'would go' if dry_run else 'discarded'}")


@app.command()
def build(
    context: typer.Context,
    archive: Annotated[
        Path, typer.Argument(help="The build context: a tar.gz with a Dockerfile at its root.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Where the image's archive goes.")],
    base: Annotated[
        list[Path] | None,
        typer.Option("--base", help="An archive that FROM may name; else it comes from storage."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Build an image without any network, when the policy's `allow_build` says so, and print its digest.

    FROM takes `scratch` or a name of the policy's [bases]. Every RUN runs in the cage of a job, with the policy's ceilings.
    """
    from agent.pipeline.garbage import BUILD_PREFIX, BUILDS
    from agent.wiring import (
        inspect_image,
        open_builder,
        open_storage,
        read_policy,
    )

    settings = here_of(context).settings
    policy = read_policy(settings)
    policy.admit_build()
    key = load_key(settings.identity.key)
    given = {digest_of_file(path): path for path in base or ()}
    with ExitStack() as stack:
        stack.enter_context(as_owner_of(owner_file(settings)))
        builder = stack.enter_context(open_builder(settings, key.keyid))
        # In the builder's own folder: what a killed build leaves, the next one removes.
        work = settings.paths.spool / BUILDS
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix=BUILD_PREFIX, dir=work))

        def find_base(name: str) -> Base | None:
            digest = policy.bases.get(name)
            if digest is None:
                return None
            if digest not in given:
                given[digest] = Path(folder) / "base.tar"
                with open_storage(settings, key) as storage:
                    storage.fetch_blob(digest, given[digest], limit_bytes=settings.limits.max_image_bytes)
            return Base(given[digest], digest)

        built = Path(folder) / "image.tar"
        with _readable(archive):
            digest = builder.build(
                archive, find_base, built, policy.ceilings, frozenset(policy.accept_missing)
            )
        about = inspect_image(built, digest)
        source = built.open("rb")  # read as who called, who may write where the service may not
    _write_out(source, out)
    if as_json:
        print_json({"digest": digest, "size": about.size_bytes, "entrypoint": about.entrypoint})
        return
    say(f"digest      {digest}")
    say(f"size        {size(about.size_bytes)} unpacked")
    say(f"entrypoint  {' '.join(about.entrypoint)}")
    say(f"Look at it, then give it to storage with `dc-compute image add {out}`.")


def _write_out(source: IO[bytes], out: Path) -> None:
    """The archive where the caller wants it; it appears whole. Raises: BadSettings."""
    part = out.with_name(f"{out.name}.{os.getpid()}.part")
    try:
        with source, part.open("xb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
        os.replace(part, out)
    except OSError as cause:
        raise BadSettings(f"{out} cannot be written: {cause.strerror}") from cause
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """Say so when the agent's own user may not read the archive."""
    try:
        yield
    except PermissionError as cause:
        raise BadSettings(f"{cause.filename or file} cannot be read by the agent's user") from cause
