"""Images are built without any network, and each RUN sees the cage of a job. Real Podman, real steps."""

import gzip
import io
import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from agent.cli import run
from agent.errors import BadBuild, CageNotApplied
from agent.pipeline.outputs import file_digest
from agent.ports import cage_seen
from agent.ports.builder import Base
from agent.ports.builder_layers import LayersBuilder
from agent.ports.image_archive import inspect
from agent.ports.image_tree import unpack
from agent.ports.runtime_podman_build import PodmanStep, PodmanSteps
from agent.selftest.images import PYTHON, python_layer
from tests.host.podman import (
    CEILINGS,
    PLANTED,
    ROOT,
    SECCOMP,
    Desk,
    Engine,
    image_cache,
    open_desk,
    open_engine,
    probe_archive,
)

pytestmark = pytest.mark.host
MISSING = frozenset({"cpu_millis", "memory_bytes"})


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    yield from open_engine()


@pytest.fixture
def desk(engine: Engine) -> Iterator[Desk]:
    yield from open_desk(engine.runtime())


class Workshop:
    """A builder over real Podman; the base `python` is the probe's image."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.engine, self.folder = engine, folder
        self.work = folder / "work"
        self.work.mkdir()
        self.steps = PodmanSteps(
            engine.socket, SECCOMP, self.work, instance=f"build-{os.getpid()}", pool_size=3
        )
        self.builder = LayersBuilder(self.steps, self.work, 1 << 30)

    def build(self, dockerfile: str, files: Mapping[str, bytes] | None = None, *, wall_s: int = 60) -> Path:
        out = self.folder / "image.tar"
        context = write_context(self.folder / "context.tar.gz", dockerfile, files or {})
        digest = self.builder.build(context, self.base, out, replace(CEILINGS, wall_s=wall_s), MISSING)
        assert digest == file_digest(out)
        return out

    @staticmethod
    def base(name: str) -> Base | None:
        return Base(*probe_archive()) if name == "python" else None

    def tree(self, archive: Path) -> Path:
        unpack(archive, inspect(archive, file_digest(archive)), self.folder / "tree")
        return self.folder / "tree"

    def is_clean(self) -> bool:
        """Whether nothing lies about: no container, no image, no file."""
        return self.step().leftovers() == () and list(self.work.iterdir()) == []

    def step(self) -> PodmanStep:
        """A runtime that sees the containers of this workshop's steps."""
        return PodmanStep(
            self.engine.socket,
            SECCOMP,
            self.work / "none",
            instance=f"build-{os.getpid()}",
            pool_size=3,
            work_dir="/",
            user=0,
        )


def write_context(
    target: Path, dockerfile: str, files: Mapping[str, bytes], layer: Path | None = None
) -> Path:
    """A tar.gz of a Dockerfile, files, and below root/ all that a layer has."""
    with gzip.open(target, "wb", compresslevel=1) as packed, tarfile.open(fileobj=packed, mode="w|") as tar:
        for name, content in {"Dockerfile": dockerfile.encode(), **files}.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), 0o644
            tar.addfile(info, io.BytesIO(content))
        if layer is not None:
            with tarfile.open(layer) as source:
                for member in source:
                    member.name = f"root/{member.name}"
                    tar.addfile(member, source.extractfile(member) if member.isfile() else None)
    return target


@pytest.fixture
def workshop(engine: Engine, tmp_path: Path) -> Workshop:
    return Workshop(engine, tmp_path)


LOOK = """
import json, os, socket, errno
def attempt(family, where):
    try:
        with socket.socket(family, socket.SOCK_STREAM) as one:
            one.settimeout(2)
            one.connect(where)
    except OSError as refusal:
        return errno.errorcode.get(refusal.errno, str(refusal))
    return "connected"
told = {
    "interfaces": sorted(line.split(":")[0].strip() for line in open("/proc/net/dev").read().splitlines()[2:]),
    "routes": open("/proc/net/route").read().splitlines()[1:],
    "outside": attempt(socket.AF_INET, ("192.0.2.1", 80)),
    "metadata": attempt(socket.AF_INET, ("169.254.169.254", 80)),
    "host": attempt(socket.AF_INET, ("127.0.0.1", PORT)),
    "v6": attempt(socket.AF_INET6, ("2001:db8::1", 80)),
    "status": dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines()),
    "uid_map": open("/proc/self/uid_map").read().split(),
    "environ": dict(os.environ),
    "cwd": os.getcwd(),
    "umask": os.umask(0),
}
json.dump(told, open("/found.json", "w"))
"""


