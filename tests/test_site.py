"""The documentation as a site: it builds strictly, and a browser that reads it asks nobody outside for anything."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from tests.test_docs import ROOT, document, documents, rows_of

# Attributes that a browser loads by itself, by element; a link that a reader may click is none.
LOADED = {
    ("audio", "src"), ("embed", "src"), ("iframe", "src"), ("image", "href"), ("img", "src"), ("img", "srcset"),
    ("input", "src"), ("link", "href"), ("object", "data"), ("script", "src"), ("source", "src"),
    ("source", "srcset"), ("track", "src"), ("use", "href"), ("video", "poster"), ("video", "src"),
}  # fmt: skip
NOT_LOADED = {"canonical", "prev", "next", "author", "license"}  # relations of a link
OUTSIDE = re.compile(r"(?:https?:)?//", re.IGNORECASE)


class Loads(HTMLParser):
    """Every address that a page makes its browser load."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = dict(attrs)
        if tag == "link" and set((told.get("rel") or "").split()) <= NOT_LOADED:
            return
        self.found += [value for name, value in attrs if (tag, name) in LOADED and value]
        self.found += re.findall(r"url\(([^)]*)\)", told.get("style") or "")


def loads_of(html: str) -> list[str]:
    parser = Loads()
    parser.feed(html)
    return parser.found


def test_what_a_browser_loads_is_found() -> None:
    html = (
        '<link rel="stylesheet" href="//a/b.css"><link rel="next" href="https://a/c"><a href="https://a/d">'
        '<img src="e.png"><script src="https://f/g.js"></script>'
    )

    assert loads_of(html) == ["//a/b.css", "e.png", "https://f/g.js"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [
        str(Path(sys.executable).parent / "mkdocs"),
        "build",
        "--strict",  # --quiet would hide from it what it counts
        "--site-dir",
        str(folder),
    ]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "NO_COLOR": "1"}

    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    told = [line for line in done.stderr.splitlines() if not line.startswith("INFO")]
    assert (done.returncode, told) == (0, [])
    return folder


@pytest.mark.xdist_group("site")
def test_every_page_is_there_and_loads_nothing_from_outside(site: Path) -> None:
    pages = {path.relative_to(site).as_posix(): path.read_text("utf-8") for path in site.rglob("*.html")}

    outside = {name: [one for one in loads_of(text) if OUTSIDE.match(one)] for name, text in pages.items()}

    wanted = {
        page.path.removeprefix("docs/").replace("README.md", "index.md").replace(".md", ".html")
        for page in documents()
        if page.path.startswith("docs/")
    }
    assert wanted <= pages.keys()
    assert {name: found for name, found in outside.items() if found} == {}
    assert all("Content-Security-Policy" in text for text in pages.values())


@pytest.mark.xdist_group("site")
def test_no_style_of_the_site_loads_anything_from_outside(site: Path) -> None:
    found = {
        path.name: re.findall(r"(?:url\(|@import\s*)[\"']?(?:https?:)?//[^)\"']*", path.read_text("utf-8"))
        for path in site.rglob("*.css")
    }

    assert {name: loads for name, loads in found.items() if loads} == {}


@pytest.mark.xdist_group("site")
def test_the_search_is_local_and_finds_a_code_of_an_error(site: Path) -> None:
    index = (site / "search" / "search_index.json").read_text("utf-8")

    assert "cage-not-applied" in index


@pytest.mark.xdist_group("site")
def test_a_claim_of_the_threat_model_leads_to_the_source_of_its_test(site: Path) -> None:
    page = (site / "threat-model.html").read_text("utf-8")
    evidence = (site / "evidence.html").read_text("utf-8")

    led = set(re.findall(r'href="evidence.html#(test_[a-z0-9_]+)"', page))

    assert len(led) > 20
    assert all(f'id="{name}"' in evidence for name in led)


@pytest.mark.xdist_group("site")
def test_a_browser_that_reads_and_searches_the_site_asks_nobody_else(site: Path) -> None:
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("chromium, in which the site is read")
    from playwright.sync_api import sync_playwright

    asked: list[str] = []
    complaints: list[str] = []
    with served(site) as address, sync_playwright() as engine:
        chromium = engine.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = chromium.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
        page.goto(f"{address}/index.html")
        page.fill("input.md-search__input", "cage-not-applied")
        page.wait_for_selector(".md-search-result__item")
        page.goto(f"{address}/threat-model.html")
        page.click("a[href^='evidence.html#test_']")
        page.wait_for_url("**/evidence.html#test_*")
        chromium.close()

    assert len(asked) > 5
    assert [url for url in asked if not url.startswith((address, "blob:", "data:"))] == []
    assert complaints == []


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a server for the files of this folder."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


# ------------------------------------------------------------------ claims


@pytest.mark.parametrize("path", ["SECURITY.md", "docs/threat-model.md"])
def test_every_claim_of_the_threat_model_names_a_test(path: str) -> None:
    tables = re.findall(
        r"^\| (?:can try to|tries to) \|.*\n(?:\|.*\n)+", document(path).text, flags=re.MULTILINE
    )

    rows = [row for table in tables for row in rows_of(table)]

    assert len(rows) > 20
    assert [row for row in rows if not row[1].startswith("nothing") and "`test_" not in row[-1]] == []
