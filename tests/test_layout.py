"""The architecture, held by a test: DESIGN's rooms, one door per library, and what each room must not know.

Every rule is a function `rule(house)` that gives one sentence for each thing it finds wrong. It reads the
sources and never runs them. The end of this file holds each rule against a small house that breaks it.
A new library needs a line in DOORS, a new room one in RANKS: the moment to argue for it in ARCHITECTURE.md.
"""

import ast
import importlib
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# A room is the first part of a path below agent/. Imports point down a rank, never up, never sideways.
RANKS = {
    "__init__": 0, "errors": 0, "log": 0, "process": 0, "repeating": 0, "whole_files": 0,
    "domain": 1, "sd_notify": 1,
    "trust": 2,
    "ports": 3,
    "pipeline": 4,
    "api": 5, "worker": 5, "config": 5, "doctor": 5, "selftest": 5, "faults": 5, "fsck": 5,
    "wiring": 6, "devkit": 6,
    "bench": 7,
    "cli": 8,
}  # fmt: skip
# Files that are part of a room by name: cli_orders.py and __main__.py are the command line.
ROOM_OF = {"cli_*": "cli", "config_*": "config", "__main__": "cli", "wiring_*": "wiring", "log_*": "log"}

# In ports/, `X.py` is a port, `X_lib.py` (or X_lib_part.py) an adapter of it; adapters share these.
PLUMBING = {
    "alone",
    "cage",
    "cage_check",
    "cage_seen",
    "container_run",
    "http_dates",
    "https",
    "https_body",
    "image_archive",
    "image_context",
    "image_layers",
    "image_names",
    "image_parts",
    "image_tree",
    "image_writing",
    "ledger_schema",
    "ledger_schema_parts",
    "memory_events",
    "migrations",
    "process_times",
    "punctual",
    "relay",
    "run_end",
    "run_ended",
    "run_kept",
    "run_log",
    "run_stack",
    "run_watch",
    "user_namespace",
    "user_namespace_inner",
}
PLUMBING_OF = {
    "cage": "runtime",
    "container_run": "runtime",
    "run_ended": "runtime",
    "run_kept": "runtime",
    "run_watch": "runtime",
}  # what the adapters of one port share may speak of that port's values
# A port that is too long for one page has parts of its own, by the port they belong to.
PART_OF_PORT = {
    "ledger_attempts": "ledger",
    "ledger_cancellations": "ledger",
    "ledger_audit": "ledger",
    "ledger_bells": "ledger",
    "ledger_images": "ledger",
    "ledger_keeping": "ledger",
    "ledger_live": "ledger",
    "ledger_measures": "ledger",
    "ledger_outbox": "ledger",
    "ledger_page": "ledger",
    "ledger_restores": "ledger",
}
ADAPTERS_ARE_NAMED_BY = {
    "agent/bench/bare.py",  # no adapter: it unpacks a root as one does, and gives a container the same ids
    "agent/wiring.py",
    "agent/wiring_state.py",
    "agent/wiring_trust.py",
    "agent/wiring_values.py",
}

LEDGER_ON_SQL = [
    "agent/ports/ledger_sqlalchemy*.py",
    "agent/ports/ledger_schema*.py",
    "agent/ports/migrations/*",
]

# One door per library (paths as fnmatch patterns). A library that stands nowhere here is refused.
DOORS = {
    "starlette": ["agent/api/*", "agent/devkit/*"],
    "uvicorn": ["agent/api/*", "agent/devkit/*"],
    "h11": ["agent/api/serving.py"],  # uvicorn's own parser: what it cannot read gets an answer with a code
    "cryptography": ["agent/trust/*"],
    "http_message_signatures": ["agent/trust/*"],
    "podman": ["agent/ports/runtime_podman*.py"],
    "huey": ["agent/ports/broker_huey*.py", "agent/worker.py"],
    "sqlalchemy": LEDGER_ON_SQL,
    "alembic": LEDGER_ON_SQL,
    "httpx_sse": ["agent/ports/client_https.py"],
    "httpx": ["agent/ports/*_*.py", "agent/ports/https.py", "agent/devkit/*"],
    "typer": ["agent/cli*"],
    "rich": ["agent/cli*", "agent/devkit/demo/*"],
    "structlog": ["agent/log.py"],
    "prometheus_client": ["agent/api/*"],
    "jinja2": ["agent/api/*"],
    "platformdirs": ["agent/config.py"],
    "msgspec": ["agent/*"],
    "numpy": ["agent/devkit/*", "agent/bench/*"],
    "scipy": ["agent/devkit/*"],
    "sklearn": ["agent/devkit/*", "agent/bench/*"],
}  # fmt: skip

