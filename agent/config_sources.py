"""Where each setting comes from: default, file, environment, flag, in this order, the last one counts. Mistakes are collected.

Nothing is raised here: a mistake is a `Mistake` that says where it stands, so that a check can tell them all.

A name that nobody knows is refused with the nearest right one. In the environment `DC_COMPUTE_` is the prefix of
others too (tests, tools): there a name is a mistake when it begins with a section of ours, or when it lies within two
slips of the keyboard of a name of ours. `DC_COMPUTE_TEST_…` is left to tests, whatever it resembles.
"""

import difflib
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, cast

import msgspec
from msgspec import Struct

from agent.config_sections import SECTIONS

PREFIX = "DC_COMPUTE_"
HOME_VARIABLE = "DC_COMPUTE_HOME"
OF_TESTS = "DC_COMPUTE_TEST_"
CREDENTIALS_VARIABLE = "CREDENTIALS_DIRECTORY"  # systemd.exec(5): where LoadCredential puts files
SLIPS = 2  # a letter too many, one too few, a wrong one, two swapped

Values = dict[str, dict[str, Any]]


class Source(StrEnum):
    """What a value comes from."""

    DEFAULT = "default"
    FILE = "file"
    VARIABLE = "variable"
    FLAG = "flag"
    CREDENTIAL = "credential"  # a variable that names a file which systemd lent to the service


class Origin(Struct, frozen=True):
    """Where a value comes from. `where`: the file with its line, the variable, the flag; None for a default."""

    source: Source
    where: str | None = None

    def __str__(self) -> str:
        return self.source if self.where is None else f"{self.source} {self.where}"


class Mistake(Struct, frozen=True):
    """What is wrong with a setting, and where it stands."""

    where: str
    seen: str

    def __str__(self) -> str:
        return f"{self.where}: {self.seen}"


class Told(Struct, frozen=True):
    """One value as somebody wrote it. `is_text`: it is text whatever the key's type is."""

    value: Any
    origin: Origin
    is_text: bool


class Found(Struct):
    """What a source says, by section and key, and what is wrong with it."""

    told: dict[tuple[str, str], Told] = {}
    mistakes: list[Mistake] = []


def key_type(section: str, key: str) -> Any:
    """The type of a setting, with its bounds."""
    return next(field.type for field in msgspec.structs.fields(SECTIONS[section]) if field.name == key)


# ------------------------------------------------------------------ the file


def read_file(file: Path, *, may_be_absent: bool = True) -> Found:
    """What this file of settings says."""
    try:
        text = file.read_bytes().decode()
        tree = tomllib.loads(text)
    except FileNotFoundError:
        return Found() if may_be_absent else Found({}, [Mistake(str(file), "is not there")])
    except OSError as cause:
        return Found({}, [Mistake(str(file), f"cannot be read: {cause.strerror}")])
    except ValueError as cause:  # TOMLDecodeError, UnicodeDecodeError
        return Found({}, [Mistake(str(file), f"is not TOML: {cause}")])
    found, lines = Found({}, []), line_numbers(text)
    for section, values in tree.items():
        where = f"{file}, line {lines.get((section,), 1)}"
        if section not in SECTIONS:
            wrong = f"there is no section [{section}]; {nearest(section, SECTIONS)}"
            found.mistakes.append(Mistake(where, wrong))
        elif not isinstance(values, dict):
            wrong = f"{section} is a section: write [{section}] and its keys below"
            found.mistakes.append(Mistake(where, wrong))
        else:
            for key, value in values.items():
                here = f"{file}, line {lines.get((section, key), 1)}"
                _tell(found, section, key, Told(value, Origin(Source.FILE, here), is_text=False), here)
    return found


def line_numbers(text: str) -> dict[tuple[str, ...], int]:
    """On which line each section and each key of a TOML text begins.

    tomllib tells no lines. A text cut after a whole statement is TOML too, and one cut within a statement is not, so
    what a longer cut adds stands on the lines that it added.
    """
    lines, begins, known = text.splitlines(), 0, set[tuple[str, ...]]()
    found: dict[tuple[str, ...], int] = {}
    for end in range(1, len(lines) + 1):
        if not lines[end - 1].strip():
            continue
        try:
            tree = tomllib.loads("\n".join(lines[:end]))
        except tomllib.TOMLDecodeError:
            continue
        added = _paths(tree) - known
        number = next((n for n in range(begins, end) if lines[n].split("#")[0].strip()), begins) + 1
        found.update(dict.fromkeys(added, number))
        known |= added
        begins = end
    return found


def _paths(tree: Mapping[str, Any]) -> set[tuple[str, ...]]:
    inner = {(name, key) for name, value in tree.items() if isinstance(value, dict) for key in value}
    return {(name,) for name in tree} | inner


# ------------------------------------------------------------------ the environment


