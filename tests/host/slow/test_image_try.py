"""`dc-compute image try`: an author's image in real containers, good and bad, told with the contract's own line."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agent.cli import run
from agent.cli.image_try import apart, instance_of
from agent.config import load_settings
from agent.devkit.images import program_image, source_image
from agent.devkit.podman_service import why_no_runc
from agent.devkit.tryout import dataset_of
from agent.devkit.waiting import wait_for
from agent.selftest.images import PYTHON, build_image, python_layer
from agent.wiring import make_runtime
from tests.host.podman import ROOT, image_cache

OK, FAILED = 0, 1
IO_URING_SETUP = "425"
SMALL = "[ceilings]\nwall_s = 20\noutput_bytes = 4194304\nmemory_bytes = 268435456\nlog_bytes = 65536\n"

pytestmark = [pytest.mark.host, pytest.mark.slow]


SOCKET = "import socket; socket.create_connection(('192.0.2.1', 80))"
OUTSIDE = """
import pathlib
try:
    pathlib.Path('/cache').mkdir()
except OSError as error:
    print(error)
pathlib.Path('/data/model/lessons').write_text('1')
"""
LARGE = "open('/data/model/lessons', 'wb').write(bytes(8 << 20))"
LARGE_TOGETHER = "for n in range(4): open(f'/data/model/{n}', 'wb').write(bytes(2 << 20))"
NO_SCORE = """
import pathlib, sys
if 'perf' in sys.argv:
    pathlib.Path('/hidden_data/perf/performance.json').write_text('{"perf": NaN}')
else:
    for path in pathlib.Path('/hidden_data/test').iterdir():
        if path.is_file():
            pathlib.Path('/submission_data/test', path.name).write_text(path.read_text())
"""
TWO_PREDICTIONS = """
import pathlib
for name in ('one', 'two'):
    pathlib.Path('/data/test/pred', name).write_text('')
"""


@dataclass(frozen=True)
class Desk:
    """An author's desk: a folder with data, and the command."""

    folder: Path
    call: Callable[..., tuple[int, str, str]]

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def image(self, *words: str) -> Path:
        """The archive of the probe that does this before what it is asked."""
        target = self.folder / "probe.tar"
        program_image(target, "probe", image_cache(), words=[*words, *(["+"] if words else [])])
        return target

    def program(self, source: str) -> Path:
        """The archive of this program."""
        target = self.folder / "program.tar"
        source_image(target, "program.py", source.encode(), image_cache())
        return target

    def attempt(self, image: Path, *words: object, code: int) -> Any:
        """What `--json` tells of a trial that ends with this code."""
        arguments = ["--data", self.data, "--policy", self.folder / "policy.toml", "--json", *words]
        ended, out, err = self.call("image", "try", image, *arguments)
        assert ended == code, f"{out}\n{err}"
        return json.loads(out)


@pytest.fixture(params=["podman", "runc"])
def desk(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Desk]:
    """The desk of an author who has this engine. What a trial leaves behind fails the test."""
    if request.param == "podman":
        socket = request.getfixturevalue("engine").socket
        monkeypatch.setenv("DC_COMPUTE_RUNTIME_PODMAN_SOCKET", str(socket))
    elif lacking := why_no_runc():
        pytest.skip(f"runc's containers need {lacking}")
    monkeypatch.setenv("DC_COMPUTE_RUNTIME_ENGINE", request.param)
    folder = Path(tempfile.mkdtemp(prefix="dcc-try-", dir="/dev/shm"))
    (folder / "data").mkdir()
    (folder / "data" / "a.csv").write_text("x,y\n1,0\n2,1\n")
    (folder / "data" / "b.csv").write_text("x,y\n3,0\n")
    (folder / "policy.toml").write_text(SMALL)
    home = folder / "home"

    def call(*words: object) -> tuple[int, str, str]:
        capfd.readouterr()
        code = run(["--home", str(home), *map(str, words)])
        told = capfd.readouterr()
        return code, told.out, told.err

    yield Desk(folder, call)

    settings = apart(load_settings(home, os.environ), None)
    runtime = make_runtime(settings, instance_of(settings))
    assert not runtime.leftovers()
    assert not runtime.images()
    assert not list(settings.workspace.root.iterdir())
    shutil.rmtree(folder)


