"""`dc-compute image try` on an engine in memory: what it asks for, tells and leaves. Real containers: tests/host/slow."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from agent.devkit.image import main as make_image
from agent.selftest.images import build_image, program_layer
from tests.fakes.runtime import Guest, MemoryRuntime
from tests.test_cli import FAILED, OK, USAGE, Command, command, home, no_traceback  # noqa: F401 - fixtures


def counts(guest: Guest) -> int:
    """A model that counts its lessons, and one line for each thing to predict."""
    if guest.args[-1] == "train":
        kept = guest.path("/data/model/lessons")
        guest.write("/data/model/lessons", str(int(kept.read_text()) + 1 if kept.exists() else 1))
        return 0
    for name in guest.names("/data/test"):
        if name != "pred":
            guest.write(f"/data/test/pred/{name}", guest.read("/data/model/lessons"))
    return 0


@pytest.fixture
def tryout(
    command: Command,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Any]:
    """The command with an image whose program is this function, its data in `tmp_path/data`."""
    archive = tmp_path / "image.tar"
    layer = program_layer(tmp_path, {"/program": b"#!/program"})
    build_image(archive, layers=[layer], entrypoint=["/program"])
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.csv").write_text("1\n")
    (tmp_path / "data" / "b.csv").write_text("2\n")
    monkeypatch.setenv("DC_COMPUTE_RUNTIME_ENGINE", "podman")

    def call(program: Callable[[Guest], int | None], *words: object, absent: Sequence[str] = ()) -> Any:
        runtime = MemoryRuntime({"/program": program, "program": program}, absent=tuple(absent))
        monkeypatch.setattr("agent.devkit.podman_service.answers", lambda _: True)
        monkeypatch.setattr("agent.wiring.make_runtime", lambda *_: runtime)
        said = command("image", "try", archive, "--data", tmp_path / "data", *words)
        assert not runtime.images()
        assert not runtime.leftovers()
        return said

    return call


def test_a_chain_of_trainings_goes_on_with_the_model_before(tryout: Any, tmp_path: Path) -> None:
    said = tryout(counts, "--predict", tmp_path / "data", "--json")

    told = json.loads(said.out)
    assert said.code == OK, said.err
    assert [task["file"] for task in told["tasks"]] == ["a.csv", "b.csv"] * 2
    assert told["tasks"][-1]["left"]["begins"] == "2"


def test_a_failed_task_ends_the_chain_with_code_1(tryout: Any) -> None:
    said = tryout(lambda guest: guest.say("no luck") or 3)

    assert said.code == FAILED
    assert said.out.count("train on") == 1
    assert "BROKEN    its program ended with exit code 3" in said.out
    assert "log       no luck" in said.out


def test_what_a_guest_prints_steers_no_terminal(tryout: Any) -> None:
    said = tryout(lambda guest: guest.say("\x1b]0;owned\x07") or counts(guest))

    assert "\x1b" not in said.out
    assert "\\x1b]0;owned" in said.out


def test_a_ceiling_that_this_machine_lacks_is_named(tryout: Any) -> None:
    said = tryout(counts, absent=("memory_bytes",))

    assert said.code == OK
    assert "cannot hold memory_bytes" in said.err


def test_outputs_are_kept_on_request(tryout: Any, tmp_path: Path) -> None:
    tryout(counts, "--out", tmp_path / "kept")

    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["01-learn-model", "02-learn-model"]


@pytest.mark.parametrize(
    "words",
    [
        ("--task", "operate"),
        ("--task", "test"),
        ("--problem", "x"),
        ("--runtime", "docker"),
        ("--policy", "none"),
    ],
)
def test_what_does_not_fit_together_is_said_before_anything_runs(tryout: Any, words: tuple[str, ...]) -> None:
    said = tryout(counts, *words)

    assert said.code == USAGE
    assert no_traceback(said)


def test_an_empty_folder_and_a_folder_that_is_no_image_are_refused(
    command: Command,  # noqa: F811
    tmp_path: Path,
) -> None:
    (tmp_path / "data").mkdir()

    said = command("image", "try", tmp_path, "--data", tmp_path / "data")

    assert said.code == USAGE
    assert "holds no file" in said.err


def test_the_devkit_makes_the_same_image_of_the_same_program(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "algorithm.py"
    program.write_text("print(1)\n")
    arguments = [str(program), "--cache", str(tmp_path / "cache"), "--out"]

    assert make_image([*arguments, str(tmp_path / "one.tar")]) == 0
    assert make_image([*arguments, str(tmp_path / "two.tar")]) == 0
    assert make_image([*arguments, str(tmp_path / "three.tar"), "--with", "no-such-package"]) == 1

    one, two = capsys.readouterr().out.split()
    assert one == two
    assert {path.name for path in tmp_path.glob("*.*")} == {"algorithm.py", "one.tar", "two.tar"}
