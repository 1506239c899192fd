"""The documents, held: their facts are the code's, what they name exists, their links lead somewhere.

What a document tells its reader to type is tried in `test_docs_commands.py`.
"""

import ast
import inspect
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from msgspec.structs import fields

from agent import errors
from agent.config import SECTIONS
from agent.domain.jobs import FINAL, TRANSITIONS, JobState
from agent.errors import AgentError, JobError, OrderError, OutsideError, TrustError
from agent.ports.ledger import Ledger
from tests.test_layout import RANKS

ROOT = Path(__file__).resolve().parent.parent
FENCE = re.compile(r"^```(?P<kind>\S*)[^\n]*\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Document:
    """One page: `path` is relative to the root."""

    path: str
    text: str

    @property
    def prose(self) -> str:
        """The page without its code blocks."""
        return FENCE.sub("", self.text)

    @property
    def anchors(self) -> set[str]:
        """Where a link into the page may point: its headings as GitHub writes them."""
        headings = re.findall(r"^#+ +(.+)$", self.prose, flags=re.MULTILINE)
        return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}

    @property
    def links(self) -> list[str]:
        """Every target of a link that leads to a file of ours."""
        targets: list[str] = re.findall(r"\]\(([^)\s]+)\)", self.prose)
        return [target for target in targets if not target.startswith("https://")]

    @property
    def spoken(self) -> list[str]:
        """Everything that stands between backticks in the prose."""
        return re.findall(r"`([^`\n]+)`", self.prose)

    def section(self, heading: str) -> str:
        """The text below this heading, up to the next one of its rank or a higher one."""
        rank = len(heading) - len(heading.lstrip("#"))
        _, _, after = self.text.partition(f"\n{heading}\n")
        assert after, f"{self.path} has no heading {heading!r}"
        return re.split(rf"^#{{1,{rank}}} ", after, maxsplit=1, flags=re.MULTILINE)[0]


def rows_of(table: str) -> list[list[str]]:
    """The cells of a Markdown table's rows, without its head."""
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


@cache
def documents() -> tuple[Document, ...]:
    """Every Markdown page of the repository."""
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    return tuple(
        Document(page.relative_to(ROOT).as_posix(), page.read_text("utf-8")) for page in sorted(pages)
    )


def document(path: str) -> Document:
    return next(page for page in documents() if page.path == path)


every_document = pytest.mark.parametrize("page", documents(), ids=lambda page: page.path)


# ------------------------------------------------------------------ docs/errors.md

FAULTS: dict[str, type[AgentError]] = {
    "sender": OrderError,
    "trust": TrustError,
    "job": JobError,
    "outside": OutsideError,
}

CLASSES = {
    kind.code: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, AgentError)
}


def told_of(code: str) -> tuple[str, int, bool]:
    """(fault, status, retried) as the page tells them of a code."""
    section = document("docs/errors.md").section(f"## `{code}`")
    facts = re.match(
        r"\nFault: (\w+) · HTTP (\d{3}) · retried: (yes|no)\n\nCause: .+\nMend: .+", section, re.DOTALL
    )
    assert facts, f"the section of {code} lacks its line of facts, its cause or its mend"
    return facts[1], int(facts[2]), facts[3] == "yes"


@pytest.mark.parametrize("code", CLASSES)
def test_the_page_of_errors_tells_the_facts_of_the_class(code: str) -> None:
    kind = CLASSES[code]
    fault = next((name for name, family in FAULTS.items() if issubclass(kind, family)), "agent")

    told = told_of(code)

    assert told == (fault, kind.status, kind.is_retried)


def test_the_page_of_errors_keeps_the_order_of_the_source() -> None:
    headings = re.findall(r"^## `([a-z0-9-]+)`$", document("docs/errors.md").text, flags=re.MULTILINE)

    assert headings == list(CLASSES)


def test_the_index_of_errors_names_every_code_once_in_its_family() -> None:
    index = document("docs/errors.md").text.partition("\n## ")[0]
    expected = [
        [code for code, kind in CLASSES.items() if issubclass(kind, family)] for family in FAULTS.values()
    ]

    listed = [re.findall(r"\[([a-z0-9-]+)\]\(#\1\)", row[2]) for row in rows_of(index)]

    assert listed == [*expected, ["agent-error"]]


# ------------------------------------------------------------------ ARCHITECTURE.md


def test_the_drawing_of_states_is_the_table_of_moves() -> None:
    (block,) = FENCE.findall(document("ARCHITECTURE.md").section("## States of a job"))
    drawn = re.findall(r"^ +([A-Z]+) --> ([A-Z]+): (\w+)$", block[1], flags=re.MULTILINE)
    ends = re.findall(r"^ +([A-Z]+) --> \[\*\]$", block[1], flags=re.MULTILINE)

    moves = {(before.name, after.name, event.value) for (before, event), after in TRANSITIONS.items()}

    assert block[0] == "mermaid"
    assert len(drawn) == len(moves)
    assert set(drawn) == moves
    assert {JobState[end] for end in ends} == FINAL


def test_the_table_of_rooms_is_the_one_that_the_layout_holds() -> None:
    rows = rows_of(document("ARCHITECTURE.md").section("## Rooms and ranks"))

    told = {re.sub(r"`agent/(\w+)(?:\.py|/)`", r"\1", row[1]): int(row[0]) for row in rows}

    assert told == {room: rank for room, rank in RANKS.items() if room != "__init__"}


def test_every_dependency_has_its_line_and_no_line_is_left_over() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    groups = project["dependency-groups"].values()
    wanted = [*project["project"]["dependencies"], *(line for group in groups for line in group)]
    names = {re.split(r"[<>=!~; \[]", line)[0] for line in wanted}

    told = [row[0].strip("`") for row in rows_of(document("ARCHITECTURE.md").section("## Dependencies"))]

    assert len(told) == len(set(told))
    assert set(told) == names