# What a room must not touch: modules, and calls by their last name.
OUTSIDE = {
    "socket",
    "socketserver",
    "ssl",
    "http.client",
    "http.server",
    "urllib.request",
    "asyncio",
    "select",
}
DISK = {"os", "pathlib", "shutil", "tempfile", "fileinput", "glob", "subprocess", "sqlite3", "mmap"}
CLOCK = {"time", "sched"}
CLOCK_CALLS = {"now", "utcnow", "today"}
KEY_FILES = "agent/trust/keys.py"  # the one file of trust/ that reads and writes files: keys

# The two outermost doors may catch everything: they log it and go on.
MAY_CATCH_EVERYTHING = {
    "agent/worker.py",
    "agent/api/problems.py",
    "agent/ports/ledger_sqlalchemy_group.py",  # who writes for others: what ends one of them is raised to that one
}

MAX_FUNCTION_LINES = 50  # in pipeline/: a page
MAX_MODULE_LINES = 400
LONG_BY_NATURE = {
    "agent/errors.py": 600,  # one tree, one class after the other
    "agent/ports/user_namespace_inner.py": 480,  # a program of one file, which can import nothing of ours
}


# ------------------------------------------------------------------ reading the house


@dataclass(frozen=True)
class Source:
    """One file of agent/: `path` is relative to the root and written with slashes."""

    path: str
    tree: ast.Module
    line_count: int

    @property
    def room(self) -> str:
        first = self.path.split("/")[1].removesuffix(".py")
        return next((room for pattern, room in ROOM_OF.items() if fnmatchcase(first, pattern)), first)

    @property
    def package(self) -> list[str]:
        """The parts of the package that relative imports start from."""
        return self.path.split("/")[:-1]

    def imports(self) -> Iterator[tuple[int, str]]:
        """Every import as (line, dotted name), lazy and relative ones too; `from a import b` gives a.b."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from ((node.lineno, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                above = self.package[: len(self.package) - node.level + 1] if node.level else []
                module = ".".join([*above, *([node.module] if node.module else [])])
                yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)
            elif isinstance(node, ast.Call) and called_name(node) in {"import_module", "__import__"}:
                for argument in node.args[:1]:
                    if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                        yield node.lineno, argument.value


Rule = Callable[[list[Source]], list[str]]


def called_name(call: ast.Call) -> str:
    """The last name of what is called: `datetime.now()` gives now, `open()` gives open."""
    match call.func:
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return name
        case _:
            return ""


def read_house(root: Path) -> list[Source]:
    """Every Python file of agent/ below `root`, read once."""
    house = []
    for file in sorted((root / "agent").rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        path = file.relative_to(root).as_posix()
        house.append(Source(path, ast.parse(text, filename=path), text.count("\n")))
    return house


def is_module(name: str, modules: set[str]) -> bool:
    """Whether a dotted import names one of these modules or something inside one."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def room_of_import(name: str) -> str:
    """The room that `agent.x.y` lies in; `agent` itself and names in it are `__init__`."""
    parts = name.split(".")
    first = parts[1] if len(parts) > 1 else "__init__"
    first = next((room for pattern, room in ROOM_OF.items() if fnmatchcase(first, pattern)), first)
    return first if first in RANKS or not first.startswith("__") else "__init__"


def part_of_ports(name: str) -> str:
    """The module of ports/ that a dotted import or a path names: `agent.ports.ledger.Ledger` gives ledger."""
    parts = name.split(".")
    return parts[2] if len(parts) > 2 and parts[:2] == ["agent", "ports"] else ""


def adapter_of(module: str) -> str:
    """The adapter that a module of ports/ belongs to: runtime_podman_body gives runtime_podman."""
    if module in PLUMBING or module in PART_OF_PORT or module.startswith("_") or "_" not in module:
        return ""
    return "_".join(module.split("_")[:2])


def module_of(source: Source) -> str:
    """The module of ports/ that a file is, or lies in."""
    return source.path.split("/")[2].removesuffix(".py")


# ------------------------------------------------------------------ the rules


def rule_every_room_is_known(house: list[Source]) -> list[str]:
    return [
        f"{source.path}: the design knows no room `{source.room}`: give it a rank in tests/test_layout.py"
        for source in house
        if source.room not in RANKS
    ]


