"""What a guest may leave behind, as real files and real archives: the plain is taken over, everything else is refused."""

import gzip
import io
import os
import re
import shutil
import socket
import struct
import tarfile
import tempfile
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from agent.domain.ceilings import DEFAULT_CEILINGS
from agent.domain.ids import digest_of
from agent.errors import BadOutput
from agent.pipeline.outputs import (
    MAX_DEPTH,
    MAX_NAME_BYTES,
    MAX_PERFORMANCE_BYTES,
    file_digest,
    inspect,
    pack,
    read_performance,
    take,
    take_file,
    unpack,
)
from tests.pipeline.world import unprivileged

CEILINGS = replace(DEFAULT_CEILINGS, output_bytes=8 << 20, output_files=60)
DATASET = "5f0d2c9e-0000-4000-8000-000000000001"


@pytest.fixture
def left(tmp_path: Path) -> Path:
    """The folder in which the guest left its output."""
    folder = tmp_path / "left"
    folder.mkdir()
    return folder


def fill(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


# ------------------------------------------------------------------ what is plain is taken over


def test_the_regular_files_are_named_by_their_path_and_sorted(left: Path) -> None:
    fill(left, {"b/z": b"1", "b/a": b"2", "a": b"", "ü/ö ä": b"3"})
    (left / "an empty folder").mkdir()

    assert inspect(left, CEILINGS) == ("a", "b/a", "b/z", "ü/ö ä")


def test_an_empty_folder_holds_nothing(left: Path) -> None:
    assert inspect(left, CEILINGS) == ()


def test_a_folder_is_taken_over_with_modes_that_the_next_guest_can_only_read(
    left: Path, tmp_path: Path
) -> None:
    fill(left, {"deep/weights": b"w"})
    (left / "deep/weights").chmod(0o777)
    left.chmod(0o777)

    names = take(left, tmp_path / "taken", CEILINGS)

    assert names == ("deep/weights",)
    assert not left.exists()
    assert (tmp_path / "taken/deep/weights").read_bytes() == b"w"
    assert mode_of(tmp_path / "taken/deep/weights") == 0o644
    assert mode_of(tmp_path / "taken/deep") == mode_of(tmp_path / "taken") == 0o755


def test_the_one_expected_file_is_taken_over(left: Path, tmp_path: Path) -> None:
    fill(left, {DATASET: b"0.1\n0.9\n"})
    (left / DATASET).chmod(0o000)

    take_file(left, DATASET, tmp_path / "prediction", CEILINGS)

    assert (tmp_path / "prediction").read_bytes() == b"0.1\n0.9\n"
    assert mode_of(tmp_path / "prediction") == 0o644
    assert not (left / DATASET).exists()


@pytest.mark.parametrize(
    "files",
    [{}, {"another": b"x"}, {DATASET: b"x", "another": b"x"}, {f"{DATASET}/inside": b"x"}],
    ids=["nothing", "another", "one too many", "a folder of that name"],
)
def test_anything_but_exactly_the_expected_file_is_refused(
    files: dict[str, bytes], left: Path, tmp_path: Path
) -> None:
    fill(left, files)

    with pytest.raises(BadOutput, match="exactly one file"):
        take_file(left, DATASET, tmp_path / "prediction", CEILINGS)

    assert not (tmp_path / "prediction").exists()


def test_the_ceilings_themselves_are_still_allowed(left: Path) -> None:
    fill(left, {f"f{number}": b"x" * (8 << 20 >> 3) for number in range(8)})
    for number in range(CEILINGS.output_files - 8):
        (left / f"d{number}").mkdir()

    assert len(inspect(left, CEILINGS)) == 8


def test_the_deepest_and_longest_names_are_still_allowed(left: Path) -> None:
    deepest = "/".join(["d"] * (MAX_DEPTH - 1) + ["file"])
    longest = "n" * MAX_NAME_BYTES
    fill(left, {deepest: b"x", longest: b"x"})

    assert inspect(left, CEILINGS) == (deepest, longest)


def mode_of(path: Path) -> int:
    return path.lstat().st_mode & 0o7777


# ------------------------------------------------------------------ what is not plain is refused, at every door


def link_to_a_file(folder: Path) -> None:
    (folder / "target").write_bytes(b"x")
    (folder / "link").symlink_to("target")


def link_to_a_secret(folder: Path) -> None:
    (folder / "link").symlink_to("/etc/shadow")


def link_out_of_the_folder(folder: Path) -> None:
    (folder.parent / "hidden_data").write_bytes(b"the targets")
    (folder / "link").symlink_to("../hidden_data")


def link_to_a_folder(folder: Path) -> None:
    (folder / "link").symlink_to("/etc", target_is_directory=True)


def link_to_itself(folder: Path) -> None:
    (folder / "link").symlink_to(folder, target_is_directory=True)


def dangling_link(folder: Path) -> None:
    (folder / "link").symlink_to("nowhere")


def link_in_the_middle_of_a_path(folder: Path) -> None:
    outside = folder.parent / "outside"
    fill(outside, {"deeper/file": b"x"})
    (folder / "plain").mkdir()
    (folder / "plain/link").symlink_to(outside, target_is_directory=True)


def hard_link_to_a_sibling(folder: Path) -> None:
    (folder / "one").write_bytes(b"x")
    (folder / "two").hardlink_to(folder / "one")


def hard_link_out_of_the_folder(folder: Path) -> None:
    (folder.parent / "outside").write_bytes(b"x")
    (folder / "inside").hardlink_to(folder.parent / "outside")


def fifo(folder: Path) -> None:
    os.mkfifo(folder / "fifo")


def unix_socket(folder: Path) -> None:
    before = Path.cwd()
    os.chdir(folder)  # a socket's address is short, a test's folder is not
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("socket")
    finally:
        os.chdir(before)


def device(folder: Path) -> None:
    try:
        os.mknod(folder / "null", 0o600 | 0o020000, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("device nodes are made by root with CAP_MKNOD only")


def set_user_id(folder: Path) -> None:
    (folder / "file").write_bytes(b"x")
    (folder / "file").chmod(0o4755)


def set_group_id(folder: Path) -> None:
    (folder / "file").write_bytes(b"x")
    (folder / "file").chmod(0o2755)


def sparse_file(folder: Path) -> None:
    with (folder / "hole").open("wb") as hole:
        hole.truncate(4 << 20)


def many_small_holes(folder: Path) -> None:
    for number in range(20):  # each far below what one file may have
        with (folder / f"hole{number}").open("wb") as hole:
            hole.truncate(64 << 10)
            hole.seek(0, os.SEEK_END)
            hole.write(b"x")


def one_file_of_a_thousand_holes(folder: Path) -> None:
    with (folder / "holes").open("wb") as file:
        for number in range(1000):
            file.seek(number * 8192)
            file.write(b"x" * 100)


def too_many_files(folder: Path) -> None:
    fill(folder, {f"f{number}": b"" for number in range(CEILINGS.output_files + 1)})


def too_many_folders(folder: Path) -> None:
    for number in range(CEILINGS.output_files + 1):
        (folder / f"d{number}").mkdir()


def too_many_bytes(folder: Path) -> None:
    fill(folder, {"one": b"x" * (4 << 20), "two": b"x" * ((4 << 20) + 1)})


def too_deep(folder: Path) -> None:
    fill(folder, {"/".join(["d"] * MAX_DEPTH + ["file"]): b"x"})


def too_deep_without_a_file(folder: Path) -> None:
    (folder / "/".join(["d"] * (MAX_DEPTH + 1))).mkdir(parents=True)


def too_long_a_path(folder: Path) -> None:
    fill(folder, {"/".join(["d" * 200] * 5 + ["f" * 200]): b"x"})


def a_path_longer_than_the_system_takes(folder: Path) -> None:
    here = os.open(folder, os.O_RDONLY)
    for _ in range(MAX_DEPTH - 1):  # only a guest that walks down step by step can make this
        os.mkdir("d" * MAX_NAME_BYTES, dir_fd=here)
        below = os.open("d" * MAX_NAME_BYTES, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("f" * MAX_NAME_BYTES, os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)


def line_break_in_a_name(folder: Path) -> None:
    fill(folder, {"a\nb": b"x"})


def escape_sequence_in_a_name(folder: Path) -> None:
    fill(folder, {"\x1b[2Jcleared": b"x"})


def invisible_direction_in_a_name(folder: Path) -> None:
    fill(folder, {"a\u202ecod.exe": b"x"})


def a_folder_with_a_line_break(folder: Path) -> None:
    fill(folder, {"a\nb/file": b"x"})


def a_name_that_is_not_utf_8(folder: Path) -> None:
    (folder / os.fsdecode(b"\xff\xfe")).write_bytes(b"x")


HOSTILE: dict[Callable[[Path], None], str] = {
    link_to_a_file: "symbolic link",
    link_to_a_secret: "symbolic link",
    link_out_of_the_folder: "symbolic link",
    link_to_a_folder: "symbolic link",
    link_to_itself: "symbolic link",
    dangling_link: "symbolic link",
    link_in_the_middle_of_a_path: "symbolic link",
    hard_link_to_a_sibling: "hard link",
    hard_link_out_of_the_folder: "hard link",
    fifo: "fifo",
    unix_socket: "socket",
    device: "device",
    set_user_id: "set-id",
    set_group_id: "set-id",
    sparse_file: "sparse",
    many_small_holes: "sparse",
    one_file_of_a_thousand_holes: "sparse",
    too_many_files: "files and folders",
    too_many_folders: "files and folders",
    too_many_bytes: "bytes were left",
    too_deep: "refused",
    too_deep_without_a_file: "refused",
    too_long_a_path: "too long",
    a_path_longer_than_the_system_takes: "too long",
    line_break_in_a_name: "cannot be printed",
    escape_sequence_in_a_name: "cannot be printed",
    invisible_direction_in_a_name: "cannot be printed",
    a_folder_with_a_line_break: "cannot be printed",
    a_name_that_is_not_utf_8: "not UTF-8",
}

hostile = pytest.mark.parametrize(
    ("leave", "why"), HOSTILE.items(), ids=[leave.__name__ for leave in HOSTILE]
)


@hostile
def test_inspect_refuses(leave: Callable[[Path], None], why: str, left: Path) -> None:
    leave(left)

    with pytest.raises(BadOutput, match=why):
        inspect(left, CEILINGS)


@hostile
def test_take_refuses_and_moves_nothing(
    leave: Callable[[Path], None], why: str, left: Path, tmp_path: Path
) -> None:
    leave(left)

    with pytest.raises(BadOutput, match=why):
        take(left, tmp_path / "taken", CEILINGS)

    assert left.exists()
    assert not (tmp_path / "taken").exists()


@hostile
def test_take_file_refuses_though_the_expected_file_is_there(
    leave: Callable[[Path], None], why: str, left: Path, tmp_path: Path
) -> None:
    fill(left, {DATASET: b"0.5\n"})
    leave(left)

    with pytest.raises(BadOutput, match=why):
        take_file(left, DATASET, tmp_path / "prediction", CEILINGS)

    assert (left / DATASET).exists()
    assert not (tmp_path / "prediction").exists()


@hostile
def test_no_score_is_read_beside(leave: Callable[[Path], None], why: str, left: Path) -> None:
    fill(left, {"performance.json": b'{"perf": 1.0}'})
    leave(left)

    with pytest.raises(BadOutput, match=why):
        read_performance(left, frozenset({DATASET}), CEILINGS)


def test_no_message_holds_what_a_guest_calls_its_files(left: Path) -> None:
    (left / "patient 4711").symlink_to("nowhere")

    with pytest.raises(BadOutput) as refusal:
        inspect(left, CEILINGS)

    assert "4711" not in str(refusal.value)
    assert "4711" in refusal.value.seen


def test_a_few_holes_of_an_honest_format_are_taken(left: Path) -> None:
    with (left / "model.h5").open("wb") as file:
        for number in range(20):
            file.seek(number * 32768)
            file.write(b"x" * 5000)

    assert inspect(left, CEILINGS) == ("model.h5",)


def test_a_folder_of_a_hundred_thousand_files_costs_neither_time_nor_memory() -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        folder = os.open(name, os.O_RDONLY)
        for number in range(100_000):
            os.close(os.open(str(number), os.O_CREAT | os.O_WRONLY, dir_fd=folder))
        os.close(folder)
        tracemalloc.start()

        with pytest.raises(BadOutput, match="files and folders"):
            inspect(Path(name), CEILINGS)

        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak_bytes < 1 << 20


# ------------------------------------------------------------------ what sticks to a file

ACCESS_LIST = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", tag, permissions, identity)
    for tag, permissions, identity in (
        (0x01, 7, 0xFFFFFFFF),
        (0x02, 7, 4242),  # a user named by number
        (0x04, 4, 0xFFFFFFFF),
        (0x10, 7, 0xFFFFFFFF),
        (0x20, 4, 0xFFFFFFFF),
    )
)


def attach(path: Path, name: str, value: bytes) -> None:
    try:
        os.setxattr(path, name, value)
    except OSError as cause:
        pytest.skip(f"this file system or user takes no {name}: {cause.strerror}")


@pytest.mark.parametrize(
    ("name", "value"), [("user.note", b"4711"), ("system.posix_acl_access", ACCESS_LIST)], ids=["user", "acl"]
)
def test_what_a_guest_attached_to_its_files_is_taken_off(
    name: str, value: bytes, left: Path, tmp_path: Path
) -> None:
    fill(left, {"deep/weights": b"w"})
    for path in (left / "deep/weights", left / "deep", left):
        attach(path, name, value)

    take(left, tmp_path / "taken", CEILINGS)

    for path in (tmp_path / "taken/deep/weights", tmp_path / "taken/deep", tmp_path / "taken"):
        assert name not in os.listxattr(path)
    assert mode_of(tmp_path / "taken/deep/weights") == 0o644
    assert mode_of(tmp_path / "taken/deep") == 0o755


def test_the_access_list_of_the_one_expected_file_is_taken_off(left: Path, tmp_path: Path) -> None:
    fill(left, {DATASET: b"0.5\n"})
    attach(left / DATASET, "system.posix_acl_access", ACCESS_LIST)

    take_file(left, DATASET, tmp_path / "prediction", CEILINGS)

    assert "system.posix_acl_access" not in os.listxattr(tmp_path / "prediction")
    assert mode_of(tmp_path / "prediction") == 0o644


def test_a_default_access_list_of_a_folder_does_not_reach_the_next_guest(left: Path, tmp_path: Path) -> None:
    attach(left, "system.posix_acl_default", ACCESS_LIST)
    fill(left, {"deep/weights": b"w"})

    take(left, tmp_path / "taken", CEILINGS)

    for path in (tmp_path / "taken/deep/weights", tmp_path / "taken/deep", tmp_path / "taken"):
        assert not [name for name in os.listxattr(path) if name.startswith("system.posix_acl")]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_more_attributes_than_can_be_listed_are_refused_without_a_word_of_the_name(
    left: Path, tmp_path: Path, kind: str
) -> None:
    path = left / "patient 4711"
    path.mkdir() if kind == "folder" else path.write_bytes(b"x")
    try:
        for number in range(600):
            os.setxattr(path, f"user.{'a' * 200}{number}", b"")
    except OSError as why:
        pytest.skip(f"this file system takes no such attributes: {why.strerror}")

    with pytest.raises(BadOutput, match="attributes") as refused:
        take(left, tmp_path / "taken", CEILINGS)

    assert "4711" not in refused.value.detail
    assert "4711" not in repr(refused.value.__cause__)


def test_a_file_with_capabilities_is_refused(left: Path) -> None:
    fill(left, {"tool": b"x"})
    every_capability = struct.pack("<IIIII", 0x02000001, 0xFFFFFFFF, 0, 0xFFFFFFFF, 0)
    attach(left / "tool", "security.capability", every_capability)

    with pytest.raises(BadOutput, match="capabilities"):
        inspect(left, CEILINGS)


def test_the_expected_file_itself_may_not_be_a_link(left: Path, tmp_path: Path) -> None:
    (tmp_path / "hidden").write_bytes(b"the targets")
    (left / DATASET).symlink_to(tmp_path / "hidden")

    with pytest.raises(BadOutput, match="symbolic link"):
        take_file(left, DATASET, tmp_path / "prediction", CEILINGS)


def test_a_folder_that_the_agent_cannot_read_is_refused() -> None:
    with unprivileged(), tempfile.TemporaryDirectory() as left:
        Path(left, "closed").mkdir(mode=0o000)

        with pytest.raises(BadOutput, match="cannot be read"):
            inspect(Path(left), CEILINGS)


# ------------------------------------------------------------------ the score


def perf_of(left: Path, text: str | bytes) -> Path:
    (left / "performance.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    return left


def test_the_score_is_read(left: Path) -> None:
    perf_of(left, f'{{"perf": 0.875, "train_perf": {{}}, "test_perf": {{"{DATASET}": -1}}}}')

    told = read_performance(left, frozenset({DATASET}), CEILINGS)

    assert told.perf == 0.875
    assert told.test_perf == {DATASET: -1.0}


def test_the_score_alone_is_enough_and_other_files_do_not_matter(left: Path) -> None:
    fill(left, {"plots/roc.svg": b"<svg/>"})

    assert read_performance(perf_of(left, '{"perf": 1}'), frozenset({DATASET}), CEILINGS).perf == 1.0


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("-0.0", "-0.0"),
        ("1e-999", "0.0"),
        ("9007199254740993", "9007199254740992.0"),
        ("-1E+2", "-100.0"),
        ("5e-324", "5e-324"),
    ],
)
def test_a_score_is_what_a_double_holds_of_it(text: str, score: str, left: Path) -> None:
    told = read_performance(perf_of(left, f'{{"perf": {text}}}'), frozenset({DATASET}), CEILINGS)

    assert repr(told.perf) == score


NO_SCORE = {
    "empty": b"",
    "no json": b"perf: 1.0",
    "NaN": b'{"perf": NaN}',
    "Infinity": b'{"perf": Infinity}',
    "-Infinity": b'{"perf": -Infinity}',
    "1e999": b'{"perf": 1e999}',
    "1e400 beside": b'{"perf": 1.0, "test_perf": {"%s": 1e400}}' % DATASET.encode(),
    "-1e400": b'{"perf": -1e400}',
    "nested scores": b'{"perf": 1.0, "test_perf": {"%s": {"a": 1}}}' % DATASET.encode(),
    "hexadecimal": b'{"perf": 0x10}',
    "a leading plus": b'{"perf": +1}',
    "a leading zero": b'{"perf": 01}',
    "a lone surrogate": b'{"perf": 1.0, "test_perf": {"\\ud800": 1.0}}',
    "NaN beside": b'{"perf": 1.0, "test_perf": {"%s": NaN}}' % DATASET.encode(),
    "an integer no float can hold": b'{"perf": 1' + b"0" * 400 + b"}",
    "an integer of 5000 digits": b'{"perf": 1' + b"0" * 5000 + b"}",
    "no perf": b'{"test_perf": {}}',
    "null": b'{"perf": null}',
    "text": b'{"perf": "0.9"}',
    "true": b'{"perf": true}',
    "a list": b"[0.9]",
    "a number": b"0.9",
    "a list of scores": b'{"perf": [0.9]}',
    "text beside": b'{"perf": 1.0, "test_perf": {"%s": "0.9"}}' % DATASET.encode(),
    "extra key": b'{"perf": 1.0, "note": "the targets were 1 0 1"}',
    "duplicate key": b'{"perf": 0.1, "perf": 0.9}',
    "duplicate dataset": b'{"perf": 0.1, "test_perf": {"a": 1, "a": 2}}',
    "unknown test dataset": b'{"perf": 1.0, "test_perf": {"another": 1.0}}',
    "unknown train dataset": b'{"perf": 1.0, "train_perf": {"another": 1.0}}',
    "nested brackets": b"[" * 100_000,
    "nested objects": b'{"perf":' * 40 + b"1" + b"}" * 40,
    "two documents": b'{"perf": 1.0}{"perf": 1.0}',
    "a comment": b'{"perf": 1.0} // good',
    "UTF-16": '{"perf": 1.0}'.encode("utf-16"),
    "a byte order mark": b'\xef\xbb\xbf{"perf": 1.0}',
    "invalid UTF-8": b'{"perf": 1.0, "test_perf": {"\xff": 1.0}}',
    "over 1 MiB": b'{"perf": 1.0}' + b" " * MAX_PERFORMANCE_BYTES,
}


@pytest.mark.parametrize("text", NO_SCORE.values(), ids=NO_SCORE)
def test_what_is_not_exactly_a_score_is_refused(text: bytes, left: Path) -> None:
    with pytest.raises(BadOutput):
        read_performance(perf_of(left, text), frozenset({DATASET}), CEILINGS)


def test_a_missing_score_is_an_error_and_never_a_zero(left: Path) -> None:
    with pytest.raises(BadOutput, match="missing"):
        read_performance(left, frozenset({DATASET}), CEILINGS)


def test_a_score_that_is_a_link_is_refused(left: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text('{"perf": 1.0}')
    (left / "performance.json").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(BadOutput, match="symbolic link"):
        read_performance(left, frozenset({DATASET}), CEILINGS)


def test_a_score_that_is_a_folder_is_missing(left: Path) -> None:
    (left / "performance.json").mkdir()

    with pytest.raises(BadOutput, match="missing"):
        read_performance(left, frozenset({DATASET}), CEILINGS)


@given(st.binary(max_size=200) | st.text(max_size=80).map(lambda text: f'{{"perf": {text}}}'.encode()))
def test_whatever_stands_in_the_file_it_is_a_finite_score_or_refused(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        perf_of(Path(folder), content)
        try:
            told = read_performance(Path(folder), frozenset({DATASET}), CEILINGS)
        except BadOutput:
            return

    assert abs(told.perf) < float("inf")


# ------------------------------------------------------------------ packing: the same content, the same digest


def test_the_same_content_gives_the_same_digest_whatever_else_differs(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    fill(one, {"a": b"1", "b/c": b"2", "b/d": b"3"})
    fill(two, {"b/d": b"3", "b/c": b"2", "a": b"1"})
    os.utime(two / "a", (1, 1))
    (two / "b/c").chmod(0o600)
    (two / "an empty folder").mkdir()

    digests = [pack(folder, inspect(folder, CEILINGS), folder.with_suffix(".tar")) for folder in (one, two)]

    assert digests[0] == digests[1] == file_digest(one.with_suffix(".tar"))
    assert digests[0] == digest_of(two.with_suffix(".tar").read_bytes())


def test_an_archive_has_these_very_bytes_on_every_host_and_under_every_python(tmp_path: Path) -> None:
    """A change here changes the digest of every model: names over 100 bytes, outside of ASCII, and the order are in it."""
    folder = tmp_path / "model"
    fill(
        folder,
        {
            "weights": b"w" * 513,
            "ü/ö ä.bin": b"2",
            "d" * 90 + "/" + "f" * 90: b"3",
            "l" * 101: b"",
            "Z": b"4",
        },
    )

    names = inspect(folder, CEILINGS)
    digest = pack(folder, names, tmp_path / "model.tar")

    assert names == ("Z", "d" * 90 + "/" + "f" * 90, "l" * 101, "weights", "ü/ö ä.bin")
    assert digest == "sha256:33504db13518dd1edaf40ac1b62935ac9cf08937916555c9bf4fc88b66a332aa"


def test_what_was_packed_is_unpacked_alike_and_packs_to_the_same_digest(tmp_path: Path) -> None:
    folder, again = tmp_path / "model", tmp_path / "again"
    fill(folder, {"ü/ö ä.bin": b"2", "d" * 90 + "/" + "f" * 90: b"3", "l" * 101: b"", "Z": b"4"})
    digest = pack(folder, inspect(folder, CEILINGS), tmp_path / "model.tar")
    again.mkdir()

    unpack(tmp_path / "model.tar", again, CEILINGS)

    assert pack(again, inspect(again, CEILINGS), tmp_path / "again.tar") == digest


@pytest.mark.parametrize(
    "other",
    [{"a": b"2"}, {"b": b"1"}, {"a": b"1", "b": b""}, {"a/b": b"1"}],
    ids=["content", "name", "more", "deeper"],
)
def test_other_content_gives_another_digest(other: dict[str, bytes], tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    fill(one, {"a": b"1"})
    fill(two, other)

    digests = [pack(folder, inspect(folder, CEILINGS), folder.with_suffix(".tar")) for folder in (one, two)]

    assert digests[0] != digests[1]


def test_an_archive_tells_nothing_of_the_host_that_packed_it(left: Path, tmp_path: Path) -> None:
    fill(left, {"model": b"w"})

    pack(left, ("model",), tmp_path / "model.tar")

    with tarfile.open(tmp_path / "model.tar") as archive:
        (entry,) = archive.getmembers()
    assert (entry.uid, entry.gid, entry.uname, entry.gname, entry.mtime) == (0, 0, "", "", 0)


def test_an_archive_is_never_written_over_another(left: Path, tmp_path: Path) -> None:
    fill(left, {"model": b"w"})
    (tmp_path / "model.tar").write_bytes(b"there")

    with pytest.raises(FileExistsError):
        pack(left, ("model",), tmp_path / "model.tar")

    assert (tmp_path / "model.tar").read_bytes() == b"there"


PART = st.text(
    st.characters(exclude_categories=["C", "Z"], exclude_characters="/") | st.just(" "),
    min_size=1,
    max_size=60,
).filter(lambda part: part not in {".", ".."} and part.isprintable())
PATHS = st.lists(PART, min_size=1, max_size=4).map("/".join)


def without_conflicts(files: dict[str, bytes]) -> dict[str, bytes]:
    """The files that can stand in one folder: none below another."""
    return {name: files[name] for name in files if not any(name.startswith(f"{other}/") for other in files)}


@given(st.dictionaries(PATHS, st.binary(max_size=2000), max_size=12).map(without_conflicts))
def test_what_was_packed_comes_out_again(files: dict[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "source"), Path(folder, "target")
        source.mkdir()
        target.mkdir()
        fill(source, files)

        pack(source, inspect(source, CEILINGS), Path(folder, "model.tar"))
        unpack(Path(folder, "model.tar"), target, CEILINGS)

        assert {name: (target / name).read_bytes() for name in inspect(target, CEILINGS)} == files


# ------------------------------------------------------------------ unpacking an archive that a stranger wrote

Entry = tuple[tarfile.TarInfo, bytes]


def regular(name: str, content: bytes = b"x", **changes: object) -> Entry:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    for field, value in changes.items():
        setattr(entry, field, value)
    return entry, content


def special(name: str, kind: bytes, target: str = "") -> Entry:
    return regular(name, b"", type=kind, linkname=target)


def tar_of(*entries: Entry, form: int = tarfile.PAX_FORMAT) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=form) as archive:
        for entry, content in entries:
            archive.addfile(entry, io.BytesIO(content))
    return raw.getvalue()


def with_size(size: int) -> bytes:
    """A header that claims this size for `claimed`, in the base-256 form that can be negative; no content follows."""
    header = bytearray(regular("claimed", b"")[0].tobuf(tarfile.GNU_FORMAT))
    header[124:136] = (
        size.to_bytes(12, "big", signed=True) if size < 0 else b"\x80" + size.to_bytes(11, "big")
    )
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + tar_of(regular("after"))


def unpacked(archive: bytes, tmp_path: Path) -> Path:
    (tmp_path / "model.tar").write_bytes(archive)
    folder = tmp_path / "model"
    folder.mkdir()
    unpack(tmp_path / "model.tar", folder, CEILINGS)
    return folder


BAD_ARCHIVES: dict[str, tuple[bytes, str]] = {
    "a name with ..": (tar_of(regular("../escaped")), "refused"),
    "a name with .. inside": (tar_of(regular("a/../../escaped")), "refused"),
    "an absolute name": (tar_of(regular("/tmp/escaped")), "refused"),
    "a name with ./": (tar_of(regular("./a")), "refused"),
    "a name with //": (tar_of(regular("a//b")), "refused"),
    "no name": (tar_of(regular("")), "refused"),
    "a name with a line break": (tar_of(regular("a\nb")), "cannot be printed"),
    "a name with a null byte": (tar_of(regular("a", pax_headers={"path": "a\0b"})), "cannot be printed"),
    "a name that is not UTF-8": (tar_of(regular("\udcff"), form=tarfile.GNU_FORMAT), "not UTF-8"),
    "a name over 255 bytes": (tar_of(regular("n" * (MAX_NAME_BYTES + 1))), "too long"),
    "a path over 1024 bytes": (tar_of(regular("/".join(["d" * 200] * 6))), "too long"),
    "a path longer than the system takes": (tar_of(regular("/".join(["d" * 255] * 16))), "too long"),
    "a path over 16 parts": (tar_of(regular("/".join("d" * (MAX_DEPTH + 1)))), "refused"),
    "a symbolic link": (tar_of(special("link", tarfile.SYMTYPE, "/etc/passwd")), "no regular file"),
    "a file through a link": (
        tar_of(special("link", tarfile.SYMTYPE, "/tmp"), regular("link/escaped")),
        "no regular file",
    ),
    "a hard link": (tar_of(regular("a"), special("b", tarfile.LNKTYPE, "a")), "no regular file"),
    "a hard link to a secret": (tar_of(special("b", tarfile.LNKTYPE, "/etc/shadow")), "no regular file"),
    "a device": (tar_of(special("null", tarfile.CHRTYPE)), "no regular file"),
    "a block device": (tar_of(special("sda", tarfile.BLKTYPE)), "no regular file"),
    "a fifo": (tar_of(special("fifo", tarfile.FIFOTYPE)), "no regular file"),
    "an unknown kind of entry": (tar_of(special("what", b"Q")), "no regular file"),
    "a sparse file": (tar_of(special("hole", tarfile.GNUTYPE_SPARSE)), "no regular file"),
    "a sparse file by its attributes": (
        tar_of(regular("hole", pax_headers={"GNU.sparse.map": "0,1", "GNU.sparse.size": "9999999999"})),
        "no regular file",
    ),
    "a sparse map that does not parse": (
        tar_of(regular("hole", pax_headers={"GNU.sparse.major": "1", "GNU.sparse.minor": "0"})),
        "not a tar archive",
    ),
    "the same name twice": (tar_of(regular("a", b"1"), regular("a", b"2")), "twice"),
    "a file, then a folder": (tar_of(regular("a"), special("a", tarfile.DIRTYPE)), "twice"),
    "a folder, then a file": (tar_of(special("a", tarfile.DIRTYPE), regular("a")), "twice"),
    "a file, then a file below it": (tar_of(regular("a"), regular("a/b")), "twice"),
    "a file, then a file far below it": (tar_of(regular("a"), regular("a/b/c")), "twice"),
    "too many files": (tar_of(*(regular(f"f{n}", b"") for n in range(CEILINGS.output_files + 1))), "entries"),
    "too many folders": (
        tar_of(*(special(f"d{n}", tarfile.DIRTYPE) for n in range(CEILINGS.output_files + 1))),
        "entries",
    ),
    "too many bytes": (
        tar_of(regular("a", b"\0" * (4 << 20)), regular("b", b"\0" * ((4 << 20) + 1))),
        "bytes",
    ),
    "a size it does not have": (with_size(1 << 40), "bytes"),
    "a negative size": (with_size(-1), "no regular file"),
    "a negative size that steps back": (with_size(-512), "no regular file"),
    "a negative size by its attributes": (
        tar_of(regular("a", pax_headers={"size": "-1000"})),
        "archive|regular",
    ),
    "nothing at all": (b"", "not a tar archive"),
    "something else": (b"PK\x03\x04" + b"x" * 2000, "not a tar archive"),
    "a compressed archive": (gzip.compress(tar_of(regular("a", b"\0" * (1 << 20)))), "not a tar archive"),
    "a file cut short": (tar_of(regular("a", b"x" * 5000))[:3000], "not a tar archive"),
    "a second file cut short": (tar_of(regular("a"), regular("b", b"x" * 5000))[:4000], "not a tar archive"),
    "half a header": (tar_of(regular("a"))[:300], "not a tar archive"),
    "an altered header": (b"b" + tar_of(regular("a"))[1:], "not a tar archive"),
}


@pytest.mark.parametrize(("archive", "why"), BAD_ARCHIVES.values(), ids=BAD_ARCHIVES)
def test_an_archive_is_refused_for(archive: bytes, why: str, tmp_path: Path) -> None:
    with pytest.raises(BadOutput) as refusal:
        unpacked(archive, tmp_path)

    assert re.search(why, f"{refusal.value}: {refusal.value.seen}")
    assert {path.name for path in tmp_path.iterdir()} == {"model", "model.tar"}
    assert all(path.is_dir() or path.is_file() for path in (tmp_path / "model").rglob("*"))
    assert not any(path.is_symlink() for path in (tmp_path / "model").rglob("*"))
    assert not Path("/tmp/escaped").exists()


def test_modes_and_owners_in_an_archive_do_not_count(tmp_path: Path) -> None:
    folder = unpacked(tar_of(regular("a", mode=0o6777, uid=4242, gid=4242, uname="root")), tmp_path)

    info = (folder / "a").stat()
    assert info.st_mode & 0o7000 == 0
    assert (info.st_uid, info.st_gid) == (os.getuid(), os.getgid())


def test_an_archive_of_another_tar_program_is_welcome(tmp_path: Path) -> None:
    entries = [special("d", tarfile.DIRTYPE), regular("d/a", b"1"), regular("b", b"2", type=tarfile.AREGTYPE)]

    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        folder = unpacked(tar_of(*entries, form=form), tmp_path)

        assert {name: (folder / name).read_bytes() for name in inspect(folder, CEILINGS)} == {
            "b": b"2",
            "d/a": b"1",
        }
        shutil.rmtree(folder)


GOOD = tar_of(regular("a/b", b"1" * 700), regular("ü" * 90, b"2"), special("d", tarfile.DIRTYPE))


@given(
    st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), max_size=8),
    st.integers(0, len(GOOD)),
)
def test_a_damaged_archive_is_refused_or_gives_plain_files_inside_its_folder(
    flips: list[tuple[int, int]], length: int
) -> None:
    damaged = bytearray(GOOD)
    for place, value in flips:
        damaged[place] = value
    for header in range(0, len(GOOD), 512):  # right sums let the damage reach further in
        head = damaged[header : header + 512]
        if head[257:262] == b"ustar":
            head[148:156] = b" " * 8
            damaged[header + 148 : header + 156] = b"%06o\0 " % sum(head)

    with tempfile.TemporaryDirectory() as folder:
        with suppress(BadOutput):
            unpacked(bytes(damaged[:length]), Path(folder))
        inspect(Path(folder, "model"), CEILINGS)

        assert {path.name for path in Path(folder).iterdir()} == {"model", "model.tar"}
