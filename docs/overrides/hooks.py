"""What mkdocs does with our pages: those of the root become pages of the site, and each test that a page names can be read.

Links keep the form that leads somewhere in the repository; they are turned here. `evidence.md` is made of the tests themselves.
"""

import ast
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    "README.md": "overview.md",
    "ARCHITECTURE.md": "architecture.md",
    "SECURITY.md": "security.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "LICENSE": "license.md",
}
EVIDENCE = "evidence.md"
NAMED = re.compile(r"`(test(?:_[a-z0-9]+){4,})`")

_LINK = re.compile(r"\]\((?P<target>[^)\s#:]+)(?P<anchor>#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """The pages of the root, and the page of tests, beside those of docs/."""
    for source, target in PAGES.items():
        text = (ROOT / source).read_text("utf-8")
        content = f"# Licence\n\n```text\n{text}```\n" if source == "LICENSE" else text
        files.append(File.generated(config, target, content=content))
    files.append(File.generated(config, EVIDENCE, content=evidence(texts())))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The page with its links turned to the site's pages, and the tests that it names turned to links."""
    here = page.file.src_uri
    up = "../" * here.count("/")
    turned = _LINK.sub(lambda link: f"]({turn(link['target'], here)}{link['anchor'] or ''})", markdown)
    if here == EVIDENCE:
        return turned
    known = tests()
    return NAMED.sub(
        lambda name: f"[{name[0]}]({up}{EVIDENCE}#{name[1]})" if name[1] in known else name[0], turned
    )


def turn(target: str, here: str) -> str:
    """Where a link of the page `here` leads on the site, from where it leads in the repository."""
    is_of_root = here in PAGES.values()
    up = "../" * here.count("/")
    plain = target.removeprefix("../" * (here.count("/") + 1)) if not is_of_root else target
    if plain in PAGES and (is_of_root or plain != target):
        return up + PAGES[plain]
    return target.removeprefix("docs/") if is_of_root else target


def texts() -> list[str]:
    """Every page that may name a test."""
    pages = [*(ROOT / "docs").rglob("*.md"), *(ROOT / name for name in PAGES if name.endswith(".md"))]
    return [page.read_text("utf-8") for page in sorted(pages)]


def tests() -> dict[str, tuple[str, str]]:
    """Test by name: its file, and its source."""
    if not _KNOWN:
        for file in sorted((ROOT / "tests").rglob("test_*.py")):
            text = file.read_text("utf-8")
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                    source = ast.get_source_segment(text, node) or ""
                    _KNOWN.setdefault(node.name, (file.relative_to(ROOT).as_posix(), source))
    return _KNOWN


_KNOWN: dict[str, tuple[str, str]] = {}


def evidence(pages: list[str]) -> str:
    """The page with every test that the others name: its file and its source."""
    named = sorted({name for text in pages for name in NAMED.findall(text)} & tests().keys())
    parts = ["# Evidence\n\nThe tests that these pages name, as they stand in the repository.\n"]
    for name in named:
        file, source = tests()[name]
        parts.append(
            f'## {name} {{ #{name} data-search-exclude="" }}\n\n`{file}`\n\n```python\n{source}\n```\n'
        )
    return "\n".join(parts)