def rule_imports_point_down(house: list[Source]) -> list[str]:
    wrong = []
    for source in house:
        for line, name in source.imports():
            if not is_module(name, {"agent"}):
                continue
            there = room_of_import(name)
            if there == source.room or there not in RANKS or source.room not in RANKS:
                continue
            if RANKS[there] >= RANKS[source.room] and there != "__init__":
                wrong.append(
                    f"{source.path}:{line}: {source.room} (rank {RANKS[source.room]}) imports {name}, "
                    f"of {there} (rank {RANKS[there]}): imports point down a rank"
                )
    return wrong


def rule_only_wiring_names_adapters(house: list[Source]) -> list[str]:
    wrong = []
    for source in house:
        if source.path in ADAPTERS_ARE_NAMED_BY or source.room == "ports":
            continue
        for line, name in source.imports():
            module = part_of_ports(name)
            if adapter_of(module) or module in PLUMBING:
                wrong.append(f"{source.path}:{line}: imports {name}: only wiring.py names an adapter")
    return wrong


def rule_adapters_know_only_their_port(house: list[Source]) -> list[str]:
    """A port imports ports; plumbing plumbing and the port it serves; an adapter its port, its parts, plumbing."""
    wrong = []
    for source in house:
        if source.room != "ports" or source.path == "agent/ports/__init__.py":
            continue
        here = module_of(source)
        own = adapter_of(here)
        for line, name in source.imports():
            there = part_of_ports(name)
            if not there or there == here:
                continue
            if own:
                port = own.split("_")[0]
                is_right = (
                    there in PLUMBING or port in {there, PART_OF_PORT.get(there)} or adapter_of(there) == own
                )
                may = f"its port {own.split('_')[0]}.py, its own parts and plumbing"
            elif here in PLUMBING:
                is_right, may = there in PLUMBING or there == PLUMBING_OF.get(here), "plumbing"
            else:
                is_right, may = there not in PLUMBING and not adapter_of(there), "other ports"
            if not is_right:
                wrong.append(f"{source.path}:{line}: imports {name}: of ports/ it may import only {may}")
    return wrong


def rule_one_door_per_library(house: list[Source]) -> list[str]:
    wrong = []
    for source in house:
        for line, name in source.imports():
            library = name.split(".")[0]
            if library == "agent" or library in sys.stdlib_module_names:
                continue
            doors = DOORS.get(library)
            if doors is None:
                wrong.append(
                    f"{source.path}:{line}: imports {library}, which has no door in tests/test_layout.py"
                )
            elif not any(fnmatchcase(source.path, door) for door in doors):
                wrong.append(f"{source.path}:{line}: imports {library}, whose door is {' and '.join(doors)}")
    return wrong


def rule_domain_has_no_world_and_no_clock(house: list[Source]) -> list[str]:
    wrong = []
    for source in house:
        if source.room != "domain":
            continue
        for line, name in source.imports():
            if is_module(name, OUTSIDE | DISK | CLOCK):
                wrong.append(f"{source.path}:{line}: imports {name}: domain/ has no I/O and no clock")
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Call) and called_name(node) in {*CLOCK_CALLS, "open"}:
                wrong.append(
                    f"{source.path}:{node.lineno}: calls {called_name(node)}(): pass `now` or bytes in"
                )
    return wrong


def rule_trust_has_no_network_and_only_key_files(house: list[Source]) -> list[str]:
    wrong = []
    for source in house:
        if source.room != "trust":
            continue
        for line, name in source.imports():
            if is_module(name, OUTSIDE | {"sqlite3", "subprocess", "httpx"}):
                wrong.append(f"{source.path}:{line}: imports {name}: trust/ reaches nobody")
            elif is_module(name, DISK) and source.path != KEY_FILES:
                wrong.append(f"{source.path}:{line}: imports {name}: only {KEY_FILES} touches files")
        for node in ast.walk(source.tree):
            match node:
                case ast.Call(func=ast.Name(id="open"), lineno=line) if source.path != KEY_FILES:
                    wrong.append(f"{source.path}:{line}: calls open(): only {KEY_FILES} touches files")
    return wrong


def rule_a_judge_of_the_doctor_looks_at_nothing(house: list[Source]) -> list[str]:
    """In agent/doctor/, what reads the host is called look or look_*; the rest takes facts and gives lines."""
    wrong = []
    for source in house:
        if source.room != "doctor" or fnmatchcase(source.path, "agent/doctor/look*.py"):
            continue
        for line, name in source.imports():
            if is_module(name, OUTSIDE | DISK | CLOCK) or name.startswith("agent.doctor.look"):
                wrong.append(f"{source.path}:{line}: imports {name}: a judge is given facts")
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Call) and called_name(node) in {*CLOCK_CALLS, "open"}:
                wrong.append(
                    f"{source.path}:{node.lineno}: calls {called_name(node)}(): a judge is given facts"
                )
    return wrong