def read_credentials(environment: Mapping[str, str]) -> Found:
    """Files that systemd lent to this service under the name of a setting: `LoadCredential=identity.key:/somewhere.pem`.

    Each stands for that setting's default. What agent.toml, the environment or a flag say still wins: a credential that
    nobody meant is never used in its place.
    """
    found, lent = Found({}, []), environment.get(CREDENTIALS_VARIABLE)
    for section, kind in SECTIONS.items() if lent else ():
        for key in kind.__struct_fields__:
            path = Path(str(lent)) / f"{section}.{key}"
            if path.exists():
                found.told[section, key] = Told(str(path), Origin(Source.CREDENTIAL, path.name), is_text=True)
    return found


def read_environment(environment: Mapping[str, str]) -> Found:
    """What the variables say that are ours."""
    found = Found({}, [])
    lent = environment.get(CREDENTIALS_VARIABLE)
    for variable, value in sorted(environment.items()):
        if not variable.startswith(PREFIX) or variable == HOME_VARIABLE:
            continue
        section, _, key = variable.removeprefix(PREFIX).lower().partition("_")
        if section in SECTIONS:
            is_lent = lent is not None and Path(value).is_relative_to(lent)
            source = Source.CREDENTIAL if is_lent else Source.VARIABLE
            where = f"{Path(value).name} by {variable}" if is_lent else variable
            _tell(found, section, key, Told(value, Origin(source, where), is_text=True), variable)
        elif (meant := meant_by(variable)) is not None:
            wrong = f"names no setting; did you mean {meant!r}?"
            found.mistakes.append(Mistake(variable, wrong))
    return found


def variables() -> Iterator[str]:
    """The name of every setting in the environment."""
    yield HOME_VARIABLE
    for section, kind in SECTIONS.items():
        yield from (f"{PREFIX}{section}_{key}".upper() for key in kind.__struct_fields__)


def meant_by(variable: str) -> str | None:
    """The name of ours that this one is a misspelling of, None for somebody else's. In a short name fewer slips count."""
    if variable.startswith(OF_TESTS):
        return None
    wrong = variable.removeprefix(PREFIX)
    near = [
        (slips, name)
        for name in variables()
        if (slips := slips_between(wrong, name.removeprefix(PREFIX)))
        <= min(SLIPS, len(name.removeprefix(PREFIX)) // 4)
    ]
    return min(near)[1] if near else None


def slips_between(one: str, other: str) -> int:
    """How many slips of the keyboard lie between two words (optimal string alignment)."""
    rows = [list(range(len(other) + 1))]
    for i, a in enumerate(one, 1):
        row = [i]
        for j, b in enumerate(other, 1):
            least = min(rows[-1][j] + 1, row[-1] + 1, rows[-1][j - 1] + (a != b))
            if i > 1 and j > 1 and a == other[j - 2] and one[i - 2] == b:
                least = min(least, rows[-2][j - 2] + 1)
            row.append(least)
        rows.append(row)
    return rows[-1][-1]


# ------------------------------------------------------------------ flags


def read_flags(flags: Sequence[str]) -> Found:
    """What `--set section.key=value` says."""
    found = Found({}, [])
    for flag in flags:
        name, equals, value = flag.partition("=")
        where = f"--set {name}"  # without the value, which may be what somebody pasted
        section, dot, key = name.strip().partition(".")
        if not equals or not dot:
            found.mistakes.append(Mistake(where, "write section.key=value"))
        elif section not in SECTIONS:
            found.mistakes.append(
                Mistake(where, f"there is no section [{section}]; {nearest(section, SECTIONS)}")
            )
        else:
            _tell(found, section, key, Told(value, Origin(Source.FLAG, where), is_text=True), where)
    return found


# ------------------------------------------------------------------ values


def value_of(told: Told, section: str, key: str, home: Path) -> Any:
    """The value as its key's type. Text becomes numbers by itself, lists by commas; a path starts from `home`.

    Raises: msgspec.ValidationError.
    """
    value, kind = told.value, key_type(section, key)
    if told.is_text and _is_list(kind):
        value = [part.strip() for part in str(value).split(",") if part.strip()]
    return msgspec.convert(
        value, kind, strict=not told.is_text, dec_hook=lambda wanted, text: _path(wanted, text, home)
    )


def nearest(name: str, known: Iterable[str]) -> str:
    """The right name that this wrong one comes nearest to, or all of them."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(names)}"


def _tell(found: Found, section: str, key: str, told: Told, where: str) -> None:
    known = SECTIONS[section].__struct_fields__
    if key in known:
        found.told[section, key] = told
    else:
        found.mistakes.append(Mistake(where, f"[{section}] has no key {key!r}; {nearest(key, known)}"))


def _is_list(kind: Any) -> bool:
    told = msgspec.inspect.type_info(kind)
    while isinstance(told, msgspec.inspect.Metadata):
        told = told.type
    return isinstance(told, msgspec.inspect.VarTupleType)


def _path(wanted: type, text: Any, home: Path) -> Path:
    if wanted is not Path:
        raise NotImplementedError(f"settings know no {wanted}")
    if not isinstance(text, str) or not text or "\0" in text:
        raise ValueError("Expected a path as text")
    return home / cast(str, Path(text).expanduser())
