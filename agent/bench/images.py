"""The bench's images, made on this host without any registry: one that does nothing, and one that trains."""

from functools import cache
from pathlib import Path

from agent.bench.run import cache_folder
from agent.domain.ids import Digest
from agent.selftest.images import (
    ENV,
    PROGRAM_ROOT,
    PYTHON,
    Entry,
    build_image,
    command_layer,
    packages_layer,
    program_layer,
    python_layer,
)

SHELL = Path("/bin/sh").resolve()
MODEL = "/data/model"  # where the no-op leaves its empty file: writable in the image too, for who mounts nothing there
NOOP = f": > {MODEL}/noop"
DD = Path("/usr/bin/dd").resolve()
GROW = f"""set -e
for file in /data/train/*; do [ ! -f "$file" ] || read mib < "$file"; done
[ -e {MODEL}/weights ] || {DD} if=/dev/zero of={MODEL}/weights bs=1048576 count="$mib" status=none
{DD} if=/dev/urandom of={MODEL}/mark bs=16 count=1 status=none"""
NOOP_WORDS = (str(SHELL), "-c", NOOP)
BARE_WORDS = (str(SHELL), "-c", ": > /dev/shm/noop")  # the same where the image's root cannot be written


@cache
def noop_image() -> tuple[Path, Digest]:
    """(archive, digest) of an image that leaves an empty model and ends: a shell and its C library, 2 MB, nothing to start up.

    Whatever arguments it is given are ignored.
    """
    archive, folder = cache_folder() / "learns-nothing.tar", cache_folder()
    layers = [command_layer(folder, SHELL), program_layer(folder, {MODEL: Entry(is_open=True)})]
    return archive, build_image(archive, layers=layers, entrypoint=NOOP_WORDS, env={"PATH": "/usr/bin"})


@cache
def model_image() -> tuple[Path, Digest]:
    """(archive, digest) of an image that leaves a model of as many MiB as its dataset says; an earlier model goes on as it is.

    No two trainings leave the same bytes.
    """
    archive, folder = cache_folder() / "model.tar", cache_folder()
    layers = [command_layer(folder, SHELL), command_layer(folder, DD)]
    return archive, build_image(
        archive, layers=layers, entrypoint=[str(SHELL), "-c", GROW], env={"PATH": "/usr/bin"}
    )


@cache
def training_image(has_packages: bool) -> tuple[Path, Digest]:
    """(archive, digest) of the image of `guests/training.py`. `has_packages`: whether it has scikit-learn, to train at all."""
    folder = cache_folder()
    layers = [python_layer(folder), *([packages_layer(folder, ["scikit-learn"])] if has_packages else [])]
    inside = f"{PROGRAM_ROOT}/training.py"
    layers.append(program_layer(folder, {inside: TRAINING.read_bytes()}))
    archive = folder / ("training.tar" if has_packages else "training-short.tar")
    return archive, build_image(archive, layers=layers, entrypoint=[PYTHON, "-u", inside], env=ENV)


TRAINING = Path(__file__).parent / "guests" / "training.py"
