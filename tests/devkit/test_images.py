"""Images made here without a registry: the same content is the same digest, and what they share is made once."""

import json
import os
import tarfile
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from agent.devkit.images import program_image
from agent.domain.ids import digest_of
from agent.selftest.images import (
    Entry,
    _byte_code,
    _cached_layer,
    build_image,
    packages_layer,
    program_layer,
    python_layer,
)


def names(path: Path) -> list[str]:
    with tarfile.open(path) as archive:
        return archive.getnames()


def test_the_same_files_are_the_same_layer_in_another_cache_at_another_time(tmp_path: Path) -> None:
    module = tmp_path / "m.py"
    module.write_text("x = {'a', 'b', 'c'}\n")

    one = _cached_layer(tmp_path / "one", {"m.py": Entry(module), "b": Entry(b"b")})
    os.utime(module, (1, 1))
    two = _cached_layer(tmp_path / "two", {"b": Entry(b"b"), "m.py": Entry(module)})

    assert one.digest == two.digest == digest_of(two.path.read_bytes())
    assert one.size_bytes == one.path.stat().st_size


def test_a_layer_is_made_once_and_again_when_a_file_changes(tmp_path: Path) -> None:
    module = tmp_path / "m.py"
    module.write_text("x = 1\n")
    first = _cached_layer(tmp_path / "cache", {"m.py": Entry(module)})
    made_at = first.path.stat().st_mtime_ns

    assert _cached_layer(tmp_path / "cache", {"m.py": Entry(module)}) == first
    assert first.path.stat().st_mtime_ns == made_at
    module.write_text("x = 22\n")
    assert _cached_layer(tmp_path / "cache", {"m.py": Entry(module)}).digest != first.digest


def test_nothing_in_a_layer_tells_when_or_by_whom_it_was_made(tmp_path: Path) -> None:
    layer = program_layer(tmp_path, {"/opt/a/b.py": b"pass\n"})

    with tarfile.open(layer.path) as archive:
        for member in archive:
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
            assert member.mode == (0o755 if member.isdir() else 0o644)


def test_byte_code_runs_whatever_the_time_of_its_source() -> None:
    code = _byte_code("m.py", b"x = 1\n")

    assert code is not None
    assert code[4:8] == b"\1\0\0\0"  # unchecked: PEP 552
    assert _byte_code("m.py", b"this is no Python") is None


def test_packages_come_without_sources_and_tests(tmp_path: Path) -> None:
    inside = names(packages_layer(tmp_path, ["msgspec"]).path)

    assert "opt/packages/msgspec/json.pyc" in inside
    assert any(name.startswith("opt/packages/msgspec/_core") for name in inside)
    assert not [name for name in inside if name.endswith((".py", ".pyi")) or "/tests/" in name]


def test_packages_may_come_from_another_environment_and_with_sources(tmp_path: Path) -> None:
    about = tmp_path / "site/elsewhere-1.0.dist-info"
    about.mkdir(parents=True)
    (tmp_path / "site/elsewhere.py").write_text("x = 1\n")
    (about / "METADATA").write_text(
        'Metadata-Version: 2.1\nName: elsewhere\nVersion: 1.0\nRequires-Dist: colorama; sys_platform == "win32"\n'
    )
    (about / "RECORD").write_text("elsewhere.py,,\nelsewhere-1.0.dist-info/METADATA,,\n")

    inside = names(packages_layer(tmp_path, ["elsewhere"], site=tmp_path / "site").path)
    with_sources = names(
        packages_layer(tmp_path, ["elsewhere"], site=tmp_path / "site", has_sources=True).path
    )

    assert {"opt/packages/elsewhere.pyc", "opt/packages/elsewhere-1.0.dist-info/METADATA"} <= set(inside)
    assert "opt/packages/elsewhere.py" in set(with_sources) - set(inside)
    with pytest.raises(PackageNotFoundError):
        packages_layer(tmp_path, ["msgspec"], site=tmp_path / "site")


def test_the_base_layer_has_what_python_needs(tmp_path: Path) -> None:
    inside = set(names(python_layer(tmp_path).path))

    assert {"usr/bin/python3", "tmp", "data"} <= inside
    assert any(name.endswith("/encodings/__init__.py") for name in inside)
    assert any("libc.so" in name for name in inside)


def test_two_programs_share_every_layer_but_their_own(tmp_path: Path) -> None:
    one, two = tmp_path / "one.tar", tmp_path / "two.tar"

    digest = program_image(one, "probe", tmp_path / "cache")
    assert program_image(one, "probe", tmp_path / "cache") == digest == digest_of(one.read_bytes())
    program_image(two, "probe", tmp_path / "cache", words=("sleep", "60", "+"))

    assert len({*names(one)} & {*names(two)}) >= 2 + 4  # two layers, two folders, index and layout
    with tarfile.open(two) as archive:
        configs = [archive.extractfile(name) for name in names(two) if name.startswith("blobs/sha256/")]
        entry_points = [
            json.loads(content)["config"]["Entrypoint"]
            for file in configs
            if file is not None and (content := file.read(1 << 16)).startswith(b'{"architecture"')
        ]
    assert entry_points == [["/usr/bin/python3", "-u", "/opt/program/probe.py", "sleep", "60", "+"]]


def test_an_archive_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    layer = program_layer(tmp_path, {"/a": b"a"})
    layer.path.unlink()

    with pytest.raises(FileNotFoundError):
        build_image(tmp_path / "image.tar", layers=[layer], entrypoint=["/a"])

    assert not (tmp_path / "image.tar").exists()
