"""What every ledger keeps, and for how long: run on the one in memory and on SQLAlchemy over a real SQLite file."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.domain.jobs import Job, JobEvent
from agent.ports.ledger import ATTEMPT_FAILED, Ledger
from tests.fakes.ledger import MemoryLedger
from tests.ports.ledger_stage import LEASE, at, fresh_ledger, running


@pytest.fixture(params=["memory", "sqlalchemy"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    made: Ledger = MemoryLedger() if request.param == "memory" else fresh_ledger(tmp_path / "ledger")
    yield made
    made.close()


# ------------------------------------------------------------------ how attempts ended


def end_badly(ledger: Ledger, job: Job, code: str) -> Job:
    """This attempt ended with an error, and the next one began."""
    tell_attempt(ledger, job, code)
    again = ledger.move(job, JobEvent.RETRY, at(job.attempt), reason=code)
    return ledger.start(again, at(job.attempt), worker="w1", lease_until=at(job.attempt) + LEASE)


def tell_attempt(ledger: Ledger, job: Job, code: str) -> None:
    ledger.record_event(
        ATTEMPT_FAILED,
        at(job.attempt),
        order_id=job.order_id,
        position=job.position,
        values={"attempt": job.attempt, "code": code},
    )


def test_a_first_attempt_has_nothing_before_it(ledger: Ledger) -> None:
    job = running(ledger)
    tell_attempt(ledger, job, "no-space")

    assert ledger.codes_before(job) == ()


def test_the_codes_of_earlier_attempts_are_told_in_their_order(ledger: Ledger) -> None:
    job = end_badly(ledger, end_badly(ledger, running(ledger), "no-space"), "storage-unavailable")
    other = end_badly(ledger, running(ledger, position=1), "digest-mismatch")

    assert ledger.codes_before(job) == ("no-space", "storage-unavailable")
    assert ledger.codes_before(other) == ("digest-mismatch",)


def test_an_attempt_that_was_taken_up_again_counts_once(ledger: Ledger) -> None:
    """Its worker died between telling how it ended and moving the job: the next one tells it again."""
    job = running(ledger)
    tell_attempt(ledger, job, "no-space")
    job = end_badly(ledger, job, "no-space")

    assert ledger.codes_before(job) == ("no-space",)