def test_a_step_sees_only_loopback_and_has_no_rights(workshop: Workshop) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:  # a service of the host, as its database might be
        port = server.getsockname()[1]
        look = {"look.py": LOOK.replace("PORT", str(port)).encode()}
        archive = workshop.build(
            f'FROM python\nWORKDIR /opt/a\nCOPY look.py .\nRUN ["{PYTHON}", "look.py"]\n', look
        )

    told = json.loads((workshop.tree(archive) / "found.json").read_text())
    assert told["interfaces"] == ["lo"]
    assert told["routes"] == []
    assert {told["outside"], told["metadata"], told["v6"]} <= {
        "ENETUNREACH",
        "EADDRNOTAVAIL",
        "EAFNOSUPPORT",
        "ENOSYS",
    }
    assert told["host"] in {
        "EAFNOSUPPORT",
        "ECONNREFUSED",
    }  # by the profile, or its own loopback: never the host's
    status = {name: value.strip() for name, value in told["status"].items()}
    assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert int(told["uid_map"][1]) != os.getuid()
    assert PLANTED not in told["environ"]
    assert (told["cwd"], told["umask"]) == ("/opt/a", 0o022)
    assert workshop.is_clean()


def test_what_steps_make_and_take_away_is_in_the_image_that_runs(workshop: Workshop, desk: Desk) -> None:
    make = "import os; os.makedirs('/made'); open('/made/say.py', 'w').write('print(40 + 2)')"
    take = "; ".join(
        (
            "import os, shutil",
            "os.remove('/opt/gone.txt')",
            "shutil.rmtree('/opt/old')",
            "os.mkdir('/opt/old')",
            "open('/opt/old/new', 'w')",
        )
    )
    archive = workshop.build(
        f"""FROM python
COPY gone.txt stays.txt /opt/
COPY old /opt/old
RUN ["{PYTHON}", "-c", "{make}"]
RUN ["{PYTHON}", "-c", "{take}"]
ENTRYPOINT ["{PYTHON}", "/made/say.py"]
""",
        {"gone.txt": b"1", "stays.txt": b"1", "old/a": b"1"},
    )
    digest = file_digest(archive)

    tree = workshop.tree(archive)
    assert sorted(path.name for path in (tree / "opt").iterdir()) == ["old", "program", "stays.txt"]
    assert [path.name for path in (tree / "opt/old").iterdir()] == ["new"]
    assert not (tree / "run/.containerenv").exists()
    desk.runtime.load(archive, digest)
    try:
        with desk.runtime.run(desk.spec(image=digest, mounts=(desk.output(),))) as run:
            assert run.wait().log == b"42\n"
    finally:
        desk.runtime.discard(digest)


def test_an_image_from_scratch_of_copied_files_runs(workshop: Workshop, desk: Desk, tmp_path: Path) -> None:
    dockerfile = (
        f'FROM scratch\nCOPY root/ /\nCOPY hello.py /opt/\nENTRYPOINT ["{PYTHON}", "/opt/hello.py"]\n'
    )
    context = write_context(
        tmp_path / "context.tar.gz",
        dockerfile,
        {"hello.py": b"print('hello')"},
        python_layer(image_cache()).path,
    )

    digest = workshop.builder.build(context, workshop.base, tmp_path / "image.tar", CEILINGS, MISSING)

    desk.runtime.load(tmp_path / "image.tar", digest)
    try:
        with desk.runtime.run(desk.spec(image=digest, mounts=(desk.output(),))) as run:
            assert run.wait().log == b"hello\n"
    finally:
        desk.runtime.discard(digest)


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("raise SystemExit(3)", "ended with exit:3"),
        ("import time; time.sleep(60)", "ended with timeout"),
        ("import ctypes; ctypes.string_at(0)", "ended with signal:11"),
        ("import ctypes; ctypes.CDLL(None).mount(b'x', b'/opt', b'tmpfs', 0, 0)", "ended with seccomp"),
        ("import os; os.mknod('/opt/disk', 0o60600, os.makedev(8, 0))", "ended with exit:1"),
    ],
)
def test_a_step_that_fails_ends_the_build_and_leaves_nothing(
    workshop: Workshop, program: str, words: str
) -> None:
    with pytest.raises(BadBuild, match=words):
        workshop.build(f'FROM python\nRUN ["{PYTHON}", "-c", "{program}"]\n', wall_s=3)

    assert workshop.is_clean()
    assert not (workshop.folder / "image.tar").exists()


def test_a_step_as_the_job_s_user_writes_only_where_that_user_may(workshop: Workshop) -> None:
    workshop.build(
        f'FROM python\nUSER 1000\nRUN ["{PYTHON}", "-c", "import os; assert os.getuid() == 1000"]\n'
    )

    with pytest.raises(BadBuild, match="PermissionError"):
        workshop.build(f'FROM python\nUSER 1000\nRUN ["{PYTHON}", "-c", "open(\'/opt/x\', \'w\')"]\n')


