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
ELSEWHERE = "/dev/shm/noop"  # noqa: S108 - in the container: where the image's root cannot be written
BARE_WORDS = (str(SHELL), "-c", f": > {ELSEWHERE}")


@cache
def noop_image() -> tuple[Path, Digest]:
    """(archive, digest) of an image that leaves an empty model and ends: a shell and its C library, 2 MB, nothing to start up.

    Whatever arguments it is given are ignored.
    """
    return _shell_image("learns-nothing.tar", NOOP_WORDS)


@cache
def busy_image(cpu_s: int) -> tuple[Path, Digest]:
    """(archive, digest) of the image that does the same after so many seconds of CPU time of its own."""
    return _shell_image(f"busy-{cpu_s}.tar", _busy_words(cpu_s, f"{MODEL}/noop"))


def _shell_image(name: str, words: tuple[str, ...]) -> tuple[Path, Digest]:
    archive, folder = cache_folder() / name, cache_folder()
    layers = [command_layer(folder, SHELL), program_layer(folder, {MODEL: Entry(is_open=True)})]
    return archive, build_image(archive, layers=layers, entrypoint=words, env={"PATH": "/usr/bin"})


def bare_busy_words(cpu_s: int) -> tuple[str, ...]:
    """Its program where the image's root cannot be written."""
    return _busy_words(cpu_s, ELSEWHERE)


def _busy_words(cpu_s: int, file: str) -> tuple[str, ...]:
    """Between rounds of counting the shell asks the kernel what it has used: `0m0.98s 0m0.01s`. That is its model, too."""
    rounds = "i=0; while [ $i -lt 5000 ]; do i=$((i+1)); done"
    minutes = "|".join(f"0m{second}.*" for second in range(cpu_s))
    told = f"while times > {file}; read -r used _ < {file}; do case $used in {minutes}) {rounds};; *) exit;; esac; done"
    return (str(SHELL), "-c", told)


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
