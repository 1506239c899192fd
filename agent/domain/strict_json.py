"""Bytes from outside become a typed value here, once: strict JSON, then the type's own rules.

msgspec alone keeps the last of two equal keys and raises RecursionError on deep nesting, and the json module takes NaN;
signed and security-relevant documents may have none of it.
"""

import json
import math
from typing import Any, Final, Never, TypeVar

import msgspec

from agent.domain.prepared import prepared
from agent.errors import BadJson, BadOrder, OrderError, TooLarge

MAX_DEPTH = 32

T = TypeVar("T")


def decode(
    data: bytes, kind: type[T], *, limit_bytes: int, what: str, error: type[OrderError] = BadOrder
) -> T:
    """The document as a value of type `kind`.

    Raises: TooLarge over `limit_bytes`; BadJson when it is not strict JSON; `error` when it is JSON of another shape.
    """
    tree = parse(data, limit_bytes=limit_bytes, what=what)
    try:
        return msgspec.convert(tree, prepared(kind))
    except (msgspec.ValidationError, ValueError) as cause:
        raise error(f"{what}: {cause}") from cause


def parse(data: bytes, *, limit_bytes: int, what: str) -> Any:
    """The document as plain dicts, lists and scalars; strictness as `decode`."""
    if len(data) > limit_bytes:
        raise TooLarge(f"{what} has {len(data)} bytes, the limit is {limit_bytes}")
    try:
        tree = _DECODER.decode(data.decode("utf-8", errors="strict"))
    except RecursionError as cause:
        raise BadJson(f"{what} nests deeper than {MAX_DEPTH}") from cause
    except ValueError as cause:  # JSONDecodeError, UnicodeDecodeError and our own refusals
        raise BadJson(f"{what} is not strict JSON: {cause}") from cause
    _check_tree(tree, what)
    return tree


def encode(value: Any) -> bytes:
    """The value as JSON bytes. They are signed and hashed as they are; nobody re-serialises."""
    return msgspec.json.encode(value)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return table


def _no_constant(name: str) -> Never:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is too large")
    return value


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_no_duplicates, parse_constant=_no_constant, parse_float=_finite
)


def _check_tree(tree: Any, what: str) -> None:
    """Refuse deep nesting, and text that UTF-8 cannot carry (a lone surrogate written as an escape)."""
    level = [tree]
    for _ in range(MAX_DEPTH + 1):
        below: list[Any] = []
        for node in level:
            match node:
                case dict():
                    _check_text("".join(node), what)
                    below.extend(node.values())
                case list():
                    below.extend(node)
                case str():
                    _check_text(node, what)
        if not below:
            return
        level = below
    raise BadJson(f"{what} nests deeper than {MAX_DEPTH}")


def _check_text(text: str, what: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as cause:
        raise BadJson(f"{what} holds text that is not UTF-8") from cause