@pytest.mark.parametrize("name", ["the user inside", "Uid is", "groups", "interfaces"])
def test_the_cage_of_a_step_is_read_back_before_it_begins(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    really = cage_seen.read_process

    def read_otherwise(*told: object) -> cage_seen.Process:
        process = really(*told)  # type: ignore[arg-type]
        match name:
            case "Uid is":
                return replace(process, status={**process.status, "Uid": "1 1 1 1"})
            case "groups":
                return replace(process, status={**process.status, "Groups": "4242"})
            case "interfaces":
                return replace(process, interfaces=frozenset({"lo", "eth0"}))
            case _:
                return process

    monkeypatch.setattr(cage_seen, "read_process", read_otherwise)
    if name == "the user inside":
        as_asked = PodmanStep._body

        def as_somebody(self: PodmanStep, *told: object) -> dict[str, object]:
            return {**as_asked(self, *told), "user": "7:7"}  # type: ignore[arg-type]

        monkeypatch.setattr(PodmanStep, "_body", as_somebody)

    with pytest.raises(CageNotApplied, match=name):
        workshop.build(f'FROM python\nRUN ["{PYTHON}", "-c", "pass"]\n')
    assert workshop.is_clean()


BUILDS = """
import sys
from pathlib import Path
from agent.domain.ids import Digest
from agent.ports.builder import Base
from agent.ports.builder_layers import LayersBuilder
from agent.ports.runtime_podman_build import PodmanSteps
from tests.host.podman import CEILINGS, SECCOMP

socket, work, context, base, digest, instance = sys.argv[1:]
steps = PodmanSteps(Path(socket), SECCOMP, Path(work), instance=instance, pool_size=3)
missing = frozenset({"cpu_millis", "memory_bytes"})
LayersBuilder(steps, Path(work), 1 << 30).build(
    Path(context), lambda _: Base(Path(base), Digest(digest)), Path(work) / "out.tar", CEILINGS, missing
)
"""


def test_what_a_killed_build_left_is_cleared_before_the_next_one(workshop: Workshop) -> None:
    text = f'FROM python\nCOPY mark /opt/\nRUN ["{PYTHON}", "-c", "import time; time.sleep(600)"]\n'
    context = write_context(workshop.folder / "context.tar.gz", text, {"mark": os.urandom(16)})
    words = [workshop.engine.socket, workshop.work, context, *probe_archive(), f"build-{os.getpid()}"]
    step = workshop.step()
    killed = subprocess.Popen([sys.executable, "-B", "-c", BUILDS, *map(str, words)], cwd=ROOT)
    try:
        deadline_s = time.monotonic() + 60
        while not any(one.is_running for one in step.leftovers()):
            assert killed.poll() is None
            assert time.monotonic() < deadline_s
    finally:
        killed.kill()
        killed.wait()
    assert len(step.leftovers()) == 1

    workshop.steps.clear()

    assert step.leftovers() == ()
    assert list(workshop.work.glob("step-*")) == []


def test_the_command_lists_prunes_and_builds_on_this_host(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    home, out = workshop.folder / "home", workshop.folder / "out.tar"
    archive, digest = probe_archive()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(workshop.folder))
    monkeypatch.setenv("DC_COMPUTE_RUNTIME_PODMAN_SOCKET", str(workshop.engine.socket))
    monkeypatch.setenv("DC_COMPUTE_RUNTIME_POOL_SIZE", "3")

    def command(*words: object) -> Any:
        code = run(["--home", str(home), *map(str, words), *([] if words == ("init",) else ["--json"])])
        told = capfd.readouterr()
        assert code == 0, told.err
        return json.loads(told.out) if words != ("init",) else None

    command("init")
    missing = '["cpu_millis", "memory_bytes"]'
    (home / "policy.toml").write_text(
        f'allow_build = true\naccept_missing = {missing}\n[bases]\n"python:3" = "{digest}"\n'
    )
    text = f'FROM python:3\nRUN ["{PYTHON}", "-c", "open(\'/opt/{os.urandom(8).hex()}\', \'w\')"]\n'
    context = write_context(workshop.folder / "context.tar.gz", text, {})

    built = command("image", "build", context, "--out", out, "--base", archive)
    command("image", "add", out, "--no-upload", "--load")
    (listed,) = command("image", "list")
    assert command("image", "prune")["images"] == []
    would_go = command("image", "prune", "--all", "--dry-run")
    assert [one["digest"] for one in command("image", "list")] == [built["digest"]]
    gone = command("image", "prune", "--all")

    assert listed["digest"] == built["digest"] == file_digest(out)
    assert datetime.fromisoformat(listed["used_at"]).tzinfo is not None
    assert [one["image"]["digest"] for one in would_go["images"]] == [built["digest"]]
    assert [(one["image"]["digest"], one["reason"]) for one in gone["images"]] == [(built["digest"], "asked")]
    assert command("image", "list") == []