def rule_only_outermost_doors_catch_everything(house: list[Source]) -> list[str]:
    wrong = []
    for source in house:
        if source.path in MAY_CATCH_EVERYTHING:
            continue
        for node in ast.walk(source.tree):
            caught: list[ast.expr] = []
            if isinstance(node, ast.ExceptHandler):
                caught = (
                    node.type.elts
                    if isinstance(node.type, ast.Tuple)
                    else [node.type or ast.Name("BaseException")]
                )
            elif isinstance(node, ast.Call) and called_name(node) == "suppress":
                caught = node.args
            if any(
                isinstance(kind, ast.Name) and kind.id in {"Exception", "BaseException"} for kind in caught
            ):
                line = getattr(node, "lineno", 0)
                wrong.append(
                    f"{source.path}:{line}: catches everything: name what can go wrong, or let it pass"
                )
    return wrong


def rule_a_step_fits_on_a_page(house: list[Source]) -> list[str]:
    wrong = []
    for source in house:
        if source.room != "pipeline":
            continue
        for node in ast.walk(source.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    where = f"{source.path}:{node.lineno}"
                    wrong.append(f"{where}: {node.name} has {lines} lines, over {MAX_FUNCTION_LINES}")
    return wrong


def rule_a_module_is_short(house: list[Source]) -> list[str]:
    return [
        f"{source.path}: {source.line_count} lines, over {most}: two things live here"
        for source in house
        if source.line_count > (most := LONG_BY_NATURE.get(str(source.path), MAX_MODULE_LINES))
    ]


RULES: list[Rule] = [rule for name, rule in sorted(globals().items()) if name.startswith("rule_")]


# ------------------------------------------------------------------ the house as it stands


HOUSE = read_house(ROOT)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__.removeprefix("rule_"))
def test_layout(rule: Rule) -> None:
    wrong = rule(HOUSE)

    assert not wrong, "\n" + "\n".join(wrong)


def error_codes() -> dict[str, list[str]]:
    """Each code of agent/errors.py with the classes that carry it as their own."""
    errors = importlib.import_module("agent.errors")
    codes: dict[str, list[str]] = {}
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, Exception) and kind.__module__ == errors.__name__:
            codes.setdefault(vars(kind).get("code", f"(none: {name})"), []).append(name)
    return codes


def test_error_codes_are_unique() -> None:
    wrong = [f"{code}: {', '.join(names)}" for code, names in error_codes().items() if len(names) > 1]

    assert not wrong, "one code, several errors:\n" + "\n".join(wrong)


