"""Images from a context without any engine: what is copied where, and what a context may not hold."""

import gzip
import io
import json
import tarfile
import time
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from agent.domain.ceilings import DEFAULT_CEILINGS
from agent.domain.ids import Digest
from agent.errors import BadBuild, BadImage
from agent.pipeline.outputs import file_digest
from agent.ports import image_context
from agent.ports.builder import Base
from agent.ports.builder_layers import LayersBuilder
from agent.ports.image_archive import inspect
from agent.ports.image_tree import unpack
from agent.ports.runtime import Cage, RunOutcome
from agent.selftest.images import build_image, program_layer
from tests.ports.test_image_tree import FOLDER, Content, Seen, entry, image_of, link, seen

END = 'ENTRYPOINT ["/a"]\n'


class NoSteps:
    """Runs nothing: whoever wants a step finds it in `wanted`. The real ones are in tests/host/test_build.py."""

    def __init__(self, cause: str | None = "exit:1") -> None:
        self.wanted: list[dict[str, Any]] = []
        self.cause = cause

    def run(
        self, archive: Path, digest: Digest, target: Path, **told: Any
    ) -> tuple[RunOutcome, tuple[str, ...]]:
        self.wanted.append({"entrypoint": inspect(archive, digest).entrypoint, **told})
        target.write_bytes(archive.read_bytes())
        cage = Cage(runtime="none", version="0", seccomp=digest, ceilings={}, absent=())
        return RunOutcome(cause=self.cause, cage=cage, log=b"said \x1b[2J", wall_s=0), ()


def context(tmp_path: Path, dockerfile: str, files: Mapping[str, Content]) -> Path:
    path = tmp_path / "context.tar.gz"
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in {"Dockerfile": dockerfile.encode(), **files}.items():
            info = tarfile.TarInfo(name) if isinstance(content, bytes) else content
            info.name = name
            if isinstance(content, bytes):
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
    path.write_bytes(gzip.compress(out.getvalue()))
    return path


def build(
    tmp_path: Path,
    dockerfile: str,
    files: Mapping[str, Content],
    base: Base | None = None,
    steps: NoSteps | None = None,
) -> Path:
    work = tmp_path / "work"
    work.mkdir(exist_ok=True)
    out = tmp_path / "out.tar"
    builder = LayersBuilder(steps or NoSteps(), work, 1 << 20)

    def find_base(name: str) -> Base | None:
        return base if name == "base" else None

    try:
        digest = builder.build(context(tmp_path, dockerfile, files), find_base, out, DEFAULT_CEILINGS)
    finally:
        assert list(work.iterdir()) == []
    assert digest == file_digest(out)
    return out


def tree(tmp_path: Path, dockerfile: str, files: Mapping[str, Content], base: Base | None = None) -> Seen:
    archive = build(tmp_path, dockerfile, files, base)
    unpack(archive, inspect(archive, file_digest(archive)), tmp_path / "tree")
    return {name: told for name, told in seen(tmp_path / "tree").items() if told[0] != "folder"}


def base_of(tmp_path: Path, *layers: Mapping[str, Content]) -> Base:
    archive, _ = image_of(tmp_path / "base.tar", *layers)
    return Base(archive, file_digest(archive))


# ------------------------------------------------------------------ where things go


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("COPY a.py /a.py", {"a.py": b"a"}),
        ("COPY a.py /app/", {"app/a.py": b"a"}),
        ("COPY a.py b.py /app/", {"app/a.py": b"a", "app/b.py": b"b"}),
        ("COPY *.py /app/", {"app/a.py": b"a", "app/b.py": b"b"}),
        ("COPY d /app", {"app/x": b"x", "app/e/y": b"y"}),
        ("COPY d/ /", {"x": b"x", "e/y": b"y"}),
        ("COPY ./d//x /to", {"to": b"x"}),
        ("COPY /a.py /to", {"to": b"a"}),
        ("COPY d/e /deep/er/", {"deep/er/y": b"y"}),
        ('COPY ["a.py", "/app/"]', {"app/a.py": b"a"}),
        ("WORKDIR /app\nCOPY a.py .", {"app/a.py": b"a"}),
        ("WORKDIR /app\nWORKDIR sub\nCOPY a.py ./", {"app/sub/a.py": b"a"}),
        ("WORKDIR /app\nCOPY a.py /app", {"app/a.py": b"a"}),
        ("ENV W=/w\nWORKDIR $W\nCOPY a.py ${W}/b.py", {"w/b.py": b"a"}),
        ("COPY a.py /x\nCOPY b.py /x", {"x": b"b"}),
        ("ADD a.py /x", {"x": b"a"}),
        ("COPY twin /x", {"x": b"a"}),
        ("COPY l /l\nCOPY a.py /l/", {"l/a.py": b"a", "l/to": "x"}),
    ],
)
def test_files_go_where_docker_puts_them(tmp_path: Path, line: str, expected: dict[str, bytes]) -> None:
    files: dict[str, Content] = {"a.py": b"a", "b.py": b"b", "d/x": b"x", "d/e/y": b"y", "l/to": link("x")}
    files["twin"] = entry(tarfile.LNKTYPE, "a.py")

    found = tree(tmp_path, f"FROM scratch\n{line}\n{END}", files)

    assert {name: told[1] for name, told in found.items()} == expected


