"""A Dockerfile as a few instructions with one meaning each, or a refusal.

Builders differ on what is odd (heredocs, directives, JSON that does not parse, names that are completed from a registry), so
what is odd is refused. Taken: one FROM, COPY, ADD of files, RUN, ENV, WORKDIR, USER, ENTRYPOINT, CMD, LABEL; EXPOSE, MAINTAINER
and STOPSIGNAL say nothing that counts here. Refused: every other instruction, every flag, sources from elsewhere.
Source: docs/algorithms.md, "From a Dockerfile".
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping

from msgspec import Struct

from agent.errors import BadBuild

MAX_BYTES = 64 << 10
MAX_INSTRUCTIONS = 200
MAX_VALUE = 32 << 10  # characters: variables of variables double with each line
SHELL = ("/bin/sh", "-c")
SCRATCH = "scratch"

_IGNORED = frozenset({"EXPOSE", "MAINTAINER", "STOPSIGNAL"})
_DIRECTIVE = re.compile(r"#\s*(syntax|escape|check)\s*=", re.IGNORECASE)
_HEREDOC = re.compile(r"<<-?\s*['\"]?[A-Za-z_]")
_ELSEWHERE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:|git@|//")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_BASE = re.compile(r"[a-z0-9][a-z0-9._/:@-]{0,254}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_VARIABLE = re.compile(r"\$(?:([A-Za-z_][A-Za-z0-9_]*)|\{([A-Za-z_][A-Za-z0-9_]*)\})")


class From(Struct, frozen=True):
    """What it starts from: a name that the host's policy knows, or nothing at all."""

    base: str


class Copy(Struct, frozen=True):
    """Files of the context into the image. Words are raw: `value` reads them."""

    sources: tuple[str, ...]
    target: str
    is_add: bool = False


class Run(Struct, frozen=True):
    """A command, run while the image is built."""

    args: tuple[str, ...]


class Env(Struct, frozen=True):
    """Variables with their raw values."""

    pairs: tuple[tuple[str, str], ...]


class Label(Struct, frozen=True):
    """Labels with their raw values."""

    pairs: tuple[tuple[str, str], ...]


class WorkDir(Struct, frozen=True):
    """Where what follows takes place. Raw."""

    path: str


class User(Struct, frozen=True):
    """As whom what follows runs. Raw."""

    name: str


class EntryPoint(Struct, frozen=True):
    """What the image runs."""

    args: tuple[str, ...]


class Cmd(Struct, frozen=True):
    """What follows its entry point when nobody says otherwise."""

    args: tuple[str, ...]


Instruction = From | Copy | Run | Env | Label | WorkDir | User | EntryPoint | Cmd


def parse_dockerfile(content: bytes) -> tuple[Instruction, ...]:
    """The instructions in order; the first is the only From. Raises: BadBuild, which names the line."""
    found: list[Instruction] = []
    for number, line in _logical_lines(_text(content)):
        word, _, rest = line.partition(" ")
        try:
            instruction = _instruction(word.upper(), rest.strip())
        except BadBuild as cause:
            raise BadBuild(f"Dockerfile, line {number}: {cause}") from cause
        if instruction is None:
            continue
        if isinstance(instruction, From) is bool(found):
            raise BadBuild(f"Dockerfile, line {number}: exactly one FROM stands before everything else")
        found.append(instruction)
    if not found:
        raise BadBuild("the Dockerfile is empty")
    if len(found) > MAX_INSTRUCTIONS:
        raise BadBuild(f"the Dockerfile has more than {MAX_INSTRUCTIONS} instructions")
    return tuple(found)


def value(raw: str, env: Mapping[str, str]) -> str:
    """A raw word without its quotes, its variables replaced; what is not set is empty. Raises: BadBuild."""
    told, quote, at = "", "", 0
    while at < len(raw):
        if len(told) > MAX_VALUE:
            raise BadBuild(f"the value of {raw!r:.80} is too long: {MAX_VALUE} characters are taken")
        sign = raw[at]
        if sign == quote:
            quote = ""
        elif sign in "'\"" and not quote:
            quote = sign
        elif sign == "\\" and quote != "'" and at + 1 < len(raw):
            at += 1
            told += raw[at] if not quote or raw[at] in '"\\$' else "\\" + raw[at]
        elif sign == "$" and quote != "'":
            match = _VARIABLE.match(raw, at)
            if match is None:
                raise BadBuild(f"{raw[at : at + 20]!r} is no variable that is read here: $NAME or ${{NAME}}")
            told += env.get(match[1] or match[2], "")
            at = match.end() - 1
        else:
            told += sign
        at += 1
    if quote:
        raise BadBuild(f"a quote is not closed in {raw!r:.80}")
    return told


# ------------------------------------------------------------------ lines