def test_every_error_has_a_code_of_its_own() -> None:
    wrong = [code for code in error_codes() if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", code)]

    assert not wrong, "\n".join(wrong)


def test_every_error_code_has_its_section_in_the_docs() -> None:
    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    headings = set(re.findall(r"^#{2,} +`?([a-z0-9-]+)\b", page, flags=re.MULTILINE))

    missing = sorted(set(error_codes()) - headings)

    assert not missing, f"docs/errors.md lacks a heading that begins with: {', '.join(missing)}"


def test_the_docs_describe_no_error_that_does_not_exist() -> None:
    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    described = set(re.findall(r"^#{2,} +`([a-z0-9-]+)`", page, flags=re.MULTILINE))

    left_over = sorted(described - set(error_codes()))

    assert not left_over, f"docs/errors.md describes codes that no error has: {', '.join(left_over)}"


# ------------------------------------------------------------------ a house that breaks each rule


BREAKS: dict[Rule, list[tuple[str, str]]] = {
    rule_every_room_is_known: [
        ("agent/helpers.py", ""),
    ],
    rule_imports_point_down: [
        ("agent/domain/a.py", "from agent.trust import keys"),
        ("agent/domain/a.py", "from agent import ports"),
        ("agent/domain/a.py", "from ..pipeline.run import run"),
        ("agent/domain/a.py", "def f() -> None:\n    import agent.api.routes"),
        ("agent/pipeline/a.py", "import importlib\nimportlib.import_module('agent.wiring')"),
        ("agent/api/a.py", "from agent.config import Settings"),
        ("agent/log.py", "from agent import errors"),
    ],
    rule_only_wiring_names_adapters: [
        ("agent/cli.py", "from agent.ports.ledger_sqlalchemy import SqlLedger"),
        ("agent/devkit/a.py", "from agent.ports import runtime_podman"),
        ("agent/worker.py", "import agent.ports.https"),
    ],
    rule_adapters_know_only_their_port: [
        ("agent/ports/ledger_sqlalchemy.py", "from agent.ports import broker"),
        ("agent/ports/peers_httpx.py", "from .storage_httpx import X"),
        ("agent/ports/ledger.py", "from agent.ports.ledger_sqlalchemy import X"),
        ("agent/ports/https.py", "from agent.ports.peers import Peers"),
    ],
    rule_one_door_per_library: [
        ("agent/pipeline/a.py", "import httpx"),
        ("agent/ports/peers.py", "import httpx"),
        ("agent/api/a.py", "from cryptography.hazmat import x"),
        ("agent/api/a.py", "import flask"),
    ],
    rule_domain_has_no_world_and_no_clock: [
        ("agent/domain/a.py", "import os.path"),
        ("agent/domain/a.py", "from datetime import datetime\ndatetime.now()"),
        ("agent/domain/a.py", "from time import monotonic"),
        ("agent/domain/a.py", "open('x')"),
    ],
    rule_trust_has_no_network_and_only_key_files: [
        ("agent/trust/a.py", "import socket"),
        ("agent/trust/a.py", "from urllib.request import urlopen"),
        ("agent/trust/a.py", "from pathlib import Path"),
        ("agent/trust/a.py", "open('x')"),
        ("agent/trust/keys.py", "import sqlite3"),
    ],
    rule_a_judge_of_the_doctor_looks_at_nothing: [
        ("agent/doctor/a.py", "import os"),
        ("agent/doctor/a.py", "from agent.doctor.look_disk import x"),
        ("agent/doctor/a.py", "open('x')"),
    ],
    rule_only_outermost_doors_catch_everything: [
        ("agent/cli.py", "try:\n    f()\nexcept:\n    g()"),
        ("agent/cli.py", "try:\n    f()\nexcept (OSError, Exception):\n    g()"),
        ("agent/cli.py", "with suppress(Exception):\n    g()"),
    ],
    rule_a_step_fits_on_a_page: [
        ("agent/pipeline/a.py", "def f() -> None:\n" + "    f()\n" * 50),
    ],
    rule_a_module_is_short: [
        ("agent/cli.py", "x = 1\n" * 401),
    ],
}


@pytest.mark.parametrize(("rule", "path", "text"), [(rule, *row) for rule in BREAKS for row in BREAKS[rule]])
def test_a_house_that_breaks_a_rule_is_told_so(rule: Rule, path: str, text: str, tmp_path: Path) -> None:
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.write_text(text)

    wrong = rule(read_house(tmp_path))

    assert len(wrong) == 1
    assert path in wrong[0]


def test_every_rule_has_a_house_that_breaks_it() -> None:
    assert set(BREAKS) == set(RULES)


ALLOWED = {
    "agent/__init__.py": "__version__ = '1'",
    "agent/domain/a.py": "from agent import errors\nfrom . import b\nimport hashlib, msgspec",
    "agent/trust/keys.py": "import os\nfrom pathlib import Path\nfrom cryptography import x\nopen('key')",
    "agent/ports/runtime_podman.py": "import podman\nfrom . import runtime_podman_body, https, runtime",
    "agent/ports/ledger.py": "from agent.ports.broker import Broker\nfrom agent.domain import jobs",
    "agent/ports/peers_httpx.py": "import httpx\nfrom . import https, peers\nimport agent.trust.x",
    "agent/doctor/a.py": "import re\nfrom agent.doctor.lines import Check",
    "agent/doctor/look_a.py": "import os\nfrom agent.doctor.a import Facts\nopen('x')",
    "agent/wiring.py": "from agent.ports.ledger_sqlalchemy import X\nfrom agent.config import Settings",
    "agent/cli_orders.py": "import rich\nfrom agent import __version__, wiring\nfrom agent.cli import app",
    "agent/__main__.py": "from agent.cli import main",
    "agent/worker.py": "import huey\ntry:\n    f()\nexcept Exception:\n    g()",
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__.removeprefix("rule_"))
def test_a_house_in_order_is_let_alone(rule: Rule, tmp_path: Path) -> None:
    for path, text in ALLOWED.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    assert rule(read_house(tmp_path)) == []
