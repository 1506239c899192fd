"""Fingerprints: what is misheard is found before two keys are compared."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.domain.ids import KeyId
from agent.errors import WrongFingerprint
from agent.trust.fingerprints import DIGITS, GROUPS, check_fingerprint, fingerprint
from tests.builders import key_of

KEYID = key_of("agent-a").keyid
TOLD = fingerprint(KEYID)

keyids = st.integers(0, (1 << 256) - 1).map(lambda n: KeyId(f"{n:064x}"))


def test_a_fingerprint_is_ten_groups_of_five_digits() -> None:
    assert [len(group) for group in TOLD.split(" ")] == [DIGITS + 1] * GROUPS
    assert TOLD.replace(" ", "").isdigit()


def test_a_fingerprint_never_changes() -> None:
    assert (
        fingerprint(KeyId("0123456789abcdef" * 4))
        == "42265 72337 55710 01125 85755 07808 06797 88998 11925 62557"
    )


@given(keyids)
def test_every_key_is_recognised_by_its_fingerprint(keyid: KeyId) -> None:
    check_fingerprint(keyid, fingerprint(keyid))


@pytest.mark.parametrize("told", [TOLD, TOLD.replace(" ", "-"), TOLD.replace(" ", ""), f"\n {TOLD}\t", KEYID])
def test_how_it_is_written_down_does_not_matter(told: str) -> None:
    check_fingerprint(KEYID, told)


@given(keyids, st.integers(0, GROUPS * (DIGITS + 1) - 1), st.integers(1, 9))
def test_one_wrong_digit_is_found_and_its_group_is_named(keyid: KeyId, place: int, by: int) -> None:
    plain = fingerprint(keyid).replace(" ", "")
    wrong = plain[:place] + str((int(plain[place]) + by) % 10) + plain[place + 1 :]

    with pytest.raises(WrongFingerprint, match=f"group {place // (DIGITS + 1) + 1},"):
        check_fingerprint(keyid, wrong)


@given(keyids, st.integers(0, GROUPS - 1), st.integers(0, DIGITS - 1))
def test_two_digits_that_changed_places_are_found(keyid: KeyId, group: int, place: int) -> None:
    groups = fingerprint(keyid).split(" ")
    told = list(groups[group])
    told[place], told[place + 1] = told[place + 1], told[place]
    if "".join(told) == groups[group]:
        return
    groups[group] = "".join(told)

    with pytest.raises(WrongFingerprint, match=f"group {group + 1},"):
        check_fingerprint(keyid, " ".join(groups))


@given(keyids, st.integers(0, GROUPS - 1), st.integers(0, GROUPS - 1))
def test_two_groups_that_changed_places_are_found(keyid: KeyId, one: int, other: int) -> None:
    groups = fingerprint(keyid).split(" ")
    groups[one], groups[other] = groups[other], groups[one]
    if " ".join(groups) == fingerprint(keyid):
        return

    with pytest.raises(WrongFingerprint):
        check_fingerprint(keyid, " ".join(groups))


@pytest.mark.parametrize("told", ["", TOLD[:-1], f"{TOLD} 1", KEYID[:-1], "aaaaa " * 10, "１" * 50])
def test_what_is_no_fingerprint_is_refused(told: str) -> None:
    with pytest.raises(WrongFingerprint):
        check_fingerprint(KEYID, told)


@pytest.mark.parametrize("told", [fingerprint(key_of("thief").keyid), key_of("thief").keyid])
def test_that_of_another_key_is_refused(told: str) -> None:
    with pytest.raises(WrongFingerprint, match="another key"):
        check_fingerprint(KEYID, told)
