"""What the operator is shown of an archive: everything in it, within bounds, and never at the archive's own pace."""

import gzip
import tarfile
from pathlib import Path

import pytest

from agent.domain import images as bounds
from agent.domain.images import ImageEntry
from agent.errors import BadImage
from agent.ports import images_tar
from agent.ports.image_archive import inspect
from agent.ports.images_tar import TarImages
from tests.ports.test_image_archive import ANY, HERE, Image, docker_archive, sha, special, tar


def member(content: bytes, mode: int) -> tarfile.TarInfo:
    """An empty file with this mode; `content` is its link when there is one."""
    info = tarfile.TarInfo("later")
    info.mode = mode
    return info


LAYER = tar(
    {
        "bin": special(tarfile.DIRTYPE),
        "bin/su": member(b"", 0o4755),
        "bin/program": b"#!/bin/sh",
        "bin/sh": special(tarfile.SYMTYPE, "/usr/bin/dash"),
        "bin/again": special(tarfile.LNKTYPE, "bin/program"),
    }
)


def test_the_files_are_listed_with_kind_size_mode_and_link(tmp_path: Path) -> None:
    look = TarImages().look(Image(LAYER).write(tmp_path / "a"), ANY, within_s=60)

    seen = {entry.path: (entry.kind, entry.size_bytes, oct(entry.mode), entry.link) for entry in look.listing}
    assert seen == {
        "bin": ("folder", 0, "0o644", ""),
        "bin/su": ("file", 0, "0o4755", ""),
        "bin/program": ("file", 9, "0o644", ""),
        "bin/sh": ("symbolic link", 0, "0o644", "/usr/bin/dash"),
        "bin/again": ("hard link", 0, "0o644", "bin/program"),
    }
    assert {entry.layer for entry in look.listing} == {0}
    assert (look.about.entries, look.about.set_ids, look.about.is_cut) == (5, 1, False)


def test_the_papers_are_told(tmp_path: Path) -> None:
    image = Image(gzip.compress(LAYER))
    image.layer_type += "+gzip"
    image.config["config"]["Labels"] = {"by": "a stranger", "a": "b"}

    about = TarImages().look(image.write(tmp_path / "a"), ANY, within_s=60).about

    assert about.platform == f"linux/{HERE}"
    assert about.entrypoint == ("/bin/program",)
    assert about.env == (("A", "b=c"), ("PATH", "/bin"))
    assert about.labels == (("a", "b"), ("by", "a stranger"))
    assert [(layer.digest, layer.size_bytes, layer.entries) for layer in about.layers] == [
        (sha(LAYER), len(LAYER), 5)
    ]
    assert about.size_bytes == len(LAYER)


def test_layers_are_numbered_in_their_order(tmp_path: Path) -> None:
    look = TarImages().look(docker_archive(tmp_path / "a"), ANY, within_s=60)

    assert [(entry.layer, entry.path) for entry in look.listing] == [(0, "bin/program")]
    assert len(look.about.layers) == 1


def test_looking_judges_as_loading_does(tmp_path: Path) -> None:
    path = Image(tar({"dev": special(tarfile.SYMTYPE, "/tmp")})).write(tmp_path / "a")

    with pytest.raises(BadImage) as by_loading:
        inspect(path, ANY)
    with pytest.raises(BadImage) as by_looking:
        TarImages().look(path, ANY, within_s=60)

    assert by_looking.value.detail == by_loading.value.detail


@pytest.mark.parametrize(("name", "bound"), [("MAX_LISTED", 3), ("MAX_LISTED_BYTES", 15)])
def test_a_listing_ends_at_its_bounds_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, bound: int
) -> None:
    assert hasattr(bounds, name)
    monkeypatch.setattr(images_tar, name, bound)
    path = Image(tar({f"file{number}": b"" for number in range(9)})).write(tmp_path / "a")

    look = TarImages().look(path, ANY, within_s=60)

    assert [entry.path for entry in look.listing] == ["file0", "file1", "file2"]
    assert (look.about.entries, look.about.is_cut) == (9, True)


def test_an_archive_that_takes_too_long_is_refused(tmp_path: Path) -> None:
    bomb = gzip.compress(tar({"zeros": bytes(64 << 20)}))
    image = Image(bomb)
    image.layer_type += "+gzip"
    path = image.write(tmp_path / "a")

    with pytest.raises(BadImage, match="within 0 s"):
        TarImages().look(path, ANY, within_s=0)

    assert TarImages().look(path, ANY, within_s=60).listing == (
        ImageEntry(layer=0, path="zeros", kind="file", size_bytes=64 << 20, mode=0o644),
    )


def test_a_swarm_of_empty_entries_is_timed_too(tmp_path: Path) -> None:
    path = Image(tar({f"file{number}": b"" for number in range(100)})).write(tmp_path / "a")

    with pytest.raises(BadImage, match="within 0 s"):
        TarImages().look(path, ANY, within_s=0)
