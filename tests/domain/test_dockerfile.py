"""What of a Dockerfile is taken, and everything that builders could read in two ways, or that leads elsewhere."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.domain.dockerfile import (
    MAX_BYTES,
    Cmd,
    Copy,
    EntryPoint,
    Env,
    From,
    Label,
    Run,
    User,
    WorkDir,
    parse_dockerfile,
    value,
)
from agent.errors import BadBuild


def read(text: str) -> list[object]:
    return list(parse_dockerfile(text.encode()))


def test_a_dockerfile_of_2017_is_read() -> None:
    told = read(
        """
# An algorithm
FROM morpheo/base:1.0
MAINTAINER somebody
run pip install --no-index /wheels/*.whl && \\
    # nothing is fetched
    rm -r /wheels
ENV A=1 B="two words" C=$A
ENV OLD the rest  of the line
COPY a.py "b c.py" /app/
ADD ["data", "/data"]
WORKDIR /app
LABEL org.example.x='y z'
EXPOSE 80
USER 1000
ENTRYPOINT ["python3", "a.py"]
CMD echo hi
"""
    )

    assert told == [
        From("morpheo/base:1.0"),
        Run(("/bin/sh", "-c", "pip install --no-index /wheels/*.whl &&     rm -r /wheels")),
        Env((("A", "1"), ("B", '"two words"'), ("C", "$A"))),
        Env((("OLD", "the rest  of the line"),)),
        Copy(("a.py", '"b c.py"'), "/app/"),
        Copy(("data",), "/data", is_add=True),
        WorkDir("/app"),
        Label((("org.example.x", "'y z'"),)),
        User("1000"),
        EntryPoint(("python3", "a.py")),
        Cmd(("/bin/sh", "-c", "echo hi")),
    ]


BAD = {
    "nothing": "",
    "only comments": "# nothing\n",
    "no FROM": "RUN a",
    "a FROM too late": "ENV A=1\nFROM a",
    "two stages": "FROM a\nFROM b",
    "a stage with a name": "FROM a AS b",
    "a platform": "FROM --platform=linux/arm64 a",
    "a base by variable": "FROM $BASE",
    "an argument": "ARG A\nFROM a",
    "an argument later": "FROM a\nARG A",
    "ONBUILD": "FROM a\nONBUILD RUN x",
    "VOLUME": "FROM a\nVOLUME /data",
    "SHELL": 'FROM a\nSHELL ["/bin/bash", "-c"]',
    "HEALTHCHECK": "FROM a\nHEALTHCHECK CMD x",
    "another word": "FROM a\nINSTALL numpy",
    "a syntax": "# syntax=docker/dockerfile:1\nFROM a",
    "a syntax, spelt otherwise": "#  SyNtAx = docker/dockerfile:1\nFROM a",
    "an escape": "# escape=`\nFROM a",
    "a check": "FROM a\n# check=skip=all\nRUN x",
    "a mount": "FROM a\nRUN --mount=type=secret,id=x cat /run/secrets/x",
    "a network": "FROM a\nRUN --network=host curl x",
    "a security": "FROM a\nRUN --security=insecure x",
    "another stage": "FROM a\nCOPY --from=b /x /y",
    "another image": "FROM a\nCOPY --from=registry.example/alpine /x /y",
    "an owner": "FROM a\nCOPY --chown=0:0 x /y",
    "a URL": "FROM a\nADD http://example.org/x /y",
    "a URL of another scheme": "FROM a\nADD ftp://example.org/x /y",
    "a quoted URL": 'FROM a\nADD "https://example.org/x" /y',
    "a URL in a list": 'FROM a\nADD ["https://example.org/x", "/y"]',
    "a repository": "FROM a\nADD git@example.org:x.git /y",
    "a URL that is copied": "FROM a\nCOPY https://example.org/x /y",
    "a heredoc": "FROM a\nRUN <<EOF\nid\nEOF",
    "a heredoc later": "FROM a\nRUN cat <<-'EOF' > x",
    "a heredoc as a file": "FROM a\nCOPY <<x /y\nid\nx",
    "a list that is none": 'FROM a\nRUN ["a", b]',
    "a list of numbers": "FROM a\nRUN [1]",
    "an empty list": "FROM a\nENTRYPOINT []",
    "an empty word": 'FROM a\nENTRYPOINT [""]',
    "an instruction that does not end": "FROM a\nRUN x \\",
    "an empty line within": "FROM a\nRUN x \\\n\n y",
    "an instruction of nothing": "FROM a\nRUN",
    "one word for COPY": "FROM a\nCOPY x",
    "a quote that stays open": 'FROM a\nENV A="x',
    "a variable's odd name": "FROM a\nENV A-B=x",
    "NAME and NAME=VALUE": "FROM a\nENV A=1 B",
    "two folders": "FROM a\nWORKDIR /a /b",
    "control characters": "FROM a\nRUN x\x1b[2J",
    "a byte order mark": "\ufeffFROM a",
    "too much": "FROM a\n" + "# x\n" * MAX_BYTES,
    "too many": "FROM a\n" + "RUN x\n" * 201,
}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD)
def test_what_could_be_read_in_two_ways_or_leads_elsewhere_is_refused(text: str) -> None:
    with pytest.raises(BadBuild) as refusal:
        read(text)

    assert str(refusal.value).isprintable()


def test_a_refusal_names_the_line() -> None:
    with pytest.raises(BadBuild, match="line 3: 'VOLUME' is not taken"):
        read("FROM a\n# x\nVOLUME /x")


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("plain", "plain"),
        ("$A", "1"),
        ("${A}b$A", "1b1"),
        ("$NOT_THERE.", "."),
        ("'$A'", "$A"),
        ('"$A b"', "1 b"),
        (r"\$A", "$A"),
        (r"a\ b", "a b"),
        (r'"a\"b\n"', r"a\"b\n".replace(r"\"", '"')),
        ("a'b c'd", "ab cd"),
    ],
)
def test_words_are_read_as_a_shell_would(raw: str, expected: str) -> None:
    assert value(raw, {"A": "1"}) == expected


@pytest.mark.parametrize("raw", ["${A:-x}", "$", "$(id)", "${A", "'a"])
def test_other_expansions_are_refused(raw: str) -> None:
    with pytest.raises(BadBuild):
        value(raw, {"A": "1"})


@given(st.binary(max_size=200))
def test_no_bytes_at_all_do_anything_but_parse_or_be_refused(content: bytes) -> None:
    try:
        told = parse_dockerfile(b"FROM a\n" + content)
    except BadBuild:
        return
    assert isinstance(told[0], From)
