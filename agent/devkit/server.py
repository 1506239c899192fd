"""From settings to a running server: the parts of a storage and of an orchestrator put together, and served."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial

from starlette.types import ASGIApp

from agent.api.callers import Guard
from agent.api.serving import listen, server_tls, serving, wait_for_signal
from agent.devkit.book import Book
from agent.devkit.client import Client
from agent.devkit.database import Database
from agent.devkit.orchestrator import orchestrator_app
from agent.devkit.publishing import Holders, holders_of
from agent.devkit.settings import RosterFile, ServerSettings
from agent.devkit.shelf import Shelf
from agent.devkit.storage import storage_app
from agent.log import get_logger
from agent.trust.keys import SigningKey

log = get_logger(__name__)


def now() -> datetime:
    """The time, aware, UTC."""
    return datetime.now(UTC)


def run_storage(settings: ServerSettings) -> None:
    """Serve a storage until the process is told to end. Raises: BadSettings."""
    shelf = Shelf(settings.folder)
    guard = _guard(settings, shelf.database)
    app = storage_app(shelf, guard, max_upload_bytes=settings.max_upload_bytes)
    with served(app, settings) as url:
        _wait("storage", url, guard)


def run_orchestrator(settings: ServerSettings) -> None:
    """Serve an orchestrator until the process is told to end. Raises: BadSettings."""
    book = open_book(settings)
    guard = _guard(settings, book.database)
    with open_client(settings).keeping() as client:
        app = orchestrator_app(book, guard, locate=Holders(partial(holders_of, client)))
        with served(app, settings) as url:
            _wait("orchestrator", url, guard)


@contextmanager
def served(app: ASGIApp, settings: ServerSettings) -> Iterator[str]:
    """Serve this application as the settings say while the block runs; gives the URL. Raises: BadSettings."""
    tls = server_tls(settings.certificate, settings.private_key)
    with serving(app, listen(settings.host, settings.port), tls=tls) as url:
        yield url


def open_book(settings: ServerSettings) -> Book:
    """The orchestrator's memory; the command line opens it beside the server."""
    return Book(settings.folder / "orchestrator.sqlite")


def open_client(settings: ServerSettings) -> Client:
    """Calls to others, signed with the server's own key. Raises: BadSettings."""
    return Client(
        SigningKey.load(settings.key), RosterFile(settings.roster), now, timedelta(seconds=settings.skew_s)
    )


def _guard(settings: ServerSettings, database: Database) -> Guard:
    return Guard(
        roster=RosterFile(settings.roster),
        authorities=lambda: settings.authorities,
        key=SigningKey.load(settings.key),
        now=now,
        skew=timedelta(seconds=settings.skew_s),
        remember_nonce=database.remember_nonce,
    )


def _wait(what: str, url: str, guard: Guard) -> None:
    log.info("devkit.started", what=what, url=url, keyid=guard.key.keyid)
    told = wait_for_signal()
    log.info("devkit.stopping", what=what, signal=told.name)
