"""The nonce of a request under way: one has it, and it is kept before anybody is answered."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace

from agent.api.claims import Claims
from agent.domain.nonces import Nonce
from agent.errors import LedgerUnavailable, ReplayedRequest
from agent.ports.ledger import JobQuery
from agent.ports.ledger_sqlalchemy import open_ledger
from tests.builders import NOW, key_of
from tests.fakes.ledger import MemoryLedger
from tests.ports.ledger_stage import arrival, fresh_ledger, order_named

SOON_S = 20.0
THREADS = 8
KEYID = key_of("o1").keyid
NONCE = Nonce(keyid=KEYID, text="n" * 20, keep_until=NOW + timedelta(minutes=2))


def claims_on(ledger: MemoryLedger) -> Claims:
    return Claims(ledger.knows_nonce, ledger.remember_nonce)


def test_while_one_request_has_a_nonce_another_one_with_it_is_refused() -> None:
    claims = claims_on(MemoryLedger())
    claims.take(NONCE, NOW)

    with pytest.raises(ReplayedRequest):
        claims.take(NONCE, NOW)


def test_a_nonce_that_the_handler_did_not_keep_is_kept_when_the_claim_is_settled() -> None:
    ledger = MemoryLedger()
    claims = claims_on(ledger)

    claims.settle(claims.take(NONCE, NOW), NOW)

    assert ledger.knows_nonce(KEYID, NONCE.text, NOW)
    with pytest.raises(ReplayedRequest):
        claims.take(NONCE, NOW)


def test_a_nonce_that_went_with_what_was_recorded_is_not_written_again() -> None:
    ledger = MemoryLedger()
    claims = claims_on(ledger)
    claim = claims.take(NONCE, NOW)
    ledger.remember_nonce(KEYID, NONCE.text, NONCE.keep_until, NOW)
    claim.is_kept = True

    claims.settle(claim, NOW)

    assert claim.is_settled


def test_where_another_process_was_faster_the_request_is_a_replay() -> None:
    ledger = MemoryLedger()
    claims = claims_on(ledger)
    claim = claims.take(NONCE, NOW)
    ledger.remember_nonce(KEYID, NONCE.text, NONCE.keep_until, NOW)

    with pytest.raises(ReplayedRequest):
        claims.settle(claim, NOW)


def test_a_ledger_that_is_away_leaves_no_claim_behind() -> None:
    ledger = MemoryLedger()
    claims = claims_on(ledger)
    ledger.is_broken = True
    with pytest.raises(LedgerUnavailable):
        claims.take(NONCE, NOW)
    ledger.is_broken = False
    claim = claims.take(NONCE, NOW)
    ledger.is_broken = True
    with pytest.raises(LedgerUnavailable):
        claims.settle(claim, NOW)
    ledger.is_broken = False

    claims.settle(claims.take(NONCE, NOW), NOW)

    assert ledger.knows_nonce(KEYID, NONCE.text, NOW)


def test_of_many_at_once_in_two_processes_one_is_taken(tmp_path: Path) -> None:
    """Two memories of claims over one file: what two processes have."""
    with closing(fresh_ledger(tmp_path / "ledger")) as one, closing(open_ledger(one._file.path)) as two:
        processes = [(ledger, Claims(ledger.knows_nonce, ledger.remember_nonce)) for ledger in (one, two)]
        meeting = threading.Barrier(2 * THREADS)

        def send(number: int) -> bool:
            ledger, claims = processes[number % 2]
            came = replace(arrival(order_named(f"order {number}")), nonce=NONCE)
            meeting.wait(SOON_S)
            try:
                claim = claims.take(NONCE, NOW)
                try:
                    claim.is_kept = ledger.admit(came, NOW, max_attempts=1, queue_limit=100).keeps_nonce
                finally:
                    claims.settle(claim, NOW)
            except ReplayedRequest:
                return False
            return True

        with ThreadPoolExecutor(meeting.parties) as pool:
            taken = list(pool.map(send, range(meeting.parties)))

        assert sum(taken) == 1
        assert [job.order_id for job in one.jobs(JobQuery())] == [
            order_named(f"order {taken.index(True)}").order.id
        ]
