"""The guest's image, made on this host from its own interpreter: no registry, no download."""

from pathlib import Path

from agent.domain.ids import Digest
from agent.selftest.images import (
    ENV,
    PROGRAM_ROOT,
    PYTHON,
    Entry,
    build_image,
    interpreter,
    program_layer,
    python_layer,
)

ARCHIVE = "guest.tar"
OPEN_FOLDER = (
    "/opt/open"  # for everybody, so that nothing but the read-only root keeps a guest from writing there
)
OPEN_PROGRAM = "/opt/open/program"
SET_ID_PROGRAM = "/opt/set-id/python3"
GUEST_ENV = ENV | {"PYTHONPATH": PROGRAM_ROOT}

_PACKAGE = "agent/selftest/guest"


def guest_image(cache: Path) -> tuple[Path, Digest]:
    """(archive, its digest) below `cache`; made once, and anew when this program or the interpreter changed."""
    layers = [python_layer(cache), program_layer(cache, _files())]
    entrypoint = [PYTHON, "-u", "-m", _PACKAGE.replace("/", ".")]
    archive = cache / ARCHIVE
    digest = build_image(archive, layers=layers, entrypoint=entrypoint, env=GUEST_ENV)
    kept = {layer.path.stem for layer in layers}
    for path in cache.glob("*.tar"):
        if path != archive and path.stem not in kept:  # of an older program or interpreter
            path.unlink(missing_ok=True)
            path.with_suffix(".json").unlink(missing_ok=True)
    return archive, digest


def _files() -> dict[str, bytes | Entry]:
    sources = Path(__file__).parent / "guest"
    files: dict[str, bytes | Entry] = {
        f"{PROGRAM_ROOT}/{_PACKAGE}/{path.name}": path.read_bytes() for path in sorted(sources.glob("*.py"))
    }
    for package in ("agent", "agent/selftest"):  # the guest alone: none of the agent's own code goes in
        files[f"{PROGRAM_ROOT}/{package}/__init__.py"] = b""
    files[OPEN_FOLDER] = Entry(is_open=True)
    files[OPEN_PROGRAM] = Entry(b"#!/usr/bin/python3\n", is_open=True)
    files[SET_ID_PROGRAM] = Entry(interpreter(), is_set_id=True)
    return files