def fatal(told: Any) -> dict[str, str]:
    """The first breach for which a host fails the last task."""
    return next(breach for breach in told["tasks"][-1]["breaches"] if breach["is_fatal"])


def test_a_good_image_trains_in_turn_is_tested_and_predicts(desk: Desk) -> None:
    image, kept = desk.image(), desk.folder / "kept"

    told = desk.attempt(
        image, "--problem", image, "--test", desk.data, "--predict", desk.data, "--out", kept, code=OK
    )

    assert told["is_well"] is True
    assert [task["task"] for task in told["tasks"]] == [
        "learn",
        "learn",
        "test",
        "test",
        "predict",
        "predict",
    ]
    assert [run["run"] for run in told["tasks"][2]["runs"]] == ["detarget", "predict", "perf"]
    assert told["tasks"][2]["left"]["score"] == 0.5
    with tarfile.open(kept / "02-learn-model") as model:
        lessons = model.extractfile("lessons")
        assert lessons is not None
        assert lessons.read() == b"2"  # the second dataset was learnt on top of the first
    assert told["tasks"][-1]["left"]["begins"] == "score\n0.5"


def test_a_guest_finds_what_is_told_and_nothing_of_the_name_of_the_file(desk: Desk) -> None:
    told = desk.attempt(desk.image("tree", "/data"), "--task", "train", code=OK)

    first = told["tasks"][0]
    assert first["dataset"] == dataset_of(Path("a.csv"))
    assert {(one["path"], one["is_writable"]) for one in first["runs"][0]["mounts"]} == {
        ("/data/train", False), ("/data/train/pred", True), ("/data/test", False), ("/data/test/pred", True),
        ("/data/model", True),
    }  # fmt: skip
    assert first["dataset"] in first["runs"][0]["log"]
    assert "a.csv" not in first["runs"][0]["log"]


def test_a_socket_is_refused_and_the_line_about_the_network_is_named(desk: Desk) -> None:
    told = desk.attempt(desk.program(SOCKET), code=FAILED)

    assert fatal(told)["seen"] == "its program ended with exit code 1"
    assert [breach["contract"] for breach in told["tasks"][0]["breaches"]] == [
        "Exit code 0 is success; everything else is a failure with its cause told apart",
        "a namespace of its own with nothing but loopback",
    ]


def test_a_write_outside_is_named_also_when_the_program_goes_on(desk: Desk) -> None:
    told = desk.attempt(desk.program(OUTSIDE), "--task", "train", code=OK)

    (seen, _) = (task["breaches"][0] for task in told["tasks"])
    assert seen["is_fatal"] is False
    assert seen["contract"].startswith("read-only;")


def test_too_much_output_is_refused_in_one_file_and_in_many(desk: Desk) -> None:
    one = desk.attempt(desk.program(LARGE), code=FAILED)
    many = desk.attempt(desk.program(LARGE_TOGETHER), code=FAILED)

    assert {breach["seen"] for breach in one["tasks"][0]["breaches"]} == {
        "its program ended with exit code 1",  # Python ignores SIGXFSZ, and is told EFBIG
        'the log says "File too large"',
    }
    assert fatal(many)["contract"].startswith(
        ("`output_bytes` is RLIMIT_FSIZE", "regular files and directories")
    )


def test_a_training_without_a_model_is_refused(desk: Desk) -> None:
    told = desk.attempt(desk.program("pass"), code=FAILED)

    assert (
        fatal(told)["contract"]
        == "the model is whatever regular files the algorithm leaves under `/data/model`"
    )


def test_a_call_that_kills_is_told_as_seccomp_with_the_calls_it_may_be(desk: Desk) -> None:
    told = desk.attempt(desk.image("call", IO_URING_SETUP), code=FAILED)

    assert told["tasks"][0]["runs"][0]["cause"] == "seccomp"
    assert "io_uring_setup" in fatal(told)["seen"]
    assert fatal(told)["contract"] == "the tripwires kill"