def test_a_copy_follows_the_links_of_the_base_and_keeps_its_folders(tmp_path: Path) -> None:
    base = base_of(
        tmp_path, {"usr/bin/sh": b"#", "bin": link("usr/bin"), "opt": entry(tarfile.DIRTYPE, mode=0o700)}
    )

    found = tree(tmp_path, f"FROM base\nCOPY run /bin/run\nCOPY run /opt/run\n{END}", {"run": b"2"}, base)

    assert found == {
        "usr/bin/sh": ("file", b"#"),
        "usr/bin/run": ("file", b"2"),
        "bin": ("link", "usr/bin"),
        "opt/run": ("file", b"2"),
    }
    assert (tmp_path / "tree/opt").stat().st_mode & 0o777 == 0o700


def test_what_a_base_s_layer_took_away_is_not_there_to_copy_into(tmp_path: Path) -> None:
    base = base_of(tmp_path, {"x": FOLDER, "x/a": b"1"}, {".wh.x": b""})

    assert tree(tmp_path, f"FROM base\nCOPY f /x\n{END}", {"f": b"2"}, base) == {"x": ("file", b"2")}


def test_the_config_is_the_base_s_and_what_the_dockerfile_adds(tmp_path: Path) -> None:
    layer = program_layer(tmp_path / "cache", {"/a": b""})
    digest = build_image(
        tmp_path / "base.tar", layers=[layer], entrypoint=["/base"], env={"PATH": "/bin", "B": "1"}
    )

    base = Base(tmp_path / "base.tar", digest)
    archive = build(
        tmp_path, "FROM base\nENV PATH=/opt:$PATH C='x y'\nLABEL a=b\nUSER 1000\nCMD [\"x\"]\n", {}, base
    )

    found = inspect(archive, file_digest(archive))
    assert found.entrypoint == ("/base",)
    assert dict(found.env) == {"PATH": "/opt:/bin", "B": "1", "C": "x y"}
    with tarfile.open(archive) as whole:
        config = next(
            document["config"]
            for member in whole
            if member.size < 5000
            and (document := as_json(whole.extractfile(member)))
            and "config" in document
            if "Cmd" in document["config"]
        )
    assert (config["Labels"], config["User"], config["Cmd"]) == ({"a": "b"}, "1000:1000", ["x"])


def as_json(file: Any) -> Any:
    try:
        return json.loads(file.read())
    except ValueError:
        return None


def test_the_same_context_gives_the_same_image(tmp_path: Path) -> None:
    files = {"a.py": b"a", "d/x": b"x"}
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()

    one, two = (build(tmp_path / number, f"FROM scratch\nCOPY . /\n{END}", files) for number in "12")

    assert one.read_bytes() == two.read_bytes()


