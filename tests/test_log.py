"""The log: one line an event, and neither payloads nor keys in any of them."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from agent.log import LogFormat, LogLevel, configure, get_logger
from agent.trust.keys import SigningKey

log = get_logger(__name__)


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    configure(LogLevel.INFO, LogFormat.JSON, stream)
    yield stream
    configure(LogLevel.WARNING)


def told(lines: io.StringIO) -> dict[str, Any]:
    (line,) = lines.getvalue().splitlines()
    event: dict[str, Any] = json.loads(line)
    return event


def test_an_event_is_one_line_of_json_that_begins_with_when_how_bad_and_what(lines: io.StringIO) -> None:
    log.info("task.attested", task="x.1", wall_s=3.5)

    event = told(lines)
    assert list(event) == ["at", "level", "event", "module", "task", "wall_s"]
    assert (event["level"], event["event"], event["module"]) == ("info", "task.attested", __name__)


def test_what_lies_below_the_level_is_not_written(lines: io.StringIO) -> None:
    log.debug("task.polled")

    assert lines.getvalue() == ""


@pytest.mark.parametrize(
    "name", ["share", "shares", "data_key", "private_key", "token", "payload", "body", "password"]
)
def test_a_secret_by_its_name_is_not_written(lines: io.StringIO, name: str) -> None:
    log.info("share.released", **{name: "hunter2"}, nested={"inner": {name: "hunter2"}})

    assert "hunter2" not in lines.getvalue()


def test_bytes_are_told_by_their_length(lines: io.StringIO) -> None:
    log.info("blob.fetched", content=b"hunter2", parts=[b"hunter2"])

    assert told(lines)["content"] == "<7 bytes>"
    assert "hunter2" not in lines.getvalue()


def test_a_private_key_in_pem_is_not_written(lines: io.StringIO) -> None:
    log.info("file.read", text="-----BEGIN PRIVATE KEY-----\nMC4CAQ\n-----END PRIVATE KEY-----")

    assert "MC4CAQ" not in lines.getvalue()


def test_names_of_keys_are_no_secret(lines: io.StringIO) -> None:
    log.info("share.released", keyid="ab12", dataset="x", digest="sha256:00")

    assert told(lines)["keyid"] == "ab12"


def test_a_long_text_is_cut(lines: io.StringIO) -> None:
    log.info("job.failed", detail="x" * 100_000)

    assert len(lines.getvalue()) < 3000


def test_a_traceback_shows_no_local_variable(lines: io.StringIO) -> None:
    def burst() -> None:
        secret = "hunter" + "2"
        raise RuntimeError(len(secret))

    try:
        burst()
    except RuntimeError:
        log.exception("bell.crashed")

    assert "RuntimeError" in told(lines)["exception"]
    assert "hunter2" not in lines.getvalue()


def test_a_signing_key_shows_its_public_half_only(lines: io.StringIO) -> None:
    key = SigningKey.generate()

    log.info("key.loaded", which=key)

    assert key.keyid in lines.getvalue()


def test_libraries_speak_in_the_same_form_and_only_from_warning_on(lines: io.StringIO) -> None:
    logging.getLogger("huey").info("chatter")
    logging.getLogger("huey").error("task %s failed", "x")

    event = told(lines)
    assert (event["event"], event["logger"], event["level"]) == ("task x failed", "huey", "error")


def test_a_terminal_reads_words(lines: io.StringIO) -> None:
    configure(LogLevel.INFO, LogFormat.CONSOLE, lines)

    log.info("worker.started", worker="w")

    assert "worker.started" in lines.getvalue()
    assert not lines.getvalue().startswith("{")
