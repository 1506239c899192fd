"""The agent of one home: its settings, read once, and its API over the operator's socket.

Here and not in `here.py` stands what the services need too: they start without the command line's own libraries.
"""

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from agent import log
from agent.config import Effective, LogSection, Settings, find_home, load_settings, read_settings
from agent.domain.prepared import prepared
from agent.errors import BadSettings
from agent.ports.client import ApiAnswer, Client

T = TypeVar("T")


class Refused(Exception):
    """The agent said no: its own code, sentence and advice."""

    def __init__(self, code: str, detail: str, advice: str) -> None:
        super().__init__(detail)
        self.code = code
        self.advice = advice


@dataclass
class Here:
    """The agent of one home. Nothing is read before it is needed."""

    flag: Path | None = None
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    flags: tuple[str, ...] = ()  # section.key=value

    @property
    def home(self) -> Path:
        """The folder of its settings."""
        return find_home(self.flag, self.environment)

    @cached_property
    def settings(self) -> Settings:
        """Its settings. Raises: BadSettings."""
        return load_settings(self.home, self.environment, self.flags)

    def read_settings(self) -> Effective:
        """The same read now, with where each value comes from, and every mistake."""
        return read_settings(self.home, self.environment, self.flags)

    def start_log(self) -> None:
        """Log as the settings say, for commands that serve."""
        set_log(self.settings.log)

    @contextmanager
    def operator(self) -> Iterator["Desk"]:
        """Its API, as its operator."""
        from agent.wiring import open_operator

        with open_operator(self.settings) as client:
            yield Desk(client)


def set_log(told: LogSection) -> None:
    """Log as this section says, from now on."""
    log.configure(log.LogLevel(told.level), log.LogFormat(told.format))


@dataclass(frozen=True, slots=True)
class Desk:
    """An agent's API with its answers read. Raises everywhere: AgentUnreachable, Refused."""

    client: Client

    def get(self, target: str, kind: type[T]) -> T:
        """The document at this path and query."""
        return read_answer(self.client.get(target), kind)

    def post(self, target: str, body: bytes, kind: type[T]) -> T:
        """The answer to this body."""
        return read_answer(self.client.post(target, body), kind)


def read_answer(answer: ApiAnswer, kind: type[T], *, also: Collection[int] = ()) -> T:
    """The document in the answer, of a success or of these statuses `also`. Raises: Refused with the problem that it told."""
    if answer.is_success or answer.status in also:
        try:
            return msgspec.json.decode(answer.body, type=prepared(kind))
        except msgspec.MsgspecError as cause:
            advice = "Compare the versions of the agent and of this command."
            raise Refused("bad-answer", f"the agent's answer cannot be read: {cause}", advice) from cause
    told: dict[str, Any] = {}
    try:
        tree = msgspec.json.decode(answer.body)
        told = tree if isinstance(tree, dict) else {}
    except msgspec.MsgspecError:
        pass
    raise Refused(
        str(told.get("code", f"http-{answer.status}")),
        str(told.get("detail", f"the agent answers {answer.status}")),
        str(told.get("advice", "The agent's log says more.")),
    )


def read_file(path: Path, *, limit_bytes: int) -> bytes:
    """The bytes of a file that the command line names. Raises: BadSettings when it cannot be read or is too large."""
    try:
        with path.open("rb") as file:
            data = file.read(limit_bytes + 1)
    except OSError as cause:
        raise BadSettings(f"{path} cannot be read: {cause.strerror}") from cause
    if len(data) > limit_bytes:
        raise BadSettings(f"{path} is larger than {limit_bytes} bytes")
    return data