def test_a_set_id_program_of_the_context_is_none_in_the_image(tmp_path: Path) -> None:
    archive = build(tmp_path, f"FROM scratch\nCOPY su /su\n{END}", {"su": entry(mode=0o6755, uid=0)})

    with archive.open("rb") as file:
        layer = inspect(archive, file_digest(archive)).layers[0]
        file.seek(layer.content.offset)
        with tarfile.open(fileobj=io.BytesIO(file.read(layer.content.size_bytes))) as tar:
            assert [(member.name, member.mode) for member in tar] == [("su", 0o755)]


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("dockerfile", "files", "words"),
    [
        ("FROM python:3.11\n", {}, "`bases` of policy.toml lacks 'python:3.11'"),
        ("FROM scratch\n", {}, "no files"),
        ("FROM scratch\nCOPY a /a\n", {}, "no 'a' in the context"),
        ("FROM scratch\nCOPY ../a /a\n", {}, "outside of the context"),
        ("FROM scratch\nCOPY a/../../b /a\n", {"a/x": b""}, "outside of the context"),
        ("FROM scratch\nCOPY [a]* /a\n", {"a": b""}, "begins as a list"),
        ("FROM scratch\nCOPY x[a] /a\n", {"xa": b""}, "only \\* and \\?"),
        ("FROM scratch\nCOPY l /a\n", {"l": link("/etc/passwd")}, "is a link"),
        ("FROM scratch\nCOPY a b /x\n", {"a": b"", "b": b""}, "ends in a slash"),
        ("FROM scratch\nCOPY a /x\nCOPY a /x/y\n", {"a": b""}, "leads through 'x'|no folder"),
        ("FROM scratch\nCOPY d /x\nCOPY e /x\n", {"d/y/z": b"", "e/y": b""}, "copied over the folder"),
        ("FROM scratch\nADD a.tar /x\n", {"a.tar": tarfile.TarInfo("a").tobuf() + bytes(1024)}, "would unpack"),
        ("FROM scratch\nADD a.tgz /x\n", {"a.tgz": gzip.compress(b"")}, "would unpack"),
        ("FROM scratch\nCOPY a /a\nUSER postgres\n", {"a": b""}, "USER takes root and 1000"),
        ("FROM scratch\nCOPY a /a\n", {"a": b"", ".dockerignore": b"b"}, ".dockerignore is not read"),
        ("FROM scratch\nCOPY a /a\n", {"a": entry(tarfile.CHRTYPE)}, "no file, folder or link"),
        ("FROM scratch\nCOPY a /a\n", {"a": entry(tarfile.FIFOTYPE)}, "no file, folder or link"),
        ("FROM scratch\nCOPY a /a\n", {"a": link(".."), "a/b": b""}, "has something below it"),
        ("FROM scratch\nCOPY a /a\n", {"a": entry(tarfile.LNKTYPE, "b")}, "hard link to no file"),
        ("FROM scratch\nCOPY a /a\n", {"a": entry(pax_headers={"SCHILY.xattr.user.x": "y"})}, "has the attribute"),
        ("FROM scratch\nCOPY a /a\n", {"../a": b""}, "outside"),
        ("FROM scratch\nCOPY a /a\n", {"./Dockerfile": b"FROM b", "a": b""}, "stands twice"),
        ("FROM scratch\nRUN x\n", {}, "no files"),
    ],
)  # fmt: skip
def test_such_a_context_is_refused(
    tmp_path: Path, dockerfile: str, files: dict[str, Content], words: str
) -> None:
    with pytest.raises(BadBuild, match=words):
        build(tmp_path, dockerfile + END, files)

    assert not (tmp_path / "out.tar").exists()


@pytest.mark.parametrize(
    ("dockerfile", "files", "words"),
    [
        ("FROM scratch\nCOPY a /a\n", {"a": b""}, "no ENTRYPOINT"),
        (f"FROM scratch\nCOPY a /data\n{END}", {"a": b""}, "no folder"),
        (f"FROM scratch\nCOPY d/ /\n{END}", {"d/data": link("/etc")}, "makes '/data' a link"),
        (f"FROM scratch\nCOPY d/ /\n{END}", {"d/.wh.a": b""}, None),
        (f"FROM scratch\nLABEL run.oci.hooks=x\nCOPY a /a\n{END}", {"a": b""}, "would be obeyed"),
    ],
)
def test_what_comes_out_goes_through_the_reader_of_any_image(
    tmp_path: Path, dockerfile: str, files: dict[str, Content], words: str | None
) -> None:
    if words is None:  # a whiteout of the context hides nothing: there is nothing below
        build(tmp_path, dockerfile, files)
        return
    with pytest.raises(BadImage, match=words):
        build(tmp_path, dockerfile, files)


