"""The log: an event in the past tense and its values, fields for the journal, one JSON line each, or words for a terminal.

The one file that knows structlog.

    log = get_logger(__name__)
    log.info("task.attested", order=order_id, position=2, wall_s=3.1)

Payloads and keys never get out: a redaction stands before every line, for events of libraries too.
"""

import logging
import os
import re
import sys
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager, suppress
from enum import StrEnum
from typing import Any, TextIO

import structlog
from structlog.typing import FilteringBoundLogger, Processor

from agent.log_journal import Journal, fields_of, is_journal

Log = FilteringBoundLogger

MAX_TEXT = 2000  # characters kept of one value

_SECRET_NAMES = re.compile(
    r"(?:^|_)(?:secret|password|passphrase|token|share|seed|key|payload|body|envelope)s?$"
)
_PRIVATE_PEM = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----")


class LogFormat(StrEnum):
    """How a line looks. `auto`: fields where standard error is the journal, console on a terminal, JSON elsewhere.

    `journal`: fields in any case; JSON where no journal listens.
    """

    AUTO = "auto"
    JSON = "json"
    CONSOLE = "console"
    JOURNAL = "journal"


class LogLevel(StrEnum):
    """The least that is written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def get_logger(name: str) -> Log:
    """The logger of a module; `name` is its `__name__`."""
    logger: Log = structlog.get_logger(module=name)
    return logger


@contextmanager
def bound(**about: str | int | None) -> Iterator[None]:
    """Every line that this thread writes inside the block tells these too; None tells nothing. Blocks within add to it.

    The names are the same everywhere: `order`, `position`, `attempt`, `trace`, `delivery`.
    """
    told = {name: value for name, value in about.items() if value is not None}
    with structlog.contextvars.bound_contextvars(**told):
        yield


def bound_trace() -> str | None:
    """The trace id of what this thread works on: a call to another host carries it on."""
    found = structlog.contextvars.get_contextvars().get("trace")
    return None if found is None else str(found)


def configure(
    level: LogLevel = LogLevel.INFO, style: LogFormat = LogFormat.AUTO, stream: TextIO | None = None
) -> None:
    """Write our events and those of libraries from `level` on to `stream` (standard error)."""
    target = stream or sys.stderr
    journal = _journal(style, target)
    is_console = style is LogFormat.CONSOLE or (style is LogFormat.AUTO and target.isatty())
    number = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
        redact,
    ]
    # Tracebacks are plain text: richer ones print local variables, keys among them.
    ending: list[Processor] = (
        [
            structlog.dev.ConsoleRenderer(
                colors=target.isatty(), exception_formatter=structlog.dev.plain_traceback
            )
        ]
        if is_console
        else [
            structlog.processors.ExceptionRenderer(),
            _in_order,
            journal or structlog.processors.JSONRenderer(),
        ]
    )
    structlog.configure(
        processors=[*shared, *ending],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(target),
        cache_logger_on_first_use=False,
    )
    _configure_libraries(number, shared, ending, target)


class _ToJournal:
    """The last processor where the journal listens: a line that it takes goes nowhere else, another one to standard error."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._otherwise = structlog.processors.JSONRenderer()

    def __call__(self, logger: Any, method: str, event: MutableMapping[str, Any]) -> str | bytes:
        try:
            self._journal.send(fields_of(event))
        except OSError as error:
            return self._otherwise(logger, method, {**event, "not_journaled": error.strerror})
        raise structlog.DropEvent


def _journal(style: LogFormat, target: TextIO) -> _ToJournal | None:
    """What speaks to the journal, when that is asked for and somebody listens."""
    is_asked = style is LogFormat.JOURNAL or (style is LogFormat.AUTO and is_journal(target, os.environ))
    try:
        return _ToJournal(Journal()) if is_asked else None
    except OSError:
        return None


def redact(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Take out what must not be in a log: bytes become their length, secrets by name or look become `…`."""
    for name, value in event.items():
        event[name] = _redacted(name, value)
    return event


def _redacted(name: str, value: Any) -> Any:
    match value:
        case bytes() | bytearray() | memoryview():
            return f"<{len(value)} bytes>"
        case _ if _SECRET_NAMES.search(name.lower()):
            return "…"
        case str() if _PRIVATE_PEM.search(value):
            return "…"
        case str() if len(value) > MAX_TEXT:
            return value[:MAX_TEXT] + "…"
        case dict():
            return {key: _redacted(str(key), inner) for key, inner in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_redacted(name, inner) for inner in value]
        case _:
            return value


def _in_order(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """The line as a person reads it: when, how bad, what, then the values."""
    first = {name: event.pop(name) for name in ("at", "level", "event") if name in event}
    return {**first, **event}


class _Lines(logging.StreamHandler[TextIO]):
    """Writes what libraries say, but for what the journal has taken."""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(structlog.DropEvent):
            super().emit(record)


def _configure_libraries(
    level: int, shared: list[Processor], ending: list[Processor], stream: TextIO
) -> None:
    """What libraries log through `logging` comes out in the same form, from WARNING on."""
    handler = _Lines(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *ending],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(level, logging.WARNING))


configure(LogLevel.WARNING)  # until the command line says otherwise: nothing of ours on standard output
