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
def training_image(has_packages: bool) -> tuple[Path, Digest]:
    """(archive, digest) of the image of `guests/training.py`. `has_packages`: whether it has scikit-learn, to train at all."""
    folder = cache_folder()
    layers = [python_layer(folder), *([packages_layer(folder, ["scikit-learn"])] if has_packages else [])]
    inside = f"{PROGRAM_ROOT}/training.py"
    layers.append(program_layer(folder, {inside: TRAINING.read_bytes()}))
    archive = folder / ("training.tar" if has_packages else "training-short.tar")
    return archive, build_image(archive, layers=layers, entrypoint=[PYTHON, "-u", inside], env=ENV)


TRAINING = Path(__file__).parent / "guests" / "training.py"
