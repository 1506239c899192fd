"""Image archives that may be loaded, and each thing for which one is refused."""

import gzip
import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from agent.domain.ids import Digest, digest_of
from agent.errors import BadImage
from agent.ports import image_archive, image_layers, image_parts
from agent.ports.image_archive import inspect
from agent.selftest.images import build_image, program_layer

HERE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
ANY = digest_of(b"the caller has checked it")


def sha(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def tar(entries: Mapping[str, bytes | tarfile.TarInfo]) -> bytes:
    """A tar of files (bytes) and of anything else (a TarInfo)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:") as archive:
        for name, content in entries.items():
            if isinstance(content, bytes):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
            else:
                content.name = name
                archive.addfile(content)
    return out.getvalue()


def special(kind: bytes, linkname: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo("later")
    info.type, info.linkname = kind, linkname
    return info


class Image:
    """An OCI archive in pieces: change one, then write it."""

    def __init__(self, layer: bytes | None = None) -> None:
        self.layer = tar({"bin/program": b"#!"}) if layer is None else layer
        self.layer_type = "application/vnd.oci.image.layer.v1.tar"
        self.diff_id: str | None = None
        self.config: dict[str, Any] = {
            "architecture": HERE,
            "os": "linux",
            "config": {
                "Entrypoint": ["/bin/program"],
                "Env": ["PATH=/bin", "A=b=c"],
                "Volumes": {"/data": {}},
            },
        }
        self.manifest: dict[str, Any] = {}
        self.index: dict[str, Any] = {}
        self.files: dict[str, bytes | tarfile.TarInfo] = {}
        self.without: set[str] = set()

    def write(self, path: Path) -> Path:
        rootfs = {"type": "layers", "diff_ids": [self.diff_id or self.diff_id_of_layer()]}
        config = json.dumps({"rootfs": rootfs, **self.config}).encode()
        manifest = json.dumps(
            {
                "schemaVersion": 2,
                "config": self.part(config, "application/vnd.oci.image.config.v1+json"),
                "layers": [self.part(self.layer, self.layer_type)],
                **self.manifest,
            }
        ).encode()
        head = self.part(manifest, "application/vnd.oci.image.manifest.v1+json")
        index = json.dumps({"schemaVersion": 2, "manifests": [head], **self.index}).encode()
        files: dict[str, bytes | tarfile.TarInfo] = {"index.json": index, "oci-layout": b"{}"}
        files |= {self.name(content): content for content in (config, manifest, self.layer)}
        files |= self.files
        path.write_bytes(tar({name: files[name] for name in files if name not in self.without}))
        return path

    def diff_id_of_layer(self) -> str:
        is_gzip = self.layer.startswith(b"\x1f\x8b")
        return sha(gzip.decompress(self.layer) if is_gzip else self.layer)

    @staticmethod
    def part(content: bytes, media_type: str) -> dict[str, Any]:
        return {"mediaType": media_type, "digest": sha(content), "size": len(content)}

    @staticmethod
    def name(content: bytes) -> str:
        return sha(content).replace("sha256:", "blobs/sha256/")


def docker_archive(path: Path, *, count: int = 1) -> Path:
    layer = tar({"bin/program": b"#!"})
    config = json.dumps(
        {
            "architecture": HERE,
            "os": "linux",
            "config": {"Entrypoint": ["/bin/program"]},
            "rootfs": {"type": "layers", "diff_ids": [sha(layer)]},
        }
    ).encode()
    entry = {"Config": "c.json", "RepoTags": ["x:latest"], "Layers": ["l/layer.tar"]}
    manifest = json.dumps([entry] * count).encode()
    path.write_bytes(tar({"manifest.json": manifest, "c.json": config, "l/layer.tar": layer}))
    return path


def inspected(image: Image, tmp_path: Path) -> image_archive.ImageArchive:
    return inspect(image.write(tmp_path / "image.tar"), ANY)


# ------------------------------------------------------------------ what passes


def test_an_oci_archive_tells_its_id_entry_point_and_environment(tmp_path: Path) -> None:
    image = Image()

    found = inspected(image, tmp_path)

    assert found.entrypoint == ("/bin/program",)
    assert found.env == (("A", "b=c"), ("PATH", "/bin"))
    assert found.size_bytes == len(image.layer)
    assert found.image_id in image.write(tmp_path / "again.tar").read_bytes().decode(errors="replace")


def test_a_docker_archive_passes_and_its_id_is_the_digest_of_its_config(tmp_path: Path) -> None:
    path = docker_archive(tmp_path / "docker.tar")

    found = inspect(path, ANY)

    with tarfile.open(path) as archive:
        config = archive.extractfile("c.json")
        assert config is not None
        assert found.image_id == digest_of(config.read())


def test_a_gzipped_layer_passes_whatever_the_manifest_calls_it(tmp_path: Path) -> None:
    image = Image(gzip.compress(tar({"bin/program": b"#!"})))

    assert inspected(image, tmp_path).size_bytes == len(gzip.decompress(image.layer))


def test_what_our_own_tools_build_passes_and_is_the_same_every_time(tmp_path: Path) -> None:
    layer = program_layer(tmp_path / "cache", {"/opt/program/a.py": b"pass\n"})

    one, two = (build_image(tmp_path / name, layers=[layer], entrypoint=["/a"]) for name in ("one", "two"))

    assert one == two == digest_of((tmp_path / "one").read_bytes())
    assert inspect(tmp_path / "one", one).entrypoint == ("/a",)


def test_links_elsewhere_and_set_id_programs_are_an_ordinary_image_s(tmp_path: Path) -> None:
    setuid = tarfile.TarInfo()
    setuid.mode = 0o4755
    layer = tar(
        {
            "bin": special(tarfile.SYMTYPE, "usr/bin"),
            "usr/bin/sh": special(tarfile.SYMTYPE, "/bin/dash"),
            "dev/stdout": special(tarfile.SYMTYPE, "/proc/self/fd/1"),
            "usr/bin/su": setuid,
            "usr/bin/copy": special(tarfile.LNKTYPE, "usr/bin/su"),
            "etc/.wh.motd": b"",
        }
    )

    assert inspected(Image(layer), tmp_path).size_bytes == len(layer)


# ------------------------------------------------------------------ what a layer may not hold


@pytest.mark.parametrize(
    ("name", "entry", "words"),
    [
        ("/etc/shadow", b"", "outside"),
        ("../../etc/shadow", b"", "outside"),
        ("a/../../b", b"", "outside"),
        ("copy", special(tarfile.LNKTYPE, "/etc/shadow"), "outside"),
        ("copy", special(tarfile.LNKTYPE, "../etc/shadow"), "outside"),
        ("disk", special(tarfile.BLKTYPE), "no file, folder or link"),
        ("tty", special(tarfile.CHRTYPE), "no file, folder or link"),
        ("pipe", special(tarfile.FIFOTYPE), "no file, folder or link"),
        *(
            (name, special(tarfile.SYMTYPE, "/somewhere"), "makes")
            for name in ("dev", "proc", "sys", "etc", "etc/passwd", "etc/group", "run", "tmp", "data", "hidden_data")
        ),
        ("data/train", special(tarfile.SYMTYPE, "/etc"), "makes '/data/train'"),
        ("submission_data/test/x", special(tarfile.LNKTYPE, "a"), "makes '/submission_data/test/x'"),
        ("./data", special(tarfile.SYMTYPE, "/etc"), "makes '/data' "),
        ("./data//", special(tarfile.SYMTYPE, "/etc"), "normal form"),
        ("x" * 5000, b"", "characters"),
    ],
)  # fmt: skip
def test_a_layer_with_such_an_entry_is_refused(
    tmp_path: Path, name: str, entry: bytes | tarfile.TarInfo, words: str
) -> None:
    with pytest.raises(BadImage, match=words):
        inspected(Image(tar({"a": b"", name: entry})), tmp_path)


def attributed(key: str, value: str = "x") -> tarfile.TarInfo:
    info = tarfile.TarInfo("later")
    info.pax_headers = {key: value}
    return info


@pytest.mark.parametrize(
    "key",
    [
        "SCHILY.xattr.user.overlay.redirect",
        "SCHILY.xattr.trusted.overlay.opaque",
        "SCHILY.xattr.user.containers.override_stat",
        "SCHILY.xattr.system.posix_acl_access",
        "LIBARCHIVE.xattr.user.x",
        "SCHILY.acl.access",
        "RHT.security.selinux",
    ],
)
def test_attributes_that_a_file_system_or_an_engine_obeys_are_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(BadImage, match=f"has the attribute '{key}'"):
        inspected(Image(tar({"a": attributed(key)})), tmp_path)


def test_file_capabilities_and_the_hints_that_podman_leaves_are_an_ordinary_image_s(tmp_path: Path) -> None:
    layer = tar(
        {
            "bin/ping": attributed("SCHILY.xattr.security.capability", "\x01\0\0\x02"),
            "etc/a": attributed("SCHILY.xattr.user.overlay.origin", "\0x"),
            "etc/b": attributed("SCHILY.xattr.user.overlay.impure", "y"),
        }
    )

    assert inspected(Image(layer), tmp_path).size_bytes == len(layer)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        # whiteouts that engines read in different ways, or not at all
        ([(".wh.", b"")], "no whiteout"),
        ([("x/.wh..", b"")], "no whiteout"),
        ([("x/.wh...", b"")], "no whiteout"),
        ([("x/.wh..wh.plnk", b"")], "no whiteout"),
        ([("x/.wh..wh..opq.", b"")], "no whiteout"),
        ([(".wh..wh..opq", b"")], "no one meaning"),
        ([("x/.wh.a", b"content")], "no empty file"),
        ([("x/.wh.a", special(tarfile.DIRTYPE))], "no empty file"),
        ([("x/.wh.a", special(tarfile.SYMTYPE, "a"))], "no empty file"),
        ([("x/.wh..wh..opq", special(tarfile.DIRTYPE))], "no empty file"),
        ([(".wh.x/a", b"")], "below a whiteout"),
        ([(".wh.a", b""), ("b", special(tarfile.LNKTYPE, ".wh.a"))], "a link|to a whiteout"),
        # what one layer makes and hides at once
        ([("a", b""), (".wh.a", b"")], "makes 'a' and hides it"),
        ([(".wh.a", b""), ("a", b"")], "makes 'a' and hides it"),
        ([("a/b", b""), (".wh.a", b"")], "makes 'a' and hides it"),
        ([(".wh.a", b""), ("a/b", b"")], "makes 'a' and hides it"),
        ([(".wh.a", b""), ("a/.wh.b", b"")], "makes 'a' and hides it"),
        # one name for two things
        ([("a", b""), ("./a", b"")], "stands twice"),
        ([("a", b""), ("./a", special(tarfile.DIRTYPE))], "stands twice"),
        ([("a/b", b""), ("a", b"")], "stands twice"),
        ([("a", b""), ("a/b", b"")], "stands twice"),
        ([("x/.wh.a", b""), ("./x/.wh.a", b"")], "stands twice"),
        # hard links that only some engines can make
        ([("b", special(tarfile.LNKTYPE, "a"))], "hard link to no file"),
        ([("a", special(tarfile.DIRTYPE)), ("b", special(tarfile.LNKTYPE, "a"))], "hard link to no file"),
        ([("a", special(tarfile.SYMTYPE, "c")), ("b", special(tarfile.LNKTYPE, "a"))], "hard link to no file"),
        ([("b", special(tarfile.LNKTYPE, "b"))], "hard link to no file"),
        ([("b", special(tarfile.LNKTYPE, "a")), ("a", b"")], "hard link to no file"),
        # where the cage mounts
        *(([(name, b"")], "no folder") for name in ("dev", "proc", "sys", "tmp", "data", "hidden_data", "etc")),
        ([("x/" + "n" * 256, b"")], "a part of over 255 bytes"),
        ([("x/" + "ü" * 128, b"")], "a part of over 255 bytes"),
    ],
)  # fmt: skip
def test_a_layer_that_engines_could_unpack_in_two_ways_is_refused(
    tmp_path: Path, entries: list[tuple[str, bytes | tarfile.TarInfo]], words: str
) -> None:
    with pytest.raises(BadImage, match=words):
        inspected(Image(tar(dict(entries))), tmp_path)


def test_whiteouts_are_told_apart_and_free_the_place_of_a_link(tmp_path: Path) -> None:
    budget = image_layers.Budget()
    image_layers.check_layer(io.BytesIO(tar({"x": special(tarfile.SYMTYPE, "usr")})), budget)

    above = tar({".wh.x": b"", "b/c/.wh..wh..opq": b"", "b/.wh.y": b"", "b/c/new": b""})
    judged = image_layers.check_layer(io.BytesIO(above), budget)

    assert (judged.hides, judged.empties) == (("b/y", "x"), ("b/c",))
    image_layers.check_layer(io.BytesIO(tar({"x/a": b""})), budget)


def test_the_names_of_links_and_whiteouts_have_a_cap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_layers, "MAX_LINK_BYTES", 20)
    layer = tar({"x/.wh." + "a" * 10: b"", "x/.wh." + "b" * 10: b""})

    with pytest.raises(BadImage, match="links and whiteouts"):
        inspected(Image(layer), tmp_path)


@pytest.mark.parametrize(
    ("magic", "name"), [(b"\x28\xb5\x2f\xfd", "zstd"), (b"BZh91A", "bzip2"), (b"\xfd7zXZ\0", "xz")]
)
def test_other_compressions_are_refused_by_their_first_bytes(tmp_path: Path, magic: bytes, name: str) -> None:
    image = Image(magic + b"\0" * 600)

    with pytest.raises(BadImage, match=name):
        inspected(image, tmp_path)


def test_a_gzip_bomb_is_stopped_at_the_cap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_layers, "MAX_BYTES", 1 << 20)
    image = Image(gzip.compress(tar({"zeros": bytes(1 << 22)})))

    with pytest.raises(BadImage, match="unpacks to more"):
        inspected(image, tmp_path)


def test_a_layer_that_is_packed_too_well_is_refused_long_before_the_cap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_layers, "FREE_BYTES", 1 << 20)
    image = Image(gzip.compress(tar({"zeros": bytes(1 << 23)})))

    with pytest.raises(BadImage, match="more than 200 times its size"):
        inspected(image, tmp_path)


def test_gzip_streams_in_a_row_are_one_layer_and_have_a_cap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_layers, "MAX_GZIP_MEMBERS", 100)
    content = tar({"bin/program": b"#!"})
    few = b"".join(gzip.compress(content[start : start + 512]) for start in range(0, len(content), 512))

    assert inspected(Image(few), tmp_path).size_bytes == len(content)
    with pytest.raises(BadImage, match="more than 100 gzip streams"):
        inspected(Image(few + gzip.compress(b"") * 100), tmp_path)


def test_bytes_behind_a_gzip_are_refused(tmp_path: Path) -> None:
    image = Image(gzip.compress(tar({"bin/program": b"#!"})))
    image.diff_id = image.diff_id_of_layer()
    image.layer += bytes(100)

    with pytest.raises(BadImage, match="no readable tar"):
        inspected(image, tmp_path)


def test_too_many_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_layers, "MAX_ENTRIES", 3)

    with pytest.raises(BadImage, match="more than 3 files"):
        inspected(Image(tar({str(number): b"" for number in range(4)})), tmp_path)


@pytest.mark.parametrize(
    "junk",
    [b"junk" * 300, b"\x1f\x8b" + b"\0" * 600, gzip.compress(b"junk" * 300), gzip.compress(b"")[:-4]],
    ids=["junk", "no gzip", "junk in gzip", "gzip cut short"],  # a gzip's bytes change by the second
)
def test_a_layer_that_is_no_tar_is_refused(tmp_path: Path, junk: bytes) -> None:
    image = Image(junk)
    image.diff_id = sha(junk)

    with pytest.raises(BadImage, match="no readable tar"):
        inspected(image, tmp_path)


# ------------------------------------------------------------------ digests


def test_a_layer_other_than_the_config_names_is_refused(tmp_path: Path) -> None:
    image = Image()
    image.diff_id = sha(b"another")

    with pytest.raises(BadImage, match="not what the config names"):
        inspected(image, tmp_path)


def test_a_layer_other_than_the_manifest_names_is_refused(tmp_path: Path) -> None:
    # The same content, so that the config holds, compressed to other bytes than the manifest's digest.
    content = tar({"bin/program": b"#!"})
    image = Image(gzip.compress(content, 1))
    image.files[image.name(image.layer)] = gzip.compress(content, 9)

    with pytest.raises(BadImage, match="not what the manifest names"):
        inspected(image, tmp_path)


def test_a_manifest_other_than_the_index_names_is_refused(tmp_path: Path) -> None:
    image = Image()
    image.index = {"manifests": [image.part(b"{}", "application/vnd.oci.image.manifest.v1+json")]}
    image.files["blobs/sha256/" + sha(b"{}").removeprefix("sha256:")] = b'{"a": 1}'

    with pytest.raises(BadImage, match="not what its descriptor names"):
        inspected(image, tmp_path)


# ------------------------------------------------------------------ index, manifest, config

Change = Callable[[Image], object]
CHANGES: list[tuple[str, Change]] = [
    ("holds 2 images", lambda i: i.index.update(manifests=[i.part(b"", "x"), i.part(b"", "x")])),
    ("holds 0 images", lambda i: i.index.update(manifests=[])),
    ("no image manifest", lambda i: i.index.update(manifests=[i.part(b"", "application/vnd.oci.image.index.v1+json")])),
    ("annotation 'io.podman", lambda i: i.index.update(annotations={"io.podman.annotations.checkpoint.name": "x"})),
    ("annotation 'run.oci", lambda i: i.manifest.update(annotations={"run.oci.handler": "krun"})),
    ("annotation 'RUN.OCI", lambda i: i.manifest.update(annotations={"RUN.OCI.hooks": "x"})),
    ("label 'run.oci", lambda i: i.config["config"].update(Labels={"run.oci.hooks.stdout": "x"})),
    ("only tar", lambda i: setattr(i, "layer_type", "application/vnd.oci.image.layer.v1.tar+zstd")),
    ("only tar", lambda i: setattr(i, "layer_type", "application/vnd.oci.image.layer.nondistributable.v1.tar")),
    ("fetched from elsewhere", lambda i: i.manifest.update(
        layers=[{**i.part(i.layer, i.layer_type), "urls": ["https://example.org/layer"]}])),
    ("manifest has 0 layers", lambda i: i.manifest.update(layers=[])),
    ("manifest has 2 layers", lambda i: i.manifest.update(layers=[i.part(i.layer, i.layer_type)] * 2)),
    ("missing in the archive", lambda i: i.without.add(i.name(i.layer))),
    ("for windows/", lambda i: i.config.update(os="windows")),
    ("for linux/riscv64", lambda i: i.config.update(architecture="riscv64")),
    ("root is 'nothing'", lambda i: i.config.update(rootfs={"type": "nothing", "diff_ids": []})),
    ("no ENTRYPOINT", lambda i: i.config["config"].pop("Entrypoint")),
    ("no ENTRYPOINT", lambda i: i.config["config"].update(Entrypoint=[], Cmd=["/bin/program"])),
    ("zero byte", lambda i: i.config["config"].update(Entrypoint=["/bin/a\0b"])),
    ("'\\*' is not KEY=VALUE", lambda i: i.config["config"].update(Env=["*"])),
    ("is not KEY=VALUE", lambda i: i.config["config"].update(Env=["PATH"])),
    ("is not KEY=VALUE", lambda i: i.config["config"].update(Env=["=x"])),
    ("is not KEY=VALUE", lambda i: i.config["config"].update(Env=["A*=x"])),
    ("is not KEY=VALUE", lambda i: i.config["config"].update(Env=["A=x\0y"])),
    ("the image's config", lambda i: i.config["config"].update(Env="PATH=/bin")),
    ("neither index.json nor manifest.json", lambda i: i.without.add("index.json")),
    ("no regular file", lambda i: i.files.update({"link": special(tarfile.SYMTYPE, "index.json")})),
    ("outside of it", lambda i: i.files.update({"../up": b""})),
    ("index.json: ", lambda i: i.files.update({"index.json": b'{"manifests": [], "manifests": []}'})),
    ("over 1048576 bytes", lambda i: i.files.update({"index.json": b" " * (1 << 20) + b"{}"})),
]  # fmt: skip


@pytest.mark.parametrize(("words", "change"), CHANGES)
def test_an_image_with_such_papers_is_refused(tmp_path: Path, words: str, change: Change) -> None:
    image = Image()
    change(image)

    with pytest.raises(BadImage, match=words):
        inspected(image, tmp_path)


def test_an_archive_with_one_name_twice_is_refused(tmp_path: Path) -> None:
    path = Image().write(tmp_path / "image.tar")
    with tarfile.open(path, "a") as archive:
        archive.addfile(tarfile.TarInfo("./index.json"), io.BytesIO())

    with pytest.raises(BadImage, match="stands twice"):
        inspect(path, ANY)


def test_an_archive_of_two_images_is_refused_in_docker_s_form_too(tmp_path: Path) -> None:
    with pytest.raises(BadImage, match="holds 2 images"):
        inspect(docker_archive(tmp_path / "docker.tar", count=2), ANY)


def test_two_papers_that_name_two_images_are_refused(tmp_path: Path) -> None:
    image = Image()
    with tarfile.open(docker_archive(tmp_path / "docker.tar")) as docker:
        for member in docker:
            content = docker.extractfile(member)
            assert content is not None
            image.files[member.name] = content.read()

    with pytest.raises(BadImage, match="two different images"):
        inspected(image, tmp_path)


def test_a_compressed_archive_is_no_archive_we_read(tmp_path: Path) -> None:
    path = Image().write(tmp_path / "image.tar")
    path.write_bytes(gzip.compress(path.read_bytes()))

    with pytest.raises(BadImage, match="no readable archive"):
        inspect(path, ANY)


def test_a_file_that_is_not_there_is_not_the_image_s_fault(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        inspect(tmp_path / "nothing.tar", Digest(ANY))


# ------------------------------------------------------------------ what an engine reads otherwise than we do


def test_a_key_that_only_go_takes_for_a_field_is_refused(tmp_path: Path) -> None:
    image = Image()
    image.manifest["Layers"] = [image.part(b"another", image.layer_type)]

    with pytest.raises(BadImage, match="'Layers' is another's, spelt otherwise"):
        inspected(image, tmp_path)


def test_a_label_may_be_called_as_a_field_is(tmp_path: Path) -> None:
    image = Image()
    image.config["config"]["Labels"] = {"ENV": "test", "labels": "x"}

    assert inspected(image, tmp_path).entrypoint == ("/bin/program",)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_an_entry_below_a_link_of_an_earlier_layer_is_refused(kind: bytes) -> None:
    budget = image_layers.Budget()
    image_layers.check_layer(io.BytesIO(tar({"usr": b"", "x": special(kind, "usr")})), budget)

    with pytest.raises(BadImage, match="below 'x', which is a link"):
        image_layers.check_layer(io.BytesIO(tar({"x/a": b""})), budget)


def test_a_folder_may_take_the_place_of_a_link() -> None:
    budget = image_layers.Budget()
    image_layers.check_layer(io.BytesIO(tar({"x": special(tarfile.SYMTYPE, "usr")})), budget)

    image_layers.check_layer(io.BytesIO(tar({"x/": special(tarfile.DIRTYPE), "x/a": b""})), budget)

    assert budget.links == set()


def rewritten(path: Path, target: Path) -> Path:
    found = inspect(path, ANY)
    target.write_bytes(b"".join(image_parts.rewritten(path, found.parts)))
    return target


def test_an_archive_written_anew_is_the_same_image_without_the_author_s_names(tmp_path: Path) -> None:
    image = Image()
    image.index["annotations"] = {"org.opencontainers.image.ref.name": "theirs"}
    image.files["blobs/sha256/" + "0" * 64] = b"judged by nobody"

    anew = rewritten(image.write(tmp_path / "image.tar"), tmp_path / "anew.tar")

    assert inspect(anew, ANY).image_id == inspected(image, tmp_path).image_id
    assert not any(words in anew.read_bytes() for words in (b"theirs", b"judged by nobody", b"0" * 64))


def test_a_docker_archive_is_written_anew_under_names_of_our_own(tmp_path: Path) -> None:
    path = docker_archive(tmp_path / "docker.tar")

    anew = rewritten(path, tmp_path / "anew.tar")

    assert inspect(anew, ANY).image_id == inspect(path, ANY).image_id
    assert b"x:latest" not in anew.read_bytes()


def test_of_an_archive_in_both_forms_the_judged_one_is_sent(tmp_path: Path) -> None:
    image = Image()
    config = json.dumps(
        {"rootfs": {"type": "layers", "diff_ids": [image.diff_id_of_layer()]}, **image.config}
    ).encode()
    image.files["manifest.json"] = json.dumps(
        [{"Config": image.name(config), "Layers": ["evil.tar"]}]
    ).encode()
    image.files["evil.tar"] = tar({"evil": b""})

    anew = rewritten(image.write(tmp_path / "image.tar"), tmp_path / "anew.tar")

    with tarfile.open(anew) as archive:
        assert {"manifest.json", "evil.tar"}.isdisjoint(archive.getnames())
