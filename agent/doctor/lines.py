"""What the doctor says: one line for each thing that was looked at."""

from dataclasses import dataclass
from enum import StrEnum

from msgspec import Struct


class State(StrEnum):
    """How it stands with one thing."""

    OK = "ok"
    WARN = "warn"  # it works, and should be mended
    FAIL = "fail"  # jobs would be refused, or unsafe, or fail
    NOTE = "note"  # cannot tell from here, or no more than told


class Check(Struct, frozen=True):
    """One line. `seen` says what was seen; `mend` is the one command that mends it, which every failing line has."""

    group: str
    name: str
    state: State
    seen: str
    mend: str | None = None


class Unknown(Struct, frozen=True):
    """A fact that could not be read, and why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Group:
    """The lines of one subject."""

    title: str

    def ok(self, name: str, seen: str) -> Check:
        """It is as it should be."""
        return Check(self.title, name, State.OK, seen)

    def warn(self, name: str, seen: str, mend: str | None = None) -> Check:
        """It works, and should be mended."""
        return Check(self.title, name, State.WARN, seen, mend)

    def fail(self, name: str, seen: str, mend: str) -> Check:
        """It does not do."""
        return Check(self.title, name, State.FAIL, seen, mend)

    def note(self, name: str, seen: str, mend: str | None = None) -> Check:
        """Told, not judged."""
        return Check(self.title, name, State.NOTE, seen, mend)

    def unknown(self, name: str, why: Unknown) -> Check:
        """It could not be looked at."""
        return Check(self.title, name, State.NOTE, f"cannot tell: {why.reason}")


def gib(count: int) -> str:
    """A number of bytes for people."""
    return f"{count / (1 << 30):.1f} GiB" if count >= 1 << 30 else f"{count / (1 << 20):.0f} MiB"
