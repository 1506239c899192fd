"""The log: an event in the past tense and its values, one JSON line each, or words for a terminal.

The one file that knows structlog.

    log = get_logger(__name__)
    log.info("task.attested", order=order_id, position=2, wall_s=3.1)

Payloads and keys never get out: a redaction stands before every line, for events of libraries too.
"""

import logging
import re
import sys
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from enum import StrEnum
from typing import Any, TextIO

import structlog
from structlog.typing import FilteringBoundLogger, Processor

Log = FilteringBoundLogger

MAX_TEXT = 2000  # characters kept of one value

_SECRET_NAMES = re.compile(
    r"(?:^|_)(?:secret|password|passphrase|token|share|seed|key|payload|body|envelope)s?$"
)
_PRIVATE_PEM = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----")


class LogFormat(StrEnum):
    """How a line looks. `auto`: console on a terminal, JSON elsewhere."""

    AUTO = "auto"
    JSON = "json"
    CONSOLE = "console"


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
        else [structlog.processors.ExceptionRenderer(), _in_order, structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[*shared, *ending],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(target),
        cache_logger_on_first_use=False,
    )
    _configure_libraries(number, shared, ending, target)


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


def _configure_libraries(
    level: int, shared: list[Processor], ending: list[Processor], stream: TextIO
) -> None:
    """What libraries log through `logging` comes out in the same form, from WARNING on."""
    handler = logging.StreamHandler(stream)
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
