"""The tree that we unpack is the one that Podman shows, but for owners and rights, which are flattened as they should be."""

import os
import stat
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from agent.domain.ids import Digest, digest_of, hex_of
from agent.pipeline.outputs import file_digest
from agent.ports.image_archive import inspect
from agent.ports.image_tree import unpack
from agent.ports.runtime_podman_api import ApiRefusal, PodmanApi
from tests.host.podman import Engine, open_engine, probe_archive
from tests.ports.test_image_tree import FOLDER, Content, entry, image_of, link

pytestmark = pytest.mark.host

Seen = dict[str, tuple[str, bytes | str, int]]  # kind, content or link, rights of user 1000


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    yield from open_engine()


def in_podman(engine: Engine, archive: Path, digest: Digest, target: Path) -> Seen:
    """What a container of this image would see, as Podman tells it; the image is gone afterwards."""
    runtime, api = engine.runtime(), PodmanApi(engine.socket)
    runtime.load(archive, digest)
    image = hex_of(inspect(archive, digest).image_id)
    container = api.post("/containers/create", {"image": image, "command": ["/none"]})["Id"]
    try:
        with (
            httpx.Client(transport=httpx.HTTPTransport(uds=str(engine.socket)), timeout=60) as client,
            client.stream("GET", f"http://podman/v4.0.0/libpod/containers/{container}/export") as answer,
            target.open("wb") as file,
        ):
            for block in answer.raise_for_status().iter_bytes():
                file.write(block)
    finally:
        api.delete(f"/containers/{container}", force="true")
        with suppress(ApiRefusal):
            api.delete(f"/images/{image}", force="true")
    with tarfile.open(target) as exported:
        return dict(_exported(exported))


def _exported(exported: tarfile.TarFile) -> Iterator[tuple[str, tuple[str, bytes | str, int]]]:
    for member in exported:
        name = member.name.removeprefix("./").rstrip("/")
        if not name or name == ".":
            continue
        shift = 6 if member.uid == 1000 else 3 if member.gid == 1000 else 0
        rights = member.mode >> shift & 5
        if member.issym():
            yield name, ("link", member.linkname, 0)
        elif member.isdir():
            yield name, ("folder", "", rights)
        else:
            content = exported.extractfile(member)  # of a hard link: that of its file
            assert content is not None
            yield name, ("file", digest_of(content.read()), rights)


def in_tree(archive: Path, digest: Digest, target: Path) -> Seen:
    unpack(archive, inspect(archive, digest), target)
    found: Seen = {}
    for folder, folders, files in os.walk(target):
        for name in (*folders, *files):
            path = Path(folder, name)
            info = path.lstat()
            where = str(path.relative_to(target))
            if stat.S_ISLNK(info.st_mode):
                found[where] = ("link", os.readlink(path), 0)
                continue
            assert info.st_mode & 0o7022 == 0
            assert info.st_mode >> 3 & 7 == info.st_mode & 7
            kind, content = ("folder", "") if path.is_dir() else ("file", digest_of(path.read_bytes()))
            found[where] = (kind, content, info.st_mode & 7)
    return found


# What Podman itself puts into a container's root.
OF_PODMAN = {
    "etc",
    "etc/mtab",
    "etc/hosts",
    "etc/hostname",
    "etc/resolv.conf",
    "run",
    "run/.containerenv",
    "run/secrets",
}
OF_PODMAN |= {"proc", "sys", "dev", "dev/pts", "dev/shm", "dev/mqueue", "tmp", "var", "var/tmp"}


def assert_same(engine: Engine, archive: Path, digest: Digest, tmp_path: Path) -> None:
    theirs = in_podman(engine, archive, digest, tmp_path / "export.tar")
    ours = in_tree(archive, digest, tmp_path / "tree")
    wrong = {
        name: (ours.get(name), theirs.get(name))
        for name in ours.keys() | theirs.keys()
        if ours.get(name) != theirs.get(name) and not (name in OF_PODMAN and name not in ours)
    }
    assert wrong == {}
    assert len(ours) > 0


def test_the_probe_image_is_the_same_as_in_podman(engine: Engine, tmp_path: Path) -> None:
    archive, digest = probe_archive()

    assert_same(engine, archive, digest, tmp_path)


ODD: dict[str, list[Mapping[str, Content]]] = {
    "whiteouts": [
        {"a/x": b"1", "a/y": b"1", "b/x/z": b"1", "c/x": b"1", "c/d/x": b"1", "e": link("a")},
        {"a/.wh.x": b"", ".wh.b": b"", "c/new": b"2", "c/d/new": b"2", "c/.wh..wh..opq": b"", ".wh.e": b""},
        {"b/again": b"3", "e/now": b"3", "c/x": b"3"},
    ],
    "kinds over kinds": [
        {"a": b"1", "b/x": b"1", "c/x": b"1", "d": link("a"), "e": b"1", "f": link("b"), "g": link("b")},
        {"a": link("b"), "b": b"2", "c/y": b"2", "d": b"2", "e": FOLDER, "f": FOLDER, "e/x": b"2", "f/x": b"2"},
        {"b": FOLDER, "b/new": b"3", ".wh.g": b""},
    ],
    "a folder again, over a file over a folder": [{"a/x": b"1"}, {"a": b"2"}, {"a": FOLDER, "a/y": b"3"}],
    "owners and modes": [
        {
            "mine": entry(uid=1000, gid=1000, mode=0o700),
            "ours": entry(uid=0, gid=1000, mode=0o750),
            "root's": entry(uid=0, gid=0, mode=0o600),
            "su": entry(uid=0, gid=0, mode=0o4755),
            "high": entry(uid=65534, gid=65534, mode=0o755),
            "shut": entry(tarfile.DIRTYPE, mode=0o700),
            "open": entry(tarfile.DIRTYPE, mode=0o1777),
            "shut/inside": b"1",
        },
        {"shut": entry(tarfile.DIRTYPE, mode=0o755), "open/x": entry(mode=0o640)},
    ],
    "links": [
        {
            "a/x": b"1",
            "a/y": entry(tarfile.LNKTYPE, "a/x"),
            "out": link("../../../etc/passwd"),
            "loop": link("loop"),
            "absolute": link("/a/x"),
            "spelt oddly": link(".//a/../a/x"),
        },
        {"a/x": b"2"},
    ],
    "names": [{"ü/ß\u202f": b"1", "n" * 255: b"1", "with space/\\x41": b"1", "d/" * 40 + "deep": b"1", "-rf": b"1"}],
}  # fmt: skip


@pytest.mark.parametrize("layers", ODD.values(), ids=ODD)
def test_odd_layers_are_the_same_as_in_podman(
    engine: Engine, tmp_path: Path, layers: list[Mapping[str, Content]]
) -> None:
    archive, _ = image_of(tmp_path / "image.tar", *layers)

    assert_same(engine, archive, file_digest(archive), tmp_path)