def test_no_dockerfile_no_gzip_and_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    builder = LayersBuilder(NoSteps(), tmp_path / "work", 1 << 20)

    def refused(content: bytes, words: str) -> None:
        (tmp_path / "c.tar.gz").write_bytes(content)
        with pytest.raises(BadBuild, match=words):
            builder.build(tmp_path / "c.tar.gz", lambda _: None, tmp_path / "out", DEFAULT_CEILINGS)

    refused(gzip.compress(bytes(1024)), "no file Dockerfile")
    refused(bytes(1024), "no tar.gz")
    refused(gzip.compress(bytes(1024))[:-4], "no tar.gz that can be read")
    refused(gzip.compress(b"junk" * 300), "no context")
    refused(gzip.compress(bytes(2 << 20)), "unpacks to more than 1 MiB")
    monkeypatch.setattr(image_context, "MAX_ENTRIES", 1)
    many = context(tmp_path, "FROM scratch", {"a": b"", "b": b""}).read_bytes()
    refused(many, "more than 1 entries")


@pytest.mark.parametrize(
    "lines",
    [
        "ENV A=xxxxxxxxxxxxxxxx\n" + "ENV A=$A$A$A$A\n" * 12,
        "LABEL a=" + "$A" * 30_000 + "\n",
        "COPY a /" + "$A" * 30_000 + "\n",
        "ENV " + " ".join(f"V{n}=" + "$A" * 100 for n in range(250)) + "\n",
    ],
    ids=["variables of variables", "a label", "a target", "many small ones"],
)
def test_variables_that_grow_out_of_each_other_cost_no_memory(tmp_path: Path, lines: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(BadBuild, match=r"too long|together"):
            build(tmp_path, f"FROM scratch\nENV A={'x' * 1000}\n{lines}{END}", {"a": b""})
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak_bytes < 16 << 20


def test_copies_of_copies_do_not_fill_the_disk(tmp_path: Path) -> None:
    """A context of 512 KiB, a hundred times: the limit of a context bounds what is made of it."""
    copies = "".join(f"COPY a /a{n}\n" for n in range(100))

    with pytest.raises(BadBuild, match="copies more than 1 MiB"):
        build(tmp_path, f"FROM scratch\n{copies}{END}", {"a": bytes(512 << 10)})


def test_many_folders_are_copied_in_time_that_grows_with_them(tmp_path: Path) -> None:
    """A star for ten thousand folders looks through the context once, not ten thousand times."""
    folders: dict[str, Content] = {f"d/{n}": entry(tarfile.DIRTYPE) for n in range(20_000)}
    (tmp_path / "work").mkdir()
    builder = LayersBuilder(NoSteps(), tmp_path / "work", 64 << 20)
    packed = context(tmp_path, f"FROM scratch\nCOPY d/* /x/\n{END}", folders)
    began = time.process_time()

    builder.build(packed, lambda _: None, tmp_path / "out", DEFAULT_CEILINGS)

    assert time.process_time() - began < 5


def test_many_whiteouts_are_read_in_time_that_grows_with_them(tmp_path: Path) -> None:
    files: dict[str, Content] = {f"f/{n}": b"" for n in range(15_000)}
    files |= {f"w/.wh.{n}": b"" for n in range(15_000)}
    (tmp_path / "work").mkdir()
    builder = LayersBuilder(NoSteps(), tmp_path / "work", 64 << 20)
    packed = context(tmp_path, f"FROM scratch\nCOPY f/ /d/\nCOPY w/ /d/\n{END}", files)
    began = time.process_time()

    builder.build(packed, lambda _: None, tmp_path / "out", DEFAULT_CEILINGS)

    assert time.process_time() - began < 8


# ------------------------------------------------------------------ steps


def test_a_step_is_told_what_came_before_it(tmp_path: Path) -> None:
    steps = NoSteps()

    with pytest.raises(BadBuild, match=r"ended with exit:1: 'said \\x1b\[2J'"):
        build(
            tmp_path,
            f'FROM scratch\nCOPY a /a\nWORKDIR /w\nUSER 1000\nRUN ["x", "$A"]\n{END}',
            {"a": b""},
            steps=steps,
        )

    (wanted,) = steps.wanted
    assert wanted["entrypoint"] == ("x", "$A")
    assert (wanted["work_dir"], wanted["user"], wanted["ceilings"]) == ("/w", 1000, DEFAULT_CEILINGS)


def test_an_engine_that_gives_back_another_image_is_not_believed(tmp_path: Path) -> None:
    with pytest.raises(BadBuild, match="another image than it was given"):
        build(tmp_path, f"FROM scratch\nCOPY a /a\nRUN x\n{END}", {"a": b""}, steps=NoSteps(cause=None))
