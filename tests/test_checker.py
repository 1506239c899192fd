"""The checker: an order that went well violates nothing, and each rule finds what breaks it."""

import msgspec
import pytest

from agent.domain.chain import plan
from agent.domain.ids import KeyId
from agent.domain.orders import ModelRef, SignedOrder
from agent.domain.receipts import Outcome, SignedReceipt, final_scores
from agent.domain.reports import ReportBody, ReportState, ResultBody, envelope_object, mean_of
from agent.domain.strict_json import encode
from tests.builders import NOW, consortium, digest_named
from tests.checker import ANYTHING, Issued, Run, Seen, Taken, Told, ToldResult, check

WORLD = consortium()
ORDER = WORLD.order(train=("a1", "b1"), test=("c2",))
CHAIN = WORLD.chain(ORDER, 3)
O1 = WORLD.orchestrator.keyid
A = WORLD.agent("a").keyid
MODEL = CHAIN[-1].receipt.model_out


def told(
    receipt: SignedReceipt | None,
    state: ReportState = ReportState.DONE,
    *,
    position: int = 0,
    n: int = 2,
    attempt: int = 1,
    reason: str | None = None,
    by: KeyId | None = None,
    order: SignedOrder = ORDER,
) -> Told:
    """A report as the orchestrator acknowledged it."""
    place = position if receipt is None else receipt.receipt.position
    body = ReportBody(
        order=order.digest,
        position=place,
        state=state,
        attempt=attempt,
        max_attempts=3,
        reason=reason,
        receipt=None if receipt is None else envelope_object(receipt.envelope),
        at=NOW,
    )
    reporter = by or (A if receipt is None else receipt.signer)
    return Told(O1, order.order.id, place, reporter, n, encode(body))


def result(receipts: tuple[SignedReceipt, ...] = CHAIN, **changes: object) -> ToldResult:
    """The order's result as the agent of its last place tells it."""
    scores = final_scores(receipts)
    maker = receipts[1].signer if len(receipts) > 1 else receipts[0].signer
    body = ResultBody(
        order=ORDER.digest,
        receipts=tuple(envelope_object(receipt.envelope) for receipt in receipts),
        scores=scores,
        mean=mean_of(scores),
        model=None
        if receipts[-1].receipt.model_out is None
        else ModelRef(receipts[-1].receipt.model_out, maker),
    )
    body = msgspec.structs.replace(body, **changes)
    return ToldResult(O1, ORDER.order.id, receipts[-1].signer, encode(body))


def stored(*receipts: SignedReceipt) -> dict[KeyId, set[object]]:
    return {
        WORLD.storage("a").keyid: {
            output.digest for receipt in receipts for output in receipt.receipt.outputs
        }
    }


def seen(**changes: object) -> Seen:
    """What is seen of an order that went well."""
    fields: dict[str, object] = {
        "orders": [Issued(ORDER.envelope, frozenset({A}), model=MODEL)],
        "reports": [told(receipt) for receipt in CHAIN],
        "results": [result()],
        "handoffs": [
            Taken(ORDER.digest, 1, WORLD.agent("b").keyid, CHAIN[0].digest),
            Taken(ORDER.digest, 1, WORLD.agent("b").keyid, CHAIN[0].digest),
            Taken(ORDER.digest, 2, WORLD.agent("c").keyid, CHAIN[1].digest),
        ],
        "runs": [Run(ORDER.order.id, position) for position in range(3)],
        "blobs": stored(*CHAIN),
        "locate": WORLD.locate,
    }
    return Seen(**(fields | changes))  # type: ignore[arg-type]


def rules(found: Seen) -> set[str]:
    return {violation.rule for violation in check(found, WORLD.roster)}


def issued(**changes: object) -> list[Issued]:
    fields: dict[str, object] = {"accepted_by": frozenset({A}), "model": MODEL}
    return [Issued(ORDER.envelope, **(fields | changes))]  # type: ignore[arg-type]


def test_an_order_that_went_well_violates_nothing() -> None:
    assert check(seen(), WORLD.roster) == ()


def test_an_order_that_nobody_accepted_need_not_end() -> None:
    found = seen(orders=issued(accepted_by=frozenset()), reports=[], results=[], handoffs=[], runs=[])

    assert rules(found) == set()


def test_an_accepted_order_without_an_end_is_found() -> None:
    assert rules(seen(reports=[told(CHAIN[0])], results=[])) == {"ended"}


def test_an_order_may_fail_only_for_what_was_done_to_it() -> None:
    failure = [told(None, ReportState.FAILED, position=0, reason="exit:3")]
    quiet = {"reports": failure, "results": [], "handoffs": [], "runs": []}

    assert rules(seen(**quiet)) == {"not-excused"}
    assert rules(seen(orders=issued(may_fail=frozenset({"exit:3"})), **quiet)) == set()
    assert rules(seen(orders=issued(may_fail=ANYTHING), **quiet)) == set()


def test_an_order_that_can_only_fail_and_has_a_result_is_found() -> None:
    assert rules(seen(orders=issued(must_fail=True))) == {"not-excused"}


def test_an_order_that_failed_and_has_a_result_is_found() -> None:
    failure = told(None, ReportState.FAILED, position=1, n=9, reason="late")
    found = seen(orders=issued(may_fail=ANYTHING), reports=[*map(told, CHAIN), failure])

    assert rules(found) == {"both-ends"}


