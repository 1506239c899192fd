"""What the layers of an image become as one folder, held against what the OCI specification and overlay file systems say."""

import errno
import gzip
import os
import stat
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from agent.errors import BadImage, NoSpace
from agent.ports import image_tree
from agent.ports.image_archive import ImageArchive, inspect
from agent.ports.image_tree import unpack
from tests.ports.test_image_archive import ANY, Image, sha, tar

Content = bytes | tarfile.TarInfo
Seen = dict[str, tuple[str, bytes | str]]


def entry(kind: bytes = tarfile.REGTYPE, link: str = "", **fields: object) -> tarfile.TarInfo:
    """A member but for its name: `mode`, `uid`, `gid`, `mtime`, `pax_headers`."""
    info = tarfile.TarInfo("later")
    info.type, info.linkname = kind, link
    for field, value in fields.items():
        setattr(info, field, value)
    return info


FOLDER = entry(tarfile.DIRTYPE, mode=0o755)


def link(target: str) -> tarfile.TarInfo:
    return entry(tarfile.SYMTYPE, target)


def image_of(path: Path, *layers: Mapping[str, Content], packed: bool = False) -> tuple[Path, ImageArchive]:
    """An archive of these layers, and what the reader found in it. Raises: BadImage."""
    contents = [tar(layer) for layer in layers]
    image = Image(contents[0])
    image.config["rootfs"] = {"type": "layers", "diff_ids": [sha(content) for content in contents]}
    stored = [gzip.compress(content) for content in contents] if packed else contents
    image.manifest["layers"] = [image.part(content, image.layer_type) for content in stored]
    image.files |= {image.name(content): content for content in stored}
    return image.write(path), inspect(path, ANY)


def unpacked(tmp_path: Path, *layers: Mapping[str, Content], mount_points: Sequence[str] = ()) -> Path:
    archive, found = image_of(tmp_path / "image.tar", *layers)
    unpack(archive, found, tmp_path / "tree", mount_points)
    return tmp_path / "tree"


def seen(root: Path) -> Seen:
    """Everything below `root` by name: (kind, content or link)."""
    found: Seen = {}
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(folder, name)
            where = str(path.relative_to(root))
            if path.is_symlink():
                found[where] = ("link", os.readlink(path))
            elif path.is_dir():
                found[where] = ("folder", "")
            else:
                found[where] = ("file", path.read_bytes())
    return found


# ------------------------------------------------------------------ one layer over another


def test_a_later_layer_s_files_take_the_place_of_earlier_ones(tmp_path: Path) -> None:
    below: dict[str, Content] = {
        "a": b"1",
        "b/x": b"1",
        "c/x": b"1",
        "d": link("a"),
        "e": b"1",
        "f": link("b"),
    }
    above: dict[str, Content] = {"a": b"2", "b": b"2", "c/y": b"2", "d": b"2", "e": FOLDER, "f": FOLDER}
    above |= {"e/x": b"2", "f/x": b"2"}

    assert seen(unpacked(tmp_path, below, above)) == {
        "a": ("file", b"2"),
        "b": ("file", b"2"),
        "c": ("folder", ""),
        "c/x": ("file", b"1"),
        "c/y": ("file", b"2"),
        "d": ("file", b"2"),
        "e": ("folder", ""),
        "e/x": ("file", b"2"),
        "f": ("folder", ""),
        "f/x": ("file", b"2"),
    }


def test_whiteouts_take_away_what_is_below_and_nothing_of_their_own_layer(tmp_path: Path) -> None:
    below = {"a/x": b"1", "a/y": b"1", "b/x/z": b"1", "c/x": b"1", "c/d/x": b"1"}
    above = {
        "a/.wh.x": b"",
        ".wh.b": b"",
        "c/new": b"2",
        "c/d/new": b"2",
        "c/.wh..wh..opq": b"",
        ".wh.never": b"",
    }

    assert seen(unpacked(tmp_path, below, above)) == {
        "a": ("folder", ""),
        "a/y": ("file", b"1"),
        "c": ("folder", ""),
        "c/new": ("file", b"2"),
        "c/d": ("folder", ""),
        "c/d/new": ("file", b"2"),
    }


NAMES = st.sampled_from(["a", "b", "a/a", "a/b", "b/a", "a/b/a", "a/b/b", "b/a/a"])
WHITEOUTS = st.sampled_from(
    [".wh.a", "a/.wh.b", "b/.wh.a", "a/b/.wh.a", "a/.wh..wh..opq", "a/b/.wh..wh..opq"]
)
NODES = st.one_of(st.binary(max_size=2), st.just(FOLDER), st.just(link("b")))
LAYERS = st.lists(
    st.builds(
        lambda nodes, hides: [*nodes.items(), *((name, b"") for name in hides)],
        st.dictionaries(NAMES, NODES, max_size=5),
        st.sets(WHITEOUTS, max_size=3),
    ).flatmap(st.permutations),
    min_size=1,
    max_size=4,
)  # fmt: skip