def test_every_transaction_of_the_architecture_is_a_method_of_the_ledger() -> None:
    section = document("ARCHITECTURE.md").section("## The ledger is the truth, a queue is a bell")

    told = {row[0].split("`")[1] for row in rows_of(section)}

    assert told
    assert told <= {name for name, _ in inspect.getmembers(Ledger, inspect.isfunction)}


def test_a_decision_has_context_options_choice_and_price() -> None:
    decisions = document("ARCHITECTURE.md").section("## Decisions").split("\n### ")[1:]

    told = {text.splitlines()[0]: re.findall(r"^\*\*(\w+)\.\*\*", text, re.MULTILINE) for text in decisions}
    long = [text.splitlines()[0] for text in decisions if len(text.strip().splitlines()) > 14]

    assert told
    assert {tuple(parts) for parts in told.values()} == {("Context", "Options", "Choice", "Price")}
    assert not long


# ------------------------------------------------------------------ what any page names


@cache
def test_names() -> frozenset[str]:
    """Every test function below tests/."""
    found: set[str] = set()
    for file in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                found.add(node.name)
    return frozenset(found)


test_names.__test__ = False  # type: ignore[attr-defined]  # not one itself


@every_document
def test_every_file_that_a_page_names_exists(page: Document) -> None:
    named = {
        name for name in page.spoken if re.match(r"(agent|tests|docs|seccomp|systemd|\.ci)/[\w./*-]*$", name)
    }

    missing = sorted(name for name in named if not list(ROOT.glob(name.rstrip("/"))))

    assert not missing


@every_document
def test_every_test_that_a_page_names_exists(page: Document) -> None:
    named = {name for name in page.spoken if re.fullmatch(r"test(_[a-z0-9]+){4,}", name)}

    missing = sorted(named - test_names())

    assert not missing


@every_document
def test_every_setting_that_a_page_names_exists(page: Document) -> None:
    named = [match.groups() for name in page.spoken if (match := re.fullmatch(r"\[(\w+)\] (\w+)", name))]

    missing = [
        f"[{section}] {key}"
        for section, key in named
        if section not in SECTIONS or key not in {field.name for field in fields(SECTIONS[section])}
    ]

    assert not missing


@every_document
def test_every_make_target_that_a_page_names_exists(page: Document) -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    named = {words[5:].split()[0] for words in page.spoken if re.match(r"make [a-z]", words)}

    missing = sorted(name for name in named if not re.search(rf"^{name}:", makefile, flags=re.MULTILINE))

    assert not missing


@every_document
def test_every_link_leads_to_a_file_and_its_anchor(page: Document) -> None:
    broken = [link for link in page.links if not leads_somewhere(page, link)]

    assert not broken


def leads_somewhere(page: Document, link: str) -> bool:
    name, _, anchor = link.partition("#")
    target = (ROOT / page.path).parent / name if name else ROOT / page.path
    if not target.exists():
        return False
    return not anchor or anchor in document(target.resolve().relative_to(ROOT).as_posix()).anchors


def test_every_page_below_docs_is_named_in_the_index() -> None:
    index = document("docs/README.md")
    pages = {page.path.removeprefix("docs/") for page in documents() if page.path.startswith("docs/")}

    assert pages - {link.partition("#")[0] for link in index.links} == {"README.md"}


@pytest.mark.parametrize("file", sorted((ROOT / "agent").rglob("*.py")), ids=lambda file: file.name)
def test_every_page_that_a_docstring_gives_as_its_source_has_that_section(file: Path) -> None:
    text = " ".join(file.read_text("utf-8").split())
    named = re.findall(
        r'((?:docs/[\w/-]+|ARCHITECTURE|SECURITY)\.md)(?:, "([^"]+)")?(?: and "([^"]+)")?', text
    )

    missing = [
        f"{path}: {section}"
        for path, *sections in named
        for section in sections
        if not (ROOT / path).exists() or section.lower() not in document(path).text.lower()
    ]

    assert not missing


# ------------------------------------------------------------------ what no file names

SKIPPED = {
    ".venv",
    ".git",
    ".hypothesis",
    ".mypy_cache",
    ".pytest_cache",
    ".ruff_cache",
    "__pycache__",
    "build",
    "dist",
}

# In pieces, so that this file does not name them either.
REGISTRIES = [
    "pypi" + ".org", "pythonhosted" + ".org", "debian" + ".org", "ubuntu" + ".com", "registry.npm" + "js",
    "docker" + ".io", "ghcr" + ".io", "quay" + ".io", "crates" + ".io", "anaconda" + ".org",
]  # fmt: skip
OF_A_DEVELOPER = re.compile(r"(?<![\w.}-])/(?:work|Users)/|(?<![\w.}-])/(?:home|root)/(?!\.\.\.)\w")


def sources() -> Iterator[tuple[str, str]]:
    """(path, text) of every text file of the repository."""
    for path in sorted(ROOT.rglob("*")):
        below = path.relative_to(ROOT)
        if SKIPPED.intersection(below.parts) or not path.is_file() or path.is_symlink():
            continue
        try:
            yield below.as_posix(), path.read_text("utf-8")
        except UnicodeDecodeError:
            continue


def test_no_file_names_a_package_registry() -> None:
    found = [f"{path}: {host}" for path, text in sources() for host in REGISTRIES if host in text]

    assert not found


def test_no_file_names_a_path_of_a_developers_machine() -> None:
    found = [f"{path}: {match[0]}" for path, text in sources() for match in OF_A_DEVELOPER.finditer(text)]

    assert not found