@pytest.mark.parametrize(
    ("state", "changes"),
    [(ReportState.HANDOFF_EXPIRED, {}), (ReportState.CANCELLED, {"is_cancelled": True})],
)
def test_who_could_not_know_that_the_order_went_on_may_have_told_its_end(
    state: ReportState, changes: dict[str, bool]
) -> None:
    end = told(None, state, position=1, n=9, reason="late")

    assert rules(seen(orders=issued(may_fail=ANYTHING, **changes), reports=[*map(told, CHAIN), end])) == set()
    assert rules(seen(orders=issued(**changes), reports=[*map(told, CHAIN), end])) == {"not-excused"}


def test_a_report_on_an_order_that_was_never_issued_is_found() -> None:
    other = WORLD.order(id="00000000-0000-4000-8000-000000000001")

    assert rules(seen(reports=[*map(told, CHAIN), told(None, ReportState.STARTED, order=other)])) == {
        "unknown"
    }
    other = WORLD.order(train=("a1", "b1"), test=("c2",), rank=7)
    assert rules(seen(reports=[*map(told, CHAIN), told(None, ReportState.STARTED, order=other)])) == {
        "unknown"
    }


def test_a_second_receipt_for_a_place_is_found_and_a_second_model() -> None:
    same_model = WORLD.receipt(ORDER, (), attempt=2)
    other_model = WORLD.receipt(ORDER, (), model_out=digest_named("another"), outputs=())
    reports = [*map(told, CHAIN)]

    assert rules(seen(reports=[*reports, told(same_model, n=3, attempt=2)])) == {"one-receipt", "fenced"}
    assert rules(seen(reports=[*reports, told(other_model, n=3)])) == {"one-receipt", "one-model"}


def test_a_receipt_of_an_attempt_that_was_given_up_is_found() -> None:
    began = told(None, ReportState.STARTED, position=0, n=3, attempt=2)

    assert rules(seen(reports=[*map(told, CHAIN), began])) == {"fenced"}


def test_two_results_are_found() -> None:
    assert rules(seen(results=[result(), result()])) == {"one-result"}


def test_a_result_with_a_receipt_too_few_or_a_forged_one_is_found() -> None:
    forged = WORLD.receipt(ORDER, CHAIN[:1], key=WORLD.agent("a"))  # b holds that dataset
    chain = (CHAIN[0], forged, CHAIN[2])

    assert "whole" in rules(seen(results=[result(CHAIN[:2])]))
    assert "whole" in rules(seen(results=[result(chain)]))


def test_a_result_whose_scores_or_model_are_not_those_of_its_receipts_is_found() -> None:
    other = ModelRef(digest_named("another"), A)

    assert rules(seen(results=[result(scores={}, mean=None)])) == {"whole"}
    assert rules(seen(orders=issued(model=None), results=[result(model=other)])) == {"whole"}


def test_another_final_model_than_without_faults_is_found() -> None:
    assert rules(seen(orders=issued(model=digest_named("without faults")))) == {"same-model"}


def test_a_result_told_by_another_agent_than_the_last_is_found() -> None:
    told_by_a = ToldResult(O1, ORDER.order.id, A, result().body)

    assert rules(seen(results=[told_by_a])) == {"whole"}


def test_a_receipt_that_was_never_reported_is_found() -> None:
    assert rules(seen(reports=[told(CHAIN[0]), told(CHAIN[2])])) == {"reported"}


def test_an_output_that_lies_nowhere_is_found_and_none_is_missed_where_nobody_looked() -> None:
    assert rules(seen(blobs=stored(*CHAIN[:2]))) == {"stored"}
    assert rules(seen(blobs=None)) == set()


def test_a_place_taken_by_two_agents_or_after_two_receipts_is_found() -> None:
    by_c = Taken(ORDER.digest, 1, WORLD.agent("c").keyid, CHAIN[0].digest)
    after_another = Taken(ORDER.digest, 1, WORLD.agent("b").keyid, digest_named("another receipt"))
    good = seen().handoffs

    assert rules(seen(handoffs=[*good, by_c])) == {"one-handoff"}
    assert rules(seen(handoffs=[*good, after_another])) == {"one-handoff"}


def test_a_task_that_ran_to_its_end_twice_is_found_unless_its_work_was_lost() -> None:
    twice = [Run(ORDER.order.id, 0), Run(ORDER.order.id, 0)]
    excused = [Run(ORDER.order.id, 0, times=2), Run(ORDER.order.id, 0)]

    assert rules(seen(runs=twice)) == {"once-trained"}
    assert rules(seen(runs=excused)) == set()


@pytest.mark.parametrize(
    ("what", "rule"), [("alarms", "no-alarm"), ("crashes", "no-crash"), ("left", "clean")]
)
def test_an_alarm_a_crash_and_a_leftover_are_found(what: str, rule: str) -> None:
    assert rules(seen(**{what: ["a: container dc-x"]})) == {rule}


def test_what_cannot_be_read_is_found() -> None:
    assert "whole" in rules(seen(results=[ToldResult(O1, ORDER.order.id, A, b"{}")]))


def test_the_failed_receipt_of_a_task_ends_its_order() -> None:
    failed = WORLD.receipt(
        ORDER, (), outcome=Outcome.FAILED, reason="oom", outputs=(), model_out=None, score=None
    )
    found = seen(
        orders=issued(may_fail=frozenset({"oom"})),
        reports=[told(failed, ReportState.FAILED, reason="oom")],
        results=[],
        handoffs=[],
        runs=[],
    )

    assert len(plan(ORDER.order)) == 3
    assert rules(found) == set()
