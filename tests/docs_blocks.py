"""The command blocks of the documents, each with the mark that says which test runs it.

The mark of a block is a comment on the line above its fence, `<!-- run: booted -->`. A fence `sh` without one is run here, by
tests/test_docs_commands.py. No other fence holds commands, and tests/test_docs_blocks.py holds that.

    python -m tests.docs_blocks booted      every block of that mark, as one shell script, for the test that runs it
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from tests.test_docs import Document, documents

# Each mark, and where the test lies that runs the blocks which bear it.
MARKS = {
    "here": "tests/test_docs_commands.py",  # an agent of the reader's own, without privileges
    "town": "tests/host/slow/test_start.py",  # among the hospitals of `make town`
    "author": "tests/host/slow/test_author.py",  # an image made from the page's own program, and tried
    "booted": "tests/host/vm/test_systems.py",  # an installed Debian machine under systemd, as root
    "cgroup v1": "tests/host/vm/test_cgroup_v1.py",  # as root, on a machine that has them
}
SHELLS = {"sh", "console", "bash", "shell"}
# How a line begins that somebody types. Other fences show what is printed or stands in a file.
TYPED = re.compile(
    r"^(\$ |# |sudo |dc-compute |systemctl |make |python |podman |apt-get |mkdir |\.venv/)", re.MULTILINE
)

_BLOCK = re.compile(
    r"^(?:<!-- run: (?P<mark>[a-z0-9 ]+) -->\n)?```(?P<kind>\S*)[^\n]*\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """One fenced block: where it stands, its kind, its text, and its mark when it holds commands."""

    page: str
    line: int
    kind: str
    text: str
    mark: str | None

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: Document) -> Iterator[Block]:
    """Every fenced block of a page, in order."""
    for found in _BLOCK.finditer(page.text):
        kind, mark = found["kind"], found["mark"]
        if mark is None and kind == "sh":
            mark = "here"
        yield Block(page.path, page.text.count("\n", 0, found.start()) + 1, kind, found["text"], mark)


def blocks(mark: str) -> Iterator[Block]:
    """Every block of this mark, page by page."""
    return (block for page in documents() for block in blocks_of(page) if block.mark == mark)


def script(mark: str) -> str:
    """The blocks of this mark as one shell script that ends at the first command that fails."""
    parts = [f"echo '# {block.where}'\n{block.text}" for block in blocks(mark)]
    return "set -eu\n" + "\n".join(parts)


if __name__ == "__main__":
    sys.stdout.write(script(sys.argv[1]))
