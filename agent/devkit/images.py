"""The images of `demo_images/`: a program of ours on the running interpreter. How one is made: agent/selftest/images.py."""

from collections.abc import Sequence
from pathlib import Path

from agent.domain.ids import Digest
from agent.selftest.images import (
    ENV,
    PROGRAM_ROOT,
    PYTHON,
    build_image,
    packages_layer,
    program_layer,
    python_layer,
)


def program_image(
    target: Path,
    program: str,
    cache: Path,
    *,
    words: Sequence[str] = (),
    distributions: Sequence[str] = (),
) -> Digest:
    """An image whose entry point is `demo_images/<program>.py` and these words. Gives the digest of the archive."""
    source = Path(__file__).parent / "demo_images" / f"{program}.py"
    return source_image(
        target, source.name, source.read_bytes(), cache, words=words, distributions=distributions
    )


def source_image(
    target: Path,
    name: str,
    source: bytes,
    cache: Path,
    *,
    words: Sequence[str] = (),
    distributions: Sequence[str] = (),
) -> Digest:
    """An image whose entry point is this source, in a file of this name. Gives the digest of the archive.

    `distributions`: installed packages that it has beside the standard library.
    Raises: importlib.metadata.PackageNotFoundError.
    """
    inside = f"{PROGRAM_ROOT}/{name}"
    layers = [python_layer(cache)]
    if distributions:
        layers.append(packages_layer(cache, distributions))
    layers.append(program_layer(cache, {inside: source}))
    return build_image(target, layers=layers, entrypoint=[PYTHON, "-u", inside, *words], env=ENV)