def test_a_program_that_takes_too_long_or_ends_badly_says_how(desk: Desk) -> None:
    (desk.folder / "policy.toml").write_text("[ceilings]\nwall_s = 2\n")

    late = desk.attempt(desk.image("sleep", "30"), code=FAILED)
    left = desk.attempt(desk.image("exit", "7"), code=FAILED)

    assert fatal(late)["contract"] == "The agent kills at the ceiling"
    assert fatal(left)["seen"] == "its program ended with exit code 7"
    assert len(left["tasks"]) == 1  # a chain ends with the task that failed


def test_memory_over_the_ceiling_is_told(desk: Desk) -> None:
    told = desk.attempt(desk.image("allocate", "600"), code=FAILED)

    ended = told["tasks"][0]["runs"][0]["cause"]
    assert ended in {"oom", "exit:12"}  # where no cgroup holds it, an rlimit gives MemoryError


def test_a_score_that_is_none_is_refused(desk: Desk) -> None:
    problem = desk.program(NO_SCORE)

    told = desk.attempt(
        desk.image(), "--problem", problem, "--test", desk.data, "--task", "test", code=FAILED
    )

    assert (
        fatal(told)["contract"] == "a missing or non-finite `perf` is an error of the job, never a silent 0"
    )


def test_what_lies_beside_the_predictions_is_refused(desk: Desk) -> None:
    (desk.folder / "model").mkdir()
    (desk.folder / "model" / "lessons").write_text("1")

    told = desk.attempt(
        desk.program(TWO_PREDICTIONS), "--task", "predict", "--model", desk.folder / "model", code=FAILED
    )

    assert fatal(told)["contract"] == "predictions `pred/<dataset id>`"


def test_an_archive_that_no_host_loads_is_told(desk: Desk) -> None:
    bad = desk.folder / "bad.tar"
    build_image(bad, layers=[python_layer(image_cache())], entrypoint=[PYTHON], raw_env=["*"])

    told = desk.attempt(bad, code=FAILED)

    assert told["tasks"] == []
    assert "Env" in told["refused"]["seen"] or "*" in told["refused"]["seen"]


def test_a_folder_with_an_oci_layout_is_an_image_too(desk: Desk) -> None:
    with tarfile.open(desk.image()) as archive:
        archive.extractall(desk.folder / "layout")  # noqa: S202 - an archive of our own

    told = desk.attempt(desk.folder / "layout", "--task", "train", code=OK)

    assert told["is_well"] is True


def test_what_a_killed_trial_left_is_removed_by_the_next_one(desk: Desk) -> None:
    settings = apart(load_settings(desk.folder / "home", os.environ), None)
    runtime = make_runtime(settings, instance_of(settings))
    words = ["image", "try", str(desk.image("sleep", "60")), "--data", str(desk.data)]
    command = [sys.executable, "-m", "agent", "--home", str(desk.folder / "home"), *words]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=ROOT) as trial:
        wait_for(lambda: any(one.is_running for one in runtime.leftovers()), "its container", timeout_s=60)
        trial.kill()
    assert runtime.leftovers()

    told = desk.attempt(desk.image(), "--task", "train", code=OK)

    assert told["is_well"] is True  # and nothing is left: the fixture looks


def test_people_read_runs_mounts_ends_outputs_and_log(desk: Desk) -> None:
    ended, out, _ = desk.call(
        "image", "try", desk.image("progress"), "--data", desk.data, "--policy", desk.folder / "policy.toml"
    )

    assert ended == OK
    for words in (
        f"train on a.csv, which the image sees as {dataset_of(Path('a.csv'))}",
        "mounted   /data/model              to write  the model",
        "ended     ended well, with exit code 0",
        "file      lessons",
        "log       progress: 0.25 reading",
        "2 tasks done: a host takes what they left",
    ):
        assert words in out
