"""What a document tells its reader to type, tried: every command block that no mark gives to another test, in order.

`dc-compute` is the real command in a home of its own, with the API really served where a command asks an agent. What needs
more is tried less: `watch` and `make` are run by other tests, `install.sh` says here what it would do.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import typer.main

from agent.cli.app import app
from agent.domain.ids import wire_time
from agent.trust.signed import sign_order
from tests.builders import consortium, learnuplet
from tests.docs_blocks import blocks_of
from tests.test_docs import CLASSES, FENCE, ROOT, Document, document, documents

# `make` and what the page's words promise of it are the business of these files.
MAKE_IS_RUN_BY = {
    "make chaos": "tests/chaos/test_chaos.py",
    "make check": ".ci/run",
    "make demo": "tests/chain/test_demo.py",
    "make docs": "tests/test_site.py",
    "make test": ".ci/run",
    "make town": "tests/host/slow/test_start.py",
    "make wheelhouse": "tests/host/vm/test_install.py",
}
RUN_ELSEWHERE = {"watch"}  # it ends when an order does: tests/test_cli.py
ASKS_AN_AGENT = {
    "submit",
    "orders",
    "log",
    "receipts",
    "held",
    "audit",
    "status",
    "pause",
    "resume",
    "drain",
    "cancel",
    "reload",
}

pages_with_commands = [page for page in documents() if any(block.mark == "here" for block in blocks_of(page))]


# ------------------------------------------------------------------ a reader's desk


@dataclass
class Desk:
    """A reader who follows a page: a home, a working folder, and an agent once one is asked for."""

    folder: Path
    served: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def environment(self) -> Mapping[str, str]:
        return {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "HOME": str(self.folder),
            "XDG_RUNTIME_DIR": str(self.folder / "run"),
            "DC_COMPUTE_HOME": str(self.folder / "home"),
            "DC_COMPUTE_LISTEN_HOST": "127.0.0.1",
            "DC_COMPUTE_LISTEN_PORT": "0",
            "DC_COMPUTE_LIMITS_LOW_DISK_BYTES": "0",
            "DC_COMPUTE_LOG_FORMAT": "json",
        }

    def prepare(self) -> None:
        """The command in the PATH, and the files that the pages speak of."""
        for name in ("bin", "run", "desk"):
            (self.folder / name).mkdir(mode=0o700)
        command = self.folder / "bin" / "dc-compute"
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m agent "$@"\n')
        command.chmod(0o755)
        now = wire_time(datetime.now(UTC))
        order = learnuplet(not_before=now - timedelta(hours=1), expires=now + timedelta(hours=1))
        (self.folder / "desk" / "order.json").write_bytes(
            sign_order(order, consortium().orchestrator).envelope
        )
        (self.folder / "desk" / "members.toml").write_text("")
        (self.folder / "desk" / "biopsies.csv").write_text("17.99,10.38,malignant\n13.54,14.36,benign\n")

    def run(self, command: str) -> str:
        """The output of a command line; a question is answered with yes."""
        done = subprocess.run(
            ["sh", "-euc", command],
            cwd=self.folder / "desk",
            env=self.environment,
            input="y\n" * 5,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout

    def start_agent(self) -> None:
        """Serve the API anew; returns once it answers."""
        self.stop_agent()
        agent = subprocess.Popen(
            ["dc-compute", "serve"],
            env=self.environment,
            stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        self.served.append(agent)
        assert agent.stderr is not None
        said = []
        for line in agent.stderr:
            said.append(line)
            if json.loads(line).get("event") == "api.started":
                return
        pytest.fail(f"the agent did not start:\n{''.join(said)}")

    def stop_agent(self) -> None:
        while self.served:
            agent = self.served.pop()
            agent.terminate()
            agent.communicate(timeout=30)


@pytest.fixture
def desk() -> Iterator[Desk]:
    with tempfile.TemporaryDirectory(prefix="dc-") as folder:  # short, for the socket's path
        made = Desk(Path(folder))
        made.prepare()
        try:
            yield made
        finally:
            made.stop_agent()


# ------------------------------------------------------------------ command blocks


def steps_of(page: Document) -> Iterator[tuple[str, str]]:
    """(kind of block, one command of it, or the whole block when it is no shell) in the order they stand."""
    for block in blocks_of(page):
        if block.mark is None:
            yield block.kind, block.text
        elif block.mark == "here":
            lines = re.sub(r"\\\n\s*", "", block.text).splitlines()
            yield from (("sh", line) for line in lines if line and not line.startswith("#"))


def try_command(command: str, desk: Desk) -> None:
    """Try one command line of a page as far as it can be tried here."""
    words = command.split()
    match words:
        case ["make", *_]:
            assert command in MAKE_IS_RUN_BY, f"no test is named that runs {command!r}"
        case ["sudo", "sh", "install.sh", *flags]:
            desk.run(f"cd {ROOT} && sh install.sh {' '.join({*flags, '--dry-run'})}")
        case ["sudo", "systemctl", "restart" | "start", "dc-compute.target"]:
            desk.start_agent()
        case ["sudo", "systemctl", "stop", "dc-compute.target"]:
            desk.stop_agent()
        case [
            "dc-compute",
            "doctor",
            *_,
        ]:  # what it finds is this host's business: 1 tells that something fails
            desk.run(f"{command} || test $? -eq 1")
        case ["dc-compute", "config", "check"]:  # so is where its folders lie
            desk.run(f"{command} || test $? -eq 2")
        case ["dc-compute", "fsck", "||", "true"]:  # so is what it finds
            desk.run(command)
        case [
            "systemctl" | "journalctl",
            *asked,
        ]:  # it does not run here: what is named is what install.sh installs
            units = {file.name for file in (ROOT / "systemd").iterdir()}
            named = [
                word if "." in word else f"{word}.service" for word in asked if word.startswith("dc-compute")
            ]
            assert named
            assert set(named) <= units
        case ["dc-compute", name, *_] if name in RUN_ELSEWHERE:
            desk.run(f"{command} --help")
        case ["dc-compute", name, *_]:
            if name in ASKS_AN_AGENT and "--help" not in words and not desk.served:
                desk.start_agent()
            desk.run(command)
        case _:
            pytest.fail(f"nobody knows how to try {command!r}: teach this test, or keep it out of a block")


@pytest.mark.parametrize("page", pages_with_commands, ids=lambda page: page.path)
def test_the_commands_of_a_page_work_in_their_order(page: Document, desk: Desk) -> None:
    steps = list(steps_of(page))
    if not any(text.startswith("dc-compute init") for _, text in steps):
        desk.run("dc-compute init --certificate localhost")

    for kind, text in steps:
        if kind == "sh":
            try_command(text, desk)
        elif kind == "toml":
            (desk.folder / "home" / "policy.toml").write_text(text)


def test_following_the_first_order_leaves_an_order_that_is_known_and_verified(desk: Desk) -> None:
    seen: dict[str, str] = {}
    for kind, text in steps_of(document("docs/first-order.md")):
        if kind == "toml":
            (desk.folder / "home" / "policy.toml").write_text(text)
        elif text.startswith("dc-compute ") and "watch" not in text:
            if text.split()[1] in ASKS_AN_AGENT and not desk.served:
                desk.start_agent()
            seen[text.split()[1]] = desk.run(text)

    assert "is received at position 0" in seen["submit"]
    assert "e7aa231d-09a6-509c-9aa2-ea51b3c030fe" in seen["orders"]
    assert "verified" in seen["verify"]


def test_make_is_run_by_files_that_exist() -> None:
    missing = [file for file in MAKE_IS_RUN_BY.values() if not (ROOT / file).exists()]

    assert not missing


# ------------------------------------------------------------------ commands in a sentence


def complaint_about(words: list[str]) -> str | None:
    """What is wrong with a command that is named in a sentence; None when the command line knows it."""
    command: Any = typer.main.get_command(app)
    left = list(words)
    while hasattr(command, "commands") and left and not left[0].startswith("-"):
        names = left.pop(0).split("|")
        unknown = [name for name in names if name not in command.commands]
        if unknown:
            return f"no command {unknown[0]!r}"
        command = command.commands[names[0]]
    known = {
        option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)
    }
    strange = [
        word for word in left if word.startswith("--") and word.split("=")[0] not in known | {"--help"}
    ]
    return f"no option {strange[0]!r}" if strange else None


def test_a_command_or_option_that_is_none_is_found() -> None:
    assert complaint_about(["orders", "--json"]) is None
    assert complaint_about(["data", "seal|inspect"]) is None
    assert complaint_about(["surgeon"]) == "no command 'surgeon'"
    assert complaint_about(["peers", "ad"]) == "no command 'ad'"
    assert complaint_about(["peers", "add", "--rolle"]) == "no option '--rolle'"


@pytest.mark.parametrize("page", documents(), ids=lambda page: page.path)
def test_every_command_that_a_sentence_names_exists(page: Document) -> None:
    named = [words for words in page.spoken if words.startswith("dc-compute ")]

    wrong = {words: told for words in named if (told := complaint_about(words.split()[1:])) is not None}

    assert not wrong


@pytest.mark.parametrize("code", CLASSES)
def test_every_command_that_an_advice_names_exists(code: str) -> None:
    named = re.findall(r"`dc-compute ([^`]+)`", CLASSES[code].advice)

    wrong = {words: told for words in named if (told := complaint_about(words.split())) is not None}

    assert not wrong


# ------------------------------------------------------------------ the example of an algorithm


def test_the_algorithm_of_the_docs_trains_twice_and_predicts(tmp_path: Path) -> None:
    (source,) = [
        text for kind, text in FENCE.findall(document("docs/algorithms.md").text) if kind == "python"
    ]
    program = tmp_path / "algorithm.py"
    program.write_text(source)
    (tmp_path / "model").mkdir()
    for folder in ("train", "test"):
        (tmp_path / folder / "pred").mkdir(parents=True)

    def call(task: str) -> None:
        subprocess.run([sys.executable, "-I", program, "-V", tmp_path, "-T", task], check=True, timeout=60)

    (tmp_path / "train" / "first").write_text("1,1,low\n9,9,high\n")
    call("train")
    (tmp_path / "train" / "first").rename(tmp_path / "train" / "second")
    call("train")
    (tmp_path / "test" / "third").write_text("2,2\n8,8\n")
    call("predict")

    assert (tmp_path / "test" / "pred" / "third").read_text().split() == ["low", "high"]
    assert json.loads((tmp_path / "model" / "sums.json").read_text())["low"] == [2, [2.0, 2.0]]
