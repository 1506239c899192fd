"""The downloads of test_https.py once more, with the hash in its thread as for a large file."""

import pytest

from agent.ports import storage_https_download
from tests.ports.test_https import (  # noqa: F401 - collected here too
    test_a_download_goes_on_when_storage_begins_anew,
    test_a_download_that_breaks_after_its_last_byte_is_whole,
    test_a_download_that_breaks_is_taken_up_where_it_broke,
    test_a_download_that_brings_nothing_new_is_given_up,
    test_a_download_that_cannot_begin_is_given_up_at_once,
    test_a_download_that_does_not_end_is_refused_at_its_size,
    test_a_download_that_must_come_in_time_ends_though_storage_goes_on_dripping,
    test_a_download_that_other_bytes_complete_is_refused,
    test_a_file_that_storage_does_not_hold_is_missing,
    test_a_range_that_was_not_asked_for_is_refused,
    town,
)


@pytest.fixture(autouse=True)
def relayed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file counts as large."""
    monkeypatch.setattr(storage_https_download, "RELAYED_BYTES", 0)
