"""What a release is made of, in `dist/`: wheel, sdist, the list of its parts, and the digests of all three.

    python -m agent.devkit.package        makes them anew; `make package` calls it

Twice from the same sources gives the same bytes, wherever, whenever and by whom: the moment in the archives is a constant,
modes are hatchling's, and the list of parts (CycloneDX, in JSON) has no moment and a serial number made of its text. What it
says of a part comes from requirements.lock (version, digests, who wants it) and from the part's own metadata (licence).
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agent import __version__

CHECKOUT = Path(__file__).resolve().parent.parent.parent
LOCK = "requirements.lock"
MOMENT = (
    1735689600  # 2025-01-01: SOURCE_DATE_EPOCH of every release, later than 1980, where a zip's time begins
)
ME = f"pkg:pypi/dc-compute@{__version__}"
NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "pkg:pypi/dc-compute")

Document = dict[str, Any]


class PackageFailed(Exception):
    """A tool did not do its part. The message has what it said."""


def make_package(source: Path, target: Path) -> tuple[Path, ...]:
    """Wheel, sdist, sbom.json and SHA256SUMS of the sources in `source`, in the folder `target`, which is made anew.

    Raises: PackageFailed.
    """
    with tempfile.TemporaryDirectory(prefix="package-", dir=_made(target.parent)) as place:
        made = Path(place) / "dist"
        built = build(source, made)
        parts = made / "sbom.json"
        parts.write_text(text_of(sbom(source / LOCK, built)), encoding="utf-8")
        files = sorted((*built, parts))
        (made / "SHA256SUMS").write_text("".join(f"{digest(file)}  {file.name}\n" for file in files))
        for file in made.iterdir():
            file.chmod(0o644)
        if target.exists():
            shutil.rmtree(target)
        made.rename(target)
    return tuple(target / file.name for file in (*files, made / "SHA256SUMS"))


def build(source: Path, target: Path) -> tuple[Path, ...]:
    """Wheel and sdist of the sources. Raises: PackageFailed."""
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(MOMENT), "PYTHONDONTWRITEBYTECODE": "1"}
    _run([sys.executable, "-m", "hatchling", "build", "-d", str(target)], source, environment)
    return tuple(sorted(target.iterdir()))


def digest(file: Path) -> str:
    """SHA-256, in hex."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


# ------------------------------------------------------------------ the list of parts


def sbom(lock: Path, built: tuple[Path, ...]) -> Document:
    """The CycloneDX document of what a host gets: the built archives, and every package of the lock.

    Raises: PackageFailed.
    """
    told = _cyclonedx("requirements", str(lock))
    here = _cyclonedx("environment", sys.prefix)["components"]
    licences = {part["purl"]: part.get("licenses") for part in here if "purl" in part}
    locked = read_lock(lock.read_text())
    names = {part["name"]: part["purl"] for part in told["components"]}
    components = [_component(part, locked[part["name"]], licences) for part in told["components"]]
    wanted = {names[name]: locked[name]["via"] for name in names}
    document: Document = {
        **{name: told[name] for name in ("$schema", "bomFormat", "specVersion", "version")},
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": ME,
                "name": "dc-compute",
                "version": __version__,
                "purl": ME,
                "licenses": [{"license": {"id": "Apache-2.0", "acknowledgement": "declared"}}],
                "externalReferences": [
                    {
                        "type": "distribution",
                        "url": file.name,
                        "hashes": [{"alg": "SHA-256", "content": digest(file)}],
                    }
                    for file in built
                ],
            },
            "tools": _stripped(told["metadata"]["tools"]),
        },
        "components": sorted(components, key=lambda part: part["purl"]),
        "dependencies": [
            {
                "ref": ref,
                "dependsOn": sorted(purl for purl, via in wanted.items() if name in via),
            }
            for name, ref in sorted({**names, "dc-compute": ME}.items())
        ],
    }
    return {**document, "serialNumber": f"urn:uuid:{uuid.uuid5(NAMESPACE, text_of(document))}"}


def text_of(document: Document) -> str:
    """The document's text, the same for the same document."""
    return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def read_lock(text: str) -> Mapping[str, Document]:
    """By name of package: {"marker": when it is installed ("" always), "via": the names of those that want it}.

    Shape: `name==version ; marker`, its hashes, then `# via name`, or `# via` and a name in each line below.
    """
    found: dict[str, Document] = {}
    for entry in re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE)[1:]:
        head = re.match(r"([a-z0-9.-]+)==[^ ;\\\n]+(?: ; ([^\\\n]+?))? *\\?\n", entry)
        if head is None:
            raise PackageFailed(f"{LOCK}: not understood: {entry.splitlines()[0]}")
        _, _, told = entry.partition("# via")
        via = re.findall(r"^[ #]*([a-z0-9.-]+)", told, flags=re.MULTILINE)
        found[head[1]] = {"marker": head[2] or "", "via": frozenset(via)}
    return found


def _component(part: Document, locked: Document, licences: Mapping[str, Any]) -> Document:
    """A package: of the tool's words those that stay the same when a line of the lock moves, and whose licence it has."""
    made = {name: part[name] for name in ("type", "name", "version", "purl", "externalReferences")}
    made["bom-ref"] = part["purl"]
    if licence := licences.get(part["purl"]):
        made["licenses"] = licence
    if marker := locked["marker"]:
        made["properties"] = [{"name": "dc-compute:installed-if", "value": marker}]
    return made


def _stripped(tools: Document) -> Document:
    """Who wrote it, by name and version."""
    kept = ("type", "name", "version")
    return {
        "components": [{name: tool[name] for name in kept if name in tool} for tool in tools["components"]]
    }


def _cyclonedx(kind: str, about: str) -> Document:
    program = Path(sys.prefix) / "bin" / "cyclonedx-py"
    if not program.exists():
        raise PackageFailed(f"{program} is not there: run this with the .venv of `make deps`")
    told = _run(
        [str(program), kind, "--output-reproducible", "--of", "JSON", "--sv", "1.6", "--no-validate", about],
        CHECKOUT,
    )
    document: Document = json.loads(told)
    return document


# ------------------------------------------------------------------ small words


def _run(command: list[str], folder: Path, environment: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise PackageFailed(f"{' '.join(command)}: {done.stderr or done.stdout}")
    return done.stdout


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def main() -> None:
    """Make them in `dist/` of this checkout."""
    try:
        files = make_package(CHECKOUT, CHECKOUT / "dist")
    except PackageFailed as error:
        raise SystemExit(f"package: {error}") from error
    for file in files:
        print(f"{digest(file)}  {file.relative_to(CHECKOUT)}")


if __name__ == "__main__":
    main()
