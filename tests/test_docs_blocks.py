"""Every command block of the documents has a mark that says which test runs it; no other block holds commands."""

import pytest

from tests.docs_blocks import MARKS, SHELLS, TYPED, Block, blocks, blocks_of, script
from tests.test_docs import ROOT, Document, documents

every_block = pytest.mark.parametrize(
    "block", [block for page in documents() for block in blocks_of(page)], ids=lambda block: block.where
)


@every_block
def test_a_block_with_commands_has_a_mark_of_a_known_kind_and_no_other_block_holds_commands(
    block: Block,
) -> None:
    if block.mark is not None:
        assert block.mark in MARKS
        assert block.kind == "sh"
    else:
        assert block.kind not in SHELLS
        assert not TYPED.search(block.text) or block.kind in {"toml", "python"}


def test_a_block_is_found_with_its_mark_its_kind_and_its_place() -> None:
    page = Document(
        "a.md", "one\n\n<!-- run: booted -->\n```sh\ntrue\n```\n\n```sh\nls\n```\n```text\nx\n```\n"
    )

    assert [(block.where, block.kind, block.mark, block.text) for block in blocks_of(page)] == [
        ("a.md:3", "sh", "booted", "true\n"),
        ("a.md:8", "sh", "here", "ls\n"),
        ("a.md:11", "text", None, "x\n"),
    ]


@pytest.mark.parametrize("mark", MARKS)
def test_every_mark_is_used_and_names_where_its_test_lies(mark: str) -> None:
    assert list(blocks(mark))
    assert (ROOT / MARKS[mark]).exists()


@pytest.mark.parametrize("mark", [mark for mark, place in MARKS.items() if place.endswith(".py")])
def test_the_test_of_a_mark_reads_its_blocks(mark: str) -> None:
    assert "docs_blocks" in (ROOT / MARKS[mark]).read_text("utf-8")


def test_blocks_of_a_mark_are_a_script() -> None:
    text = script("booted")

    assert text.startswith("set -eu\n")
    assert "stat -fc %T /sys/fs/cgroup" in text
