"""A real Chromium for tests of the page, and a witness of everything it asks for and complains about."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Page,
    Request,
    ViewportSize,
    sync_playwright,
)

CHROMIUM = Path("/usr/bin/chromium")  # Debian's package, from `install.sh --deps`
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--force-color-profile=srgb",
)
PHONE: ViewportSize = {"width": 390, "height": 844}
DESK: ViewportSize = {"width": 1280, "height": 860}


@dataclass
class Witness:
    """What a context of the browser asked for, and what its pages complained about."""

    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def watch(self, context: BrowserContext) -> None:
        context.on("request", self._note_request)
        context.on("console", self._note_words)
        context.on("weberror", lambda error: self.complaints.append(str(error.error)))

    def _note_request(self, request: Request) -> None:
        self.requests.append(request.url)

    def _note_words(self, said: ConsoleMessage) -> None:
        if said.type in {"error", "warning"} and "/v1/events" not in str(said.location):
            self.complaints.append(f"{said.text} {said.location}")

    def elsewhere(self, origin: str) -> list[str]:
        """Requests to anywhere but this origin."""
        return [url for url in self.requests if not url.startswith(f"{origin}/")]


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser, headless, with nothing of its own to ask for."""
    os.environ.setdefault("PLAYWRIGHT_SKIP_BROWSER_DOWNLOAD", "1")
    with sync_playwright() as made:
        browser = made.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(browser: Browser, witness: Witness | None = None, **settings: Any) -> Iterator[Page]:
    """A page in a context of its own, at the desk's width unless told."""
    context = browser.new_context(**({"viewport": DESK} | settings))
    if witness is not None:
        witness.watch(context)
    try:
        yield context.new_page()
    finally:
        context.close()
