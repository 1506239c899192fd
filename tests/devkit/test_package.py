"""What `make package` makes: the same bytes every time, all that is needed and nothing else, and a true list of its parts."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from agent import __version__
from agent.devkit import package

ROOT = package.CHECKOUT
MAKE = """
import sys
from pathlib import Path
from agent.devkit.package import make_package
make_package(*map(Path, sys.argv[1:]))
"""
NAME = f"dc_compute-{__version__}"


def copy_of(source: Path, target: Path) -> Path:
    """The sources alone, as a clone of somebody else has them."""
    left_out = shutil.ignore_patterns(
        ".git", ".venv", ".*_cache", ".hypothesis", "__pycache__", "build", "dist"
    )
    shutil.copytree(source, target, ignore=left_out)
    return target


def make(source: Path, target: Path, umask: int, moment: str) -> dict[str, bytes]:
    """The files of a package by name, made by a process with this umask and these words on the time."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "SOURCE_DATE_EPOCH": moment}
    subprocess.run(
        [sys.executable, "-c", MAKE, source, target], env=environment, umask=umask, timeout=120, check=True
    )  # fmt: skip
    return {file.name: file.read_bytes() for file in target.iterdir()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a package of these sources."""
    folder = tmp_path_factory.mktemp("package")
    make(copy_of(ROOT, folder / "src"), folder / "dist", 0o022, "1000000000")
    return folder / "dist"


def test_the_same_sources_give_the_same_bytes_in_another_folder_at_another_time_by_somebody_else(
    made: Path, tmp_path: Path
) -> None:
    elsewhere = copy_of(ROOT, tmp_path / "a" / "longer" / "way")
    for path in [elsewhere, *elsewhere.rglob("*")]:
        path.chmod(0o700 if path.is_dir() or os.access(path, os.X_OK) else 0o600)
        os.utime(path, (981173106, 981173106))
    (elsewhere / "agent" / "__pycache__").mkdir()
    (elsewhere / "agent" / "__pycache__" / "left.cpython-311.pyc").write_bytes(b"left")

    again = make(elsewhere, tmp_path / "out", 0o077, "2000000000")

    assert again == {file.name: file.read_bytes() for file in made.iterdir()}
    assert set(again) == {f"{NAME}-py3-none-any.whl", f"{NAME}.tar.gz", "sbom.json", "SHA256SUMS"}


def test_the_wheel_holds_every_file_of_agent_and_nothing_else(made: Path) -> None:
    files = {
        file.relative_to(ROOT).as_posix()
        for file in (ROOT / "agent").rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }

    with zipfile.ZipFile(made / f"{NAME}-py3-none-any.whl") as wheel:
        names = set(wheel.namelist())

    assert {name for name in names if not name.startswith(f"{NAME}.dist-info/")} == files
    assert {f"{NAME}.dist-info/entry_points.txt", f"{NAME}.dist-info/licenses/LICENSE"} <= names


def test_the_sdist_holds_what_an_install_needs_and_no_tests(made: Path) -> None:
    with tarfile.open(made / f"{NAME}.tar.gz") as sdist:
        names = {name.removeprefix(f"{NAME}/") for name in sdist.getnames()}
    units = {file.relative_to(ROOT).as_posix() for file in (ROOT / "systemd").rglob("*") if file.is_file()}
    profiles = {f"seccomp/{file.name}" for file in (ROOT / "seccomp").glob("*.json")}

    assert {"install.sh", "requirements.lock", ".ci/build.lock", "pyproject.toml", "LICENSE"} <= names
    assert units | profiles <= names
    assert not [
        name for name in names if name.startswith(("tests/", "build/", "dist/")) or "__pycache__" in name
    ]


def test_the_digests_are_those_of_the_files(made: Path) -> None:
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=made, check=False, capture_output=True
    )

    assert done.returncode == 0
    assert done.stdout.count(b": OK") == 3


# ------------------------------------------------------------------ the list of parts


def test_the_list_of_parts_is_a_whole_cyclonedx_document(made: Path) -> None:
    text = (made / "sbom.json").read_text()
    document = json.loads(text)
    refs = {part["bom-ref"] for part in document["components"]} | {package.ME}

    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    assert {entry["ref"] for entry in document["dependencies"]} == refs
    assert {ref for entry in document["dependencies"] for ref in entry["dependsOn"]} == refs - {package.ME}
    assert "timestamp" not in document["metadata"]


def test_the_list_of_parts_has_every_package_of_the_lock_with_its_digests(made: Path) -> None:
    lock = (ROOT / "requirements.lock").read_text()
    document = json.loads((made / "sbom.json").read_text())
    told = {
        f"{part['name']}=={part['version']}": {
            digest["content"] for refers in part["externalReferences"] for digest in refers["hashes"]
        }
        for part in document["components"]
    }

    assert sum(map(len, told.values())) == lock.count("--hash=sha256:")
    for name, digests in told.items():
        entry = lock.partition(f"\n{name} ")[2].partition("    # via")[0]
        assert {
            line.strip(" \\").removeprefix("--hash=sha256:") for line in entry.splitlines()[1:]
        } == digests


def test_the_list_of_parts_names_the_archives_it_belongs_to(made: Path) -> None:
    me = json.loads((made / "sbom.json").read_text())["metadata"]["component"]
    told = {refers["url"]: refers["hashes"][0]["content"] for refers in me["externalReferences"]}

    assert (me["name"], me["version"]) == ("dc-compute", __version__)
    assert told == {file.name: package.digest(file) for file in made.glob("dc_compute-*")}


def test_a_lock_tells_who_wants_a_package_and_when() -> None:
    text = """# a comment
cffi==2.1.1 ; platform_python_implementation != 'PyPy' \\
    --hash=sha256:00
    # via
    #   cryptography
    #   other-one
h11==0.16.0 \\
    --hash=sha256:11 \\
    --hash=sha256:22
    # via dc-compute (pyproject.toml)
"""

    assert package.read_lock(text) == {
        "cffi": {
            "marker": "platform_python_implementation != 'PyPy'",
            "via": frozenset({"cryptography", "other-one"}),
        },
        "h11": {"marker": "", "via": frozenset({"dc-compute"})},
    }


def test_an_entry_of_a_lock_that_is_not_understood_is_an_error() -> None:
    with pytest.raises(package.PackageFailed, match="not understood: left @ file"):
        package.read_lock("left @ file:///left\n")
