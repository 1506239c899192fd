"""The seccomp profiles as JSON from their one commented source, `seccomp/source.toml`: `make seccomp` runs this.

Only the keys defaultAction, defaultErrnoRet, architectures and syscalls are written: the parsers of Podman's REST API, of its
command line and of runc differ in everything else.
"""

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct

from agent.domain.prepared import prepared

FOLDER = Path(__file__).resolve().parent.parent.parent / "seccomp"


class Calls(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One entry: who needs these calls, in which profiles, under which condition on one argument, and what happens.

    Allowed unless `errno` or `is_deadly` says otherwise. `equals` may hold several values, each a rule of its own (conditions
    within one rule would all have to hold); with `mask` the masked argument is compared.
    """

    who: str
    names: list[str]
    profiles: list[str] | None = None
    argument: int | None = None
    equals: list[int] = []
    differs: int | None = None
    mask: int | None = None
    errno: int | None = None
    is_deadly: bool = False


class Source(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole of source.toml."""

    errno: int
    architectures: list[Literal["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"]]
    profiles: list[str]
    may_fail: dict[str, str]
    calls: list[Calls]


def read_source(folder: Path = FOLDER) -> Source:
    """The source as values. Raises: msgspec.ValidationError, tomllib.TOMLDecodeError."""
    return msgspec.convert(
        tomllib.loads((folder / "source.toml").read_text(encoding="utf-8")), prepared(Source)
    )


def profile(source: Source, name: str) -> dict[str, Any]:
    """One profile in OCI form."""
    entries = [entry for entry in source.calls if name in (entry.profiles or source.profiles)]
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": source.errno,
        "architectures": list(source.architectures),
        "syscalls": [rule for entry in entries for rule in _rules(entry)],
    }


def profile_text(source: Source, name: str) -> str:
    """The bytes of `seccomp/<name>.json`, as text."""
    return json.dumps(profile(source, name), indent=1) + "\n"


def _rules(entry: Calls) -> Iterator[dict[str, Any]]:
    action = "SCMP_ACT_ALLOW"
    if entry.is_deadly:
        action = "SCMP_ACT_KILL_PROCESS"
    elif entry.errno is not None:
        action = "SCMP_ACT_ERRNO"
    rule: dict[str, Any] = {"names": sorted(entry.names), "action": action}
    if entry.errno is not None:
        rule["errnoRet"] = entry.errno
    if entry.argument is None:
        yield rule
        return
    for condition in _conditions(entry):
        yield rule | {"args": [{"index": entry.argument, **condition}]}


def _conditions(entry: Calls) -> Iterator[dict[str, Any]]:
    if entry.differs is not None:
        yield {"value": entry.differs, "op": "SCMP_CMP_NE"}
    for value in entry.equals:
        if entry.mask is None:
            yield {"value": value, "op": "SCMP_CMP_EQ"}
        else:
            yield {"value": entry.mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}


def main() -> None:
    """Write the profiles beside their source."""
    source = read_source()
    for name in source.profiles:
        path = FOLDER / f"{name}.json"
        path.write_text(profile_text(source, name), encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
