"""What a job printed, sealed: whole for its agent, nothing for anybody else, and of that very run only."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.domain.ids import JobId
from agent.errors import BadSeal
from agent.trust.job_log import MAGIC, SALT_BYTES, open_log, seal_log
from tests.builders import key_of

JOB = JobId("5f0d2c9e-0000-4000-8000-000000000001.0")
KEY = key_of("agent-a")
PRINTED = b"patient 4711 is ill\n" * 40


def sealed() -> bytes:
    return seal_log(PRINTED, KEY, job=JOB, attempt=1, run="train")


@given(st.binary(max_size=2000))
def test_the_agent_opens_what_it_sealed(printed: bytes) -> None:
    opened = open_log(
        seal_log(printed, KEY, job=JOB, attempt=3, run="perf"), KEY, job=JOB, attempt=3, run="perf"
    )

    assert opened == printed


def test_nothing_of_it_is_to_be_seen_and_no_two_look_alike() -> None:
    one, two = sealed(), sealed()

    assert b"4711" not in one
    assert one != two
    assert one[len(MAGIC) + SALT_BYTES :] != two[len(MAGIC) + SALT_BYTES :]


def test_another_agent_does_not_open_it() -> None:
    with pytest.raises(BadSeal, match="another key"):
        open_log(sealed(), key_of("agent-b"), job=JOB, attempt=1, run="train")


@pytest.mark.parametrize(
    ("job", "attempt", "run"),
    [(JobId(JOB[:-1] + "1"), 1, "train"), (JOB, 2, "train"), (JOB, 1, "perf")],
    ids=["job", "attempt", "run"],
)
def test_it_does_not_open_as_the_output_of_another_run(job: JobId, attempt: int, run: str) -> None:
    with pytest.raises(BadSeal):
        open_log(sealed(), KEY, job=job, attempt=attempt, run=run)


@pytest.mark.parametrize("place", [len(MAGIC), len(MAGIC) + SALT_BYTES, -1], ids=["salt", "output", "tag"])
def test_one_flipped_bit_is_refused(place: int) -> None:
    altered = bytearray(sealed())
    altered[place] ^= 1

    with pytest.raises(BadSeal):
        open_log(bytes(altered), KEY, job=JOB, attempt=1, run="train")


@pytest.mark.parametrize("length", [0, 3, len(MAGIC), len(MAGIC) + 5, len(MAGIC) + SALT_BYTES, -1])
def test_a_part_of_it_is_refused(length: int) -> None:
    with pytest.raises(BadSeal):
        open_log(sealed()[:length], KEY, job=JOB, attempt=1, run="train")


def test_what_was_never_sealed_is_not_taken_for_it() -> None:
    with pytest.raises(BadSeal, match="not sealed"):
        open_log(PRINTED, KEY, job=JOB, attempt=1, run="train")


def test_what_is_derived_differs_by_salt_purpose_and_key() -> None:
    derived = {
        key.derive(salt, purpose)
        for key in (KEY, key_of("agent-b"))
        for salt in (b"1" * 32, b"2" * 32)
        for purpose in (b"a", b"b")
    }

    assert len(derived) == 8
    assert all(len(one) == 32 for one in derived)
