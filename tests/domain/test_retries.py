"""Which errors give a task another attempt."""

import pytest

from agent.domain.retries import may_retry
from agent.errors import BadOutput, LedgerUnavailable, NoSpace, PolicyRefused, StorageUnavailable


def test_what_may_pass_by_itself_is_tried_again_while_attempts_are_left() -> None:
    assert may_retry(StorageUnavailable("away"), (), 1, 3)
    assert may_retry(StorageUnavailable("away"), ["storage-unavailable", "storage-unavailable"], 3, 4)
    assert not may_retry(StorageUnavailable("away"), ["storage-unavailable", "storage-unavailable"], 3, 3)


@pytest.mark.parametrize("error", [BadOutput("a link"), PolicyRefused("not listed")])
def test_a_job_s_own_fault_and_a_refusal_are_not_tried_again(error: BadOutput | PolicyRefused) -> None:
    assert not may_retry(error, (), 1, 3)


def test_a_full_disk_gives_one_retry_whatever_happened_in_between() -> None:
    full = NoSpace("full")

    assert may_retry(full, (), 1, 5)
    assert may_retry(full, ["storage-unavailable", "digest-mismatch"], 3, 5)
    assert not may_retry(full, ["no-space"], 2, 5)
    assert not may_retry(full, ["no-space", "storage-unavailable"], 3, 5)


def test_another_error_after_a_full_disk_has_its_own_count() -> None:
    assert may_retry(LedgerUnavailable("locked"), ["no-space"], 2, 5)