def as_overlay(layers: Sequence[Mapping[str, Content]]) -> Seen:
    """What an overlay file system of these layers shows: looked up from the top, name by name. Written from the kernel's
    documentation: a whiteout ends the look-up, so does what is no folder; an opaque folder is the last that is merged."""
    every = {
        "/".join(name.split("/")[:depth])
        for layer in layers
        for name in layer
        for depth in range(1, name.count("/") + 2)
    }
    found: Seen = {}

    def node(layer: Mapping[str, Content], name: str) -> Content | None:
        if name in layer:
            return layer[name]
        return FOLDER if any(other.startswith(f"{name}/") for other in layer) else None

    def look_up(folder: str, among: list[Mapping[str, Content]]) -> None:
        for name in sorted(every):
            above, _, last = name.rpartition("/")
            if above != folder or last.startswith(".wh."):
                continue
            merged: list[Mapping[str, Content]] = []
            for layer in among:
                one = node(layer, name)
                if one is None:
                    if f"{above}/.wh.{last}".lstrip("/") in layer:
                        break
                    continue
                is_folder = isinstance(one, tarfile.TarInfo) and one.isdir()
                if not is_folder:
                    if not merged:
                        found[name] = ("file", one) if isinstance(one, bytes) else ("link", one.linkname)
                    break
                merged.append(layer)
                if f"{name}/.wh..wh..opq" in layer:
                    break
            if merged:
                found[name] = ("folder", "")
                look_up(name, merged)

    look_up("", list(reversed(layers)))
    return found


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(LAYERS)
def test_layers_that_pass_look_as_in_an_overlay_whatever_their_order(
    tmp_path_factory: pytest.TempPathFactory, layers: list[list[tuple[str, Content]]]
) -> None:
    folder = tmp_path_factory.mktemp("overlay")
    whole = [dict(layer) for layer in layers]
    try:
        archive, found = image_of(folder / "image.tar", *whole)
    except BadImage:
        return
    try:
        unpack(archive, found, folder / "tree")
    except BadImage:  # a file where a later layer wants a folder and does not say so: engines refuse it too
        assert needs_a_folder_that_is_none(whole)
        return

    assert seen(folder / "tree") == as_overlay(whole)


def needs_a_folder_that_is_none(layers: Sequence[Mapping[str, Content]]) -> bool:
    """Whether a layer has a/b but no a, while an earlier one has a file or link a."""
    return any(
        name.startswith(f"{other}/") and other not in layer
        for number, layer in enumerate(layers)
        for name in layer
        for below in layers[:number]
        for other, node in below.items()
        if isinstance(node, bytes) or node.issym()
    )


# ------------------------------------------------------------------ owners, modes, links


@pytest.mark.parametrize(
    ("uid", "gid", "mode", "expected"),
    [
        (0, 0, 0o755, 0o555),
        (0, 0, 0o644, 0o444),
        (0, 0, 0o600, 0o400),
        (0, 0, 0o711, 0o511),
        (1000, 0, 0o700, 0o555),
        (1000, 1000, 0o077, 0o400),
        (0, 1000, 0o750, 0o555),
        (0, 1000, 0o705, 0o400),
        (7, 7, 0o777, 0o555),
        (0, 0, 0o6755, 0o555),
    ],
)
def test_a_file_gives_everybody_what_user_1000_would_have_had(
    tmp_path: Path, uid: int, gid: int, mode: int, expected: int
) -> None:
    root = unpacked(tmp_path, {"a": entry(uid=uid, gid=gid, mode=mode)})

    info = (root / "a").stat()
    assert stat.S_IMODE(info.st_mode) == expected
    assert (info.st_uid, info.st_gid) == (os.getuid(), os.getgid())


def test_folders_stay_the_agent_s_and_nobody_else_writes(tmp_path: Path) -> None:
    root = unpacked(
        tmp_path,
        {
            "open": entry(tarfile.DIRTYPE, mode=0o1777),
            "shut": entry(tarfile.DIRTYPE, mode=0o2700),
            "implied/x": b"",
        },
    )

    modes = {name: stat.S_IMODE((root / name).stat().st_mode) for name in ("open", "shut", "implied", ".")}
    assert modes == {"open": 0o755, "shut": 0o700, "implied": 0o755, ".": 0o755}


def test_neither_set_id_bits_nor_attributes_come_into_the_tree(tmp_path: Path) -> None:
    capable = entry(mode=0o6755, pax_headers={"SCHILY.xattr.security.capability": "\x01\x00\x00\x02"})

    root = unpacked(
        tmp_path,
        {"bin/su": entry(mode=0o4755), "bin/ping": capable, "bin": entry(tarfile.DIRTYPE, mode=0o3755)},
    )

    for path in (root / "bin", root / "bin/su", root / "bin/ping"):
        assert not path.stat().st_mode & 0o7000
        assert os.listxattr(path) == []


def test_links_are_kept_as_they_are_and_never_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "x").write_bytes(b"kept")

    root = unpacked(
        tmp_path, {"out": link(str(victim)), "odd": link("../..//./x")}, {"out": b"", ".wh.odd": b""}
    )

    assert seen(root) == {"out": ("file", b"")}
    assert (victim / "x").read_bytes() == b"kept"


