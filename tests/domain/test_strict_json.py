"""Bytes from outside: what strict JSON takes, and what it refuses with a code and never with a crash."""

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct

from agent.domain.strict_json import MAX_DEPTH, decode, encode, parse
from agent.errors import BadJson, BadOrder, BadQuery, TooLarge

LIMIT = 1 << 20

FINITE = st.floats(allow_nan=False, allow_infinity=False)
TEXT = st.text(st.characters(codec="utf-8"))
TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | FINITE | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)


class Point(Struct, frozen=True, forbid_unknown_fields=True):
    """A value to parse into."""

    x: int
    y: int = 0


def read(data: bytes, *, limit_bytes: int = LIMIT, what: str = "the document") -> Any:
    return parse(data, limit_bytes=limit_bytes, what=what)


@given(TREES)
def test_whatever_json_can_say_is_read(tree: Any) -> None:
    assert read(json.dumps(tree).encode()) == tree


@given(TREES)
def test_what_we_write_is_read_back(tree: Any) -> None:
    assert read(encode(tree)) == json.loads(encode(tree))


@given(st.binary(max_size=200))
def test_no_bytes_at_all_do_more_than_be_refused(data: bytes) -> None:
    with suppress(BadJson):
        read(data)


@given(st.text(alphabet='[]{}",:0123456789.eE+-truefalsn\\u \n', max_size=60))
def test_no_text_that_looks_like_json_does_more_than_be_refused(text: str) -> None:
    try:
        tree = read(text.encode())
    except BadJson:
        return
    assert tree == json.loads(text)


@pytest.mark.parametrize(
    "data",
    [
        b'{"a": 1, "a": 1}',
        b'{"a": {"b": 1, "b": 2}}',
        b'[{"a": 1, "\\u0061": 2}]',
        b"NaN",
        b"[Infinity]",
        b"[-Infinity]",
        b"1e400",
        b'{"x": -1e999}',
        b"",
        b"  ",
        b"{",
        b"[1,]",
        b"{'a': 1}",
        b"01",
        b"[1] [2]",
        b"// one\n1",
        b'"\xff"',
        b'"\xc0\x80"',
        b'"\xed\xa0\x80"',
        b"\xef\xbb\xbf{}",
        b'"\\ud800"',
        b'{"\\udfff": 1}',
        b'"a\nb"',
        "[1]".encode("utf-16"),
        b"9" * 5000,
    ],
    ids=repr,
)
def test_what_is_not_strict_is_refused(data: bytes) -> None:
    with pytest.raises(BadJson):
        read(data)


@pytest.mark.parametrize("shape", [b"[%s]", b'{"a":%s}'])
def test_nesting_is_taken_to_its_limit_and_no_further(shape: bytes) -> None:
    def nested(depth: int) -> bytes:
        document = b"1"
        for _ in range(depth):
            document = shape % document
        return document

    read(nested(MAX_DEPTH))
    with pytest.raises(BadJson, match="nests deeper"):
        read(nested(MAX_DEPTH + 1))


@pytest.mark.parametrize("bracket", [b"[", b'{"a":'])
def test_a_hundred_thousand_brackets_are_refused(bracket: bytes) -> None:
    with pytest.raises(BadJson):
        read(bracket * 100_000)


def test_the_size_is_judged_before_the_content() -> None:
    with pytest.raises(TooLarge, match="11 bytes, the limit is 10"):
        read(b"[" * 11, limit_bytes=10)
    assert read(b" " * 9 + b"1", limit_bytes=10) == 1


def test_the_message_names_the_document() -> None:
    with pytest.raises(BadJson, match="the order is not strict JSON"):
        read(b"{", what="the order")


def test_a_document_becomes_a_value() -> None:
    assert decode(b'{"x": 1}', Point, limit_bytes=LIMIT, what="the point") == Point(1)


@pytest.mark.parametrize(
    "data", [b'{"x": 1, "z": 2}', b"{}", b'{"x": "1"}', b'{"x": 1.5}', b'{"x": true}', b"[1, 2]", b"null"]
)
def test_a_document_of_another_shape_is_refused(data: bytes) -> None:
    with pytest.raises(BadOrder, match="the point: "):
        decode(data, Point, limit_bytes=LIMIT, what="the point")


def test_the_caller_says_which_error_another_shape_is() -> None:
    with pytest.raises(BadQuery):
        decode(b"[]", Point, limit_bytes=LIMIT, what="the query", error=BadQuery)
    with pytest.raises(BadJson):
        decode(b"[", Point, limit_bytes=LIMIT, what="the query", error=BadQuery)