def _text(content: bytes) -> str:
    if len(content) > MAX_BYTES:
        raise BadBuild(f"the Dockerfile is over {MAX_BYTES >> 10} KiB")
    try:
        text = content.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as cause:
        raise BadBuild("the Dockerfile is not UTF-8") from cause
    if _CONTROL.search(text) or text.startswith("\ufeff"):
        raise BadBuild("the Dockerfile holds characters that cannot be printed")
    return text


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """(number of its first line, line with what it goes on with), without comments and empty lines."""
    begun: tuple[int, str] | None = None
    for number, line in enumerate(text.split("\n"), 1):
        bare = line.strip()
        if bare.startswith("#"):
            if _DIRECTIVE.match(bare):
                raise BadBuild(f"Dockerfile, line {number}: directives for the builder are refused")
            continue
        if not bare:
            if begun is not None:
                raise BadBuild(f"Dockerfile, line {number}: an empty line in the middle of an instruction")
            continue
        whole = line.rstrip() if begun is None else begun[1] + line.rstrip()
        first = number if begun is None else begun[0]
        if whole.endswith("\\"):
            begun = first, whole.removesuffix("\\")
            continue
        begun = None
        yield first, re.sub(r"^(\s*\S+)\s", r"\1 ", whole).strip()
    if begun is not None:
        raise BadBuild(f"Dockerfile, line {begun[0]}: the instruction does not end")


# ------------------------------------------------------------------ instructions


def _instruction(word: str, rest: str) -> Instruction | None:
    """One instruction, None for one that says nothing here."""
    if word in _IGNORED:
        return None
    if word not in _READERS:
        raise BadBuild(f"{word!r:.40} is not taken: this host builds with {', '.join(sorted(_READERS))}")
    if not rest:
        raise BadBuild(f"{word} says nothing")
    if rest.startswith("--"):
        raise BadBuild(f"flags are refused: {rest.split(maxsplit=1)[0]!r:.80}")
    return _READERS[word](rest)


def _from(rest: str) -> From:
    if not _BASE.fullmatch(rest):
        raise BadBuild(f"FROM takes one name that the host's policy knows, or {SCRATCH}: {rest!r:.80}")
    return From(rest)


def _copy(rest: str) -> Copy:
    _refuse_heredoc(rest)
    if rest.startswith("["):
        words = list(_json_words(rest))
        if any(sign in word for word in words for sign in "$'\"\\"):
            raise BadBuild("quotes, variables and escapes within a list of names are refused")
    else:
        words = _words(rest)
    if len(words) < 2:
        raise BadBuild("COPY and ADD take at least one source and a target")
    for source in words[:-1]:
        if _ELSEWHERE.match(source.strip("'\"")):
            raise BadBuild(f"{source!r:.80} lies elsewhere: only files of the context are taken")
    return Copy(tuple(words[:-1]), words[-1])


def _add(rest: str) -> Copy:
    copied = _copy(rest)
    return Copy(copied.sources, copied.target, is_add=True)


def _command(rest: str) -> tuple[str, ...]:
    _refuse_heredoc(rest)
    return _json_words(rest) if rest.startswith("[") else (*SHELL, rest)


def _pairs(rest: str) -> tuple[tuple[str, str], ...]:
    words = _words(rest)
    if "=" not in words[0]:  # the old form: a name, and the rest of the line
        name, _, old = rest.partition(" ")
        return ((_key(name), old.strip()),)
    pairs = [word.partition("=") for word in words]
    if not all(equals for _, equals, _ in pairs):
        raise BadBuild("every word is NAME=VALUE, or there is one name and one value")
    return tuple((_key(name), told) for name, _, told in pairs)


def _key(name: str) -> str:
    bare = name.strip("'\"")
    if not bare or "$" in bare or "\\" in bare or "'" in bare or '"' in bare:
        raise BadBuild(f"{name!r:.80} is no name")
    return bare


def _env(rest: str) -> Env:
    pairs = _pairs(rest)
    for name, _ in pairs:
        if not _NAME.fullmatch(name):
            raise BadBuild(f"{name!r:.80} is no name of a variable")
    return Env(pairs)


def _one(rest: str) -> str:
    words = _words(rest)
    if len(words) != 1:
        raise BadBuild("one word is taken")
    return words[0]


def _words(text: str) -> list[str]:
    """The raw words, split where a space stands outside of quotes."""
    words = [""]
    quote, is_escaped = "", False
    for sign in text:
        if is_escaped:
            is_escaped = False
        elif sign == "\\" and quote != "'":
            is_escaped = True
        elif sign == quote:
            quote = ""
        elif sign in "'\"" and not quote:
            quote = sign
        elif sign in " \t" and not quote:
            words.append("")
            continue
        words[-1] += sign
    if quote or is_escaped:
        raise BadBuild("a quote is not closed")
    return [word for word in words if word]


def _json_words(text: str) -> tuple[str, ...]:
    try:
        words = json.loads(text)
    except (ValueError, RecursionError) as cause:
        raise BadBuild(f"{text!r:.80} begins as a list and is none") from cause
    if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
        raise BadBuild(f"{text!r:.80} is no list of words")
    if any("\0" in word for word in words) or not words[0]:
        raise BadBuild("a word is empty or holds a zero byte")
    return tuple(words)


def _refuse_heredoc(rest: str) -> None:
    if _HEREDOC.search(rest):
        raise BadBuild("heredocs are refused: builders read them in different ways")


_READERS: Mapping[str, Callable[[str], Instruction]] = {
    "FROM": _from,
    "COPY": _copy,
    "ADD": _add,
    "RUN": lambda rest: Run(_command(rest)),
    "ENV": _env,
    "LABEL": lambda rest: Label(_pairs(rest)),
    "WORKDIR": lambda rest: WorkDir(_one(rest)),
    "USER": lambda rest: User(_one(rest)),
    "ENTRYPOINT": lambda rest: EntryPoint(_command(rest)),
    "CMD": lambda rest: Cmd(_command(rest)),
}