def test_an_entry_below_a_link_is_stopped_though_the_reader_had_let_it_pass(tmp_path: Path) -> None:
    """The second wall: such layers are refused before. The link leads to a folder that the agent may write."""
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "x").write_bytes(b"kept")
    _, passed = image_of(tmp_path / "passed.tar", {"a": b""}, {"a": b""})
    hostile = [tar({"out": link(str(victim))}), tar({"out/y": b"2"})]
    layers = []
    (tmp_path / "image.tar").write_bytes(b"".join(hostile))
    for number, layer in enumerate(passed.layers):
        content = replace(layer.content, offset=number * len(hostile[0]), size_bytes=len(hostile[number]))
        judged = replace(
            layer.judged, diff_id=sha(hostile[number]), hides=("out/x",) * number, empties=("out",) * number
        )
        layers.append(replace(layer, content=content, judged=judged))

    with pytest.raises(BadImage, match="do not fit"):
        unpack(tmp_path / "image.tar", replace(passed, layers=tuple(layers)), tmp_path / "tree")

    assert seen(victim) == {"x": ("file", b"kept")}


def test_hard_links_are_one_file(tmp_path: Path) -> None:
    root = unpacked(
        tmp_path, {"a/x": b"1", "b/y": entry(tarfile.LNKTYPE, "a/x"), "a/z": entry(tarfile.LNKTYPE, "b/y")}
    )

    assert len({(root / name).stat().st_ino for name in ("a/x", "b/y", "a/z")}) == 1


def test_times_are_kept_because_compiled_code_is_taken_by_them(tmp_path: Path) -> None:
    root = unpacked(
        tmp_path, {"a": entry(mtime=1_700_000_000), "old": entry(mtime=-5), "late": entry(mtime=1 << 40)}
    )

    assert [int((root / name).stat().st_mtime) for name in ("a", "old", "late")] == [
        1_700_000_000,
        0,
        1 << 33,
    ]


def test_gzipped_layers_give_the_same_tree_and_the_size_is_that_of_all_files(tmp_path: Path) -> None:
    layer = {"a": b"1" * 1000, "b/c": b"2" * 5000}
    archive, found = image_of(tmp_path / "image.tar", layer, packed=True)

    assert unpack(archive, found, tmp_path / "tree") == 6000
    assert seen(tmp_path / "tree")["b/c"] == ("file", b"2" * 5000)


# ------------------------------------------------------------------ mount points


def test_mount_points_are_made_where_the_image_has_none(tmp_path: Path) -> None:
    root = unpacked(
        tmp_path,
        {"data": entry(tarfile.DIRTYPE, mode=0o700), "data/kept": b"1"},
        mount_points=("data", "dev/shm", "proc"),
    )

    assert seen(root).keys() == {"data", "data/kept", "dev", "dev/shm", "proc"}
    assert {stat.S_IMODE((root / name).stat().st_mode) for name in ("data", "dev", "dev/shm")} == {0o755}


@pytest.mark.parametrize("node", [b"", link("/etc")], ids=["a file", "a link"])
@pytest.mark.parametrize("point", ["opt", "opt/shm"])
def test_a_mount_point_that_is_no_folder_is_refused(tmp_path: Path, node: Content, point: str) -> None:
    with pytest.raises(BadImage, match="no folder at '/opt"):
        unpacked(tmp_path, {"opt": node}, mount_points=(point,))


# ------------------------------------------------------------------ what may go wrong


def test_a_target_that_holds_something_is_not_touched(tmp_path: Path) -> None:
    archive, found = image_of(tmp_path / "image.tar", {"a": b""})
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/mine").write_bytes(b"1")

    with pytest.raises(FileExistsError):
        unpack(archive, found, tmp_path / "tree")

    assert seen(tmp_path / "tree") == {"mine": ("file", b"1")}


def test_a_layer_that_changed_after_it_was_judged_is_refused(tmp_path: Path) -> None:
    archive, found = image_of(tmp_path / "image.tar", {"a": b"honest"})
    archive.write_bytes(archive.read_bytes().replace(b"honest", b"horrid"))

    with pytest.raises(BadImage, match="changed after it was judged"):
        unpack(archive, found, tmp_path / "tree")


def test_a_full_disk_is_no_fault_of_the_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive, found = image_of(tmp_path / "image.tar", {"a": b"1"})

    def full(*_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "utime", full)
    with pytest.raises(NoSpace):
        unpack(archive, found, tmp_path / "tree")


def test_nobody_else_looks_into_a_tree_that_is_not_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[int] = []
    monkeypatch.setattr(
        image_tree, "_apply", lambda *_: modes.append((tmp_path / "tree").stat().st_mode & 0o777)
    )

    unpacked(tmp_path, {"a": b""})

    assert modes == [0o700]
    assert (tmp_path / "tree").stat().st_mode & 0o777 == 0o755


def test_descriptors_are_given_back(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))

    unpacked(tmp_path, {"a/b/c/d": b"1", "e/f": b"1"}, {".wh.a": b"", "e": b"1"})

    assert len(os.listdir("/proc/self/fd")) == before
