"""The devkit's orchestrator beyond the contract suite: what it does not acknowledge, its alarms, what it tells."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from agent.devkit.issuing import cancel, issue, send_again
from agent.devkit.publishing import publish_dataset
from agent.domain.chain import TaskKind
from agent.domain.ids import KeyId, OrderId, wire_time
from agent.domain.orders import ModelRef, SignedOrder
from agent.domain.receipts import Outcome, ReceiptTask, SignedReceipt, final_scores
from agent.domain.reports import (
    MAX_REPORT_BYTES,
    ReportBody,
    ReportState,
    ResultBody,
    SignedRefusal,
    envelope_object,
    mean_of,
)
from agent.domain.standings import PAGE_ORDERS, OrderState, parse_standing
from agent.domain.strict_json import decode, encode
from agent.errors import BadAnswer, BrokenLink, NotFound, PeerRefused, PeerUnavailable, RecordConflict
from agent.ports.peers_https import HttpsPeers
from agent.trust.roster import Roster, RosterEntry
from agent.trust.shares import ShareKeyPair, ShareRequest
from agent.trust.signed import open_cancellation, sign_receipt
from tests.builders import NOW, consortium, dataset, failed, key_of, learnuplet, preduplet, uuid_of
from tests.devkit.sealed import seal
from tests.devkit.town import Town, open_town

WORLD = consortium()
A, B, C = (key_of(f"agent-{hospital}").keyid for hospital in "abc")


@pytest.fixture
def town(tmp_path: Path) -> Iterator[Town]:
    with open_town(tmp_path, "o1") as town:
        yield town


@pytest.fixture
def order(town: Town) -> SignedOrder:
    """An order of o1: a, b, c, a train, c tests."""
    order = WORLD.order()
    town.books["o1"].record_order(order, NOW)
    return order


def entry(town: Town, name: str) -> RosterEntry:
    found = town.roster.find(key_of(name).keyid)
    assert found is not None
    return found


def send(
    town: Town, who: str, method: str, target: str, body: bytes | None = None, *, is_signed: bool = True
) -> Any:
    content = town.client(who).send(entry(town, "o1"), method, target, body, is_answer_signed=is_signed)
    return json.loads(content)


def report_on(order: SignedOrder, position: int, state: ReportState, **more: Any) -> ReportBody:
    fields: dict[str, Any] = {"attempt": 1, "max_attempts": 3, "at": wire_time(NOW)}
    receipt = more.pop("receipt", None)
    if receipt is not None:
        fields["receipt"] = envelope_object(receipt.envelope)
    return ReportBody(order=order.digest, position=position, state=state, **(fields | more))


def tell(
    town: Town, who: str, order: SignedOrder, report: ReportBody, n: int = 1, position: int | None = None
) -> Any:
    place = report.position if position is None else position
    target = f"/v1/orders/{order.order.id}/tasks/{place}/reports/{n}"
    return send(town, who, "PUT", target, encode(report))


def refused_as(code: str) -> Any:
    return pytest.raises(PeerRefused, match=rf"\({code}\)")


def state_of(town: Town, order: SignedOrder) -> tuple[OrderState, int, KeyId | None]:
    issued = town.books["o1"].order(order.order.id)
    assert issued is not None
    return issued.state, issued.position, issued.holder


# ------------------------------------------------------------------ reports


def test_an_order_is_followed_from_agent_to_agent(town: Town, order: SignedOrder) -> None:
    receipts = WORLD.chain(order, 2)

    tell(town, "agent-a", order, report_on(order, 0, ReportState.STARTED))
    assert state_of(town, order) == (OrderState.OPEN, 0, A)
    tell(
        town, "agent-a", order, report_on(order, 0, ReportState.DONE, receipt=receipts[0], next_agent=B), n=2
    )
    assert state_of(town, order) == (OrderState.OPEN, 1, B)
    tell(
        town, "agent-b", order, report_on(order, 1, ReportState.DONE, receipt=receipts[1], next_agent=C), n=1
    )
    assert state_of(town, order) == (OrderState.OPEN, 2, C)


def test_a_report_that_was_overtaken_moves_nothing_back(town: Town, order: SignedOrder) -> None:
    receipts = WORLD.chain(order, 2)
    tell(town, "agent-b", order, report_on(order, 1, ReportState.DONE, receipt=receipts[1], next_agent=C))

    tell(town, "agent-a", order, report_on(order, 0, ReportState.STARTED))
    tell(
        town, "agent-a", order, report_on(order, 0, ReportState.DONE, receipt=receipts[0], next_agent=B), n=2
    )

    assert state_of(town, order) == (OrderState.OPEN, 2, C)


def test_a_failed_task_ends_its_order(town: Town, order: SignedOrder) -> None:
    receipt = WORLD.receipt(order, ())
    broken = sign_receipt(failed(receipt.receipt), key_of("agent-a"))

    tell(town, "agent-a", order, report_on(order, 0, ReportState.FAILED, receipt=broken, reason="oom"))

    issued = town.books["o1"].order(order.order.id)
    assert issued is not None
    assert (issued.state, issued.reason) == (OrderState.FAILED, "oom")


def test_a_cancelled_order_is_over_and_a_result_that_was_under_way_wins(
    town: Town, order: SignedOrder
) -> None:
    tell(town, "agent-a", order, report_on(order, 0, ReportState.CANCELLED, reason="cancelled"))
    issued = town.books["o1"].order(order.order.id)
    assert issued is not None
    is_open = town.books["o1"].is_open(order, 0)

    receipts = WORLD.chain(order, 5)
    town.books["o1"].take_result(order.order.id, b"{}", receipts, NOW)

    assert (issued.state, issued.reason) == (OrderState.CANCELLED, "cancelled")
    assert not is_open
    assert state_of(town, order)[0] is OrderState.DONE


@pytest.mark.parametrize(
    "state",
    [ReportState.CANCELLED, ReportState.FAILED, ReportState.HANDOFF_REFUSED, ReportState.HANDOFF_EXPIRED],
)
def test_an_agent_that_has_nothing_to_do_with_a_place_is_heard_and_moves_nothing(
    town: Town, order: SignedOrder, state: ReportState
) -> None:
    tell(town, "agent-b", order, report_on(order, 0, ReportState.STARTED))
    tell(town, "agent-b", order, report_on(order, 0, state, reason="order-expired"), n=2)

    assert state_of(town, order) == (OrderState.OPEN, 0, None)
    assert len(town.books["o1"].reports(order.order.id)) == 2


def test_an_agent_that_was_sent_an_order_ends_it_though_the_dataset_lies_elsewhere(
    town: Town, order: SignedOrder
) -> None:
    town.books["o1"].note_holder(order.order.id, B)

    tell(town, "agent-b", order, report_on(order, 0, ReportState.FAILED, reason="order-expired"))

    assert state_of(town, order)[0] is OrderState.FAILED


def test_an_agent_that_handed_an_order_on_does_not_end_it_any_more(town: Town, order: SignedOrder) -> None:
    town.books["o1"].note_holder(order.order.id, B)
    tell(town, "agent-a", order, report_on(order, 0, ReportState.STARTED))

    tell(town, "agent-b", order, report_on(order, 0, ReportState.HANDOFF_EXPIRED, next_agent=A))

    assert state_of(town, order) == (OrderState.OPEN, 0, A)


def test_two_agents_count_their_reports_of_one_place_apart(town: Town, order: SignedOrder) -> None:
    """A place is reported on by who hands it off and by who runs it."""
    tell(town, "agent-b", order, report_on(order, 0, ReportState.ATTEMPT), n=1)
    tell(town, "agent-a", order, report_on(order, 0, ReportState.STARTED), n=1)

    assert len(town.books["o1"].reports(order.order.id)) == 2


def test_a_report_of_an_order_of_somebody_else_is_refused(town: Town) -> None:
    order = WORLD.order()

    with refused_as("not-found"):
        tell(town, "agent-a", order, report_on(order, 0, ReportState.STARTED))


def test_only_agents_report(town: Town, order: SignedOrder) -> None:
    with refused_as("wrong-role"):
        tell(town, "owner", order, report_on(order, 0, ReportState.STARTED))


def test_a_report_of_another_place_or_order_than_its_path_is_refused(town: Town, order: SignedOrder) -> None:
    other = WORLD.order(rank=7)

    with refused_as("bad-report"):
        tell(town, "agent-a", order, report_on(order, 0, ReportState.STARTED), position=1)
    with refused_as("bad-report"):
        tell(town, "agent-a", order, report_on(order, 5, ReportState.STARTED))
    with refused_as("bad-report"):
        tell(town, "agent-a", order, report_on(other, 0, ReportState.STARTED))
    with refused_as("bad-report"):
        tell(town, "agent-a", order, report_on(order, 0, ReportState.STARTED), n=0)


def test_a_report_over_the_limit_is_refused(town: Town, order: SignedOrder) -> None:
    target = f"/v1/orders/{order.order.id}/tasks/0/reports/1"

    with refused_as("too-large"):
        send(town, "agent-a", "PUT", target, b" " * (MAX_REPORT_BYTES + 1))


def test_another_agents_receipt_is_not_taken(town: Town, order: SignedOrder) -> None:
    receipt = WORLD.chain(order, 1)[0]

    with refused_as("receipt-refused"):
        tell(town, "agent-b", order, report_on(order, 0, ReportState.DONE, receipt=receipt))


def test_a_receipt_of_an_agent_that_does_not_hold_the_dataset_is_not_taken(
    town: Town, order: SignedOrder
) -> None:
    receipt = WORLD.receipt(order, (), key=key_of("agent-b"))

    with refused_as("receipt-refused"):
        tell(town, "agent-b", order, report_on(order, 0, ReportState.DONE, receipt=receipt))


def test_a_receipt_of_another_order_place_task_or_outcome_is_not_taken(
    town: Town, order: SignedOrder
) -> None:
    other = WORLD.chain(WORLD.order(rank=7), 1)[0]
    later = WORLD.chain(order, 4)[3]
    failure = WORLD.receipt(order, (), outcome=Outcome.FAILED, model_out=None, outputs=(), reason="oom")

    task = ReceiptTask(TaskKind.TEST, dataset("a1").id, "1")
    elsewhat = WORLD.receipt(order, (), task=task)

    for receipt in (other, later, failure, elsewhat):
        with refused_as("receipt-refused"):
            tell(town, "agent-a", order, report_on(order, 0, ReportState.DONE, receipt=receipt))
    assert town.books["o1"].receipts(order.order.id) == ()


def test_a_second_receipt_for_one_place_is_refused_and_an_alarm(town: Town, order: SignedOrder) -> None:
    first, second = WORLD.receipt(order, ()), WORLD.receipt(order, (), attempt=2)
    tell(town, "agent-a", order, report_on(order, 0, ReportState.DONE, receipt=first))

    with refused_as("record-conflict"):
        tell(town, "agent-a", order, report_on(order, 0, ReportState.DONE, receipt=second), n=2)

    (alarm,) = town.books["o1"].alarms()
    assert (alarm.order_id, alarm.agent) == (order.order.id, A)
    assert town.books["o1"].receipts(order.order.id) == (first.envelope,)


def test_the_same_receipt_in_a_later_report_is_fine(town: Town, order: SignedOrder) -> None:
    receipt = WORLD.receipt(order, ())

    tell(town, "agent-a", order, report_on(order, 0, ReportState.DONE, receipt=receipt))
    tell(town, "agent-a", order, report_on(order, 0, ReportState.DONE, receipt=receipt, next_agent=B), n=2)

    assert town.books["o1"].alarms() == ()


# ------------------------------------------------------------------ refused hand-offs


def refusal_by_b(tmp_path: Path, town: Town) -> SignedRefusal:
    """What b really signed when it refused a's hand-off."""
    with open_town(tmp_path / "elsewhere", "agent-b") as elsewhere:

        def refuse(_body: bytes, _sender: KeyId) -> None:
            raise BrokenLink("receipt 2 does not link")

        elsewhere.doors["agent-b"] = refuse
        peers = HttpsPeers(elsewhere.identity("agent-a"), town.timeouts)
        with pytest.raises(PeerRefused) as refusal:
            peers.hand_off(B, b"{}")
        peers.close()
    return decode(refusal.value.evidence, SignedRefusal, limit_bytes=1 << 16, what="the evidence")


def test_a_refused_hand_off_ends_the_order_and_its_evidence_is_checked(
    town: Town, order: SignedOrder, tmp_path: Path
) -> None:
    refusal = refusal_by_b(tmp_path, town)

    report = report_on(
        order, 0, ReportState.HANDOFF_REFUSED, next_agent=B, refusal=refusal, reason="broken-link"
    )
    tell(town, "agent-a", order, report)

    assert state_of(town, order)[0] is OrderState.FAILED
    assert town.books["o1"].alarms() == ()


def test_a_refusal_that_the_peer_did_not_sign_is_an_alarm(
    town: Town, order: SignedOrder, tmp_path: Path
) -> None:
    refusal = replace(refusal_by_b(tmp_path, town), body='{"code": "policy-refused"}')

    tell(
        town,
        "agent-a",
        order,
        report_on(order, 1, ReportState.HANDOFF_REFUSED, next_agent=B, refusal=refusal),
    )
    tell(
        town,
        "agent-c",
        order,
        report_on(order, 1, ReportState.HANDOFF_REFUSED, next_agent=A, refusal=refusal),
    )

    assert [alarm.agent for alarm in town.books["o1"].alarms()] == [A, C]


# ------------------------------------------------------------------ results


def result_of(order: SignedOrder, receipts: Sequence[SignedReceipt]) -> ResultBody:
    scores = final_scores(receipts)
    model = receipts[-1].receipt.model_out
    assert model is not None
    return ResultBody(
        order=order.digest,
        receipts=tuple(envelope_object(receipt.envelope) for receipt in receipts),
        scores=scores,
        mean=mean_of(scores),
        model=ModelRef(model, A),
    )


def bring(town: Town, order: SignedOrder, result: ResultBody, who: str = "agent-c") -> Any:
    return send(town, who, "PUT", f"/v1/orders/{order.order.id}/result", encode(result))


def test_a_result_with_a_whole_chain_ends_its_order_well(town: Town, order: SignedOrder) -> None:
    receipts = WORLD.chain(order, 5)

    bring(town, order, result_of(order, receipts))

    assert state_of(town, order)[:2] == (OrderState.DONE, 5)
    assert town.books["o1"].receipts(order.order.id) == tuple(receipt.envelope for receipt in receipts)


def test_a_result_without_every_receipt_is_refused(town: Town, order: SignedOrder) -> None:
    receipts = WORLD.chain(order, 4)

    with refused_as("broken-link"):
        bring(town, order, replace(result_of(order, receipts), scores={}, mean=None), who="agent-a")


def test_a_result_with_a_receipt_by_who_does_not_hold_the_dataset_is_refused(
    town: Town, order: SignedOrder
) -> None:
    """Every link holds: only storage's word on who holds what tells that c spoke for b."""
    receipts = [WORLD.receipt(order, ())]
    receipts.append(WORLD.receipt(order, receipts, key=key_of("agent-c")))
    for _ in range(3):
        receipts.append(WORLD.receipt(order, receipts))

    with refused_as("broken-link"):
        bring(town, order, result_of(order, receipts))


def test_when_storage_answers_garbage_nothing_is_held_against_who_tells(
    town: Town, order: SignedOrder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who holds a dataset cannot be known just now: it is to be told again later, no receipt is at fault."""
    receipts = WORLD.chain(order, 5)
    done = report_on(order, 0, ReportState.DONE, receipt=receipts[0])

    def garbled(_dataset: object) -> frozenset[KeyId]:
        raise BadAnswer("the answer of storage-a is refused")

    with monkeypatch.context() as garbage:
        garbage.setattr(town, "locate", garbled)
        with pytest.raises(PeerUnavailable, match="bad-answer"):
            tell(town, "agent-a", order, done)
        with pytest.raises(PeerUnavailable, match="bad-answer"):
            bring(town, order, result_of(order, receipts))
    tell(town, "agent-a", order, done)
    bring(town, order, result_of(order, receipts))

    assert state_of(town, order)[0] is OrderState.DONE


def test_a_result_of_another_order_than_its_path_is_refused(town: Town, order: SignedOrder) -> None:
    result = replace(result_of(order, WORLD.chain(order, 5)), order=WORLD.order(rank=7).digest)

    with refused_as("bad-report"):
        bring(town, order, result)


def test_a_result_that_sums_up_otherwise_than_its_receipts_is_refused(town: Town, order: SignedOrder) -> None:
    result = result_of(order, WORLD.chain(order, 5))

    for wrong in (
        replace(result, mean="0.99"),
        replace(result, scores=dict.fromkeys(result.scores, "0.99"), mean="0.99"),
        replace(result, model=None),
        replace(result, model=ModelRef(order.digest, A)),
    ):
        with refused_as("bad-report"):
            bring(town, order, wrong)
    assert state_of(town, order)[0] is OrderState.OPEN


def test_a_result_is_brought_by_the_agent_of_the_last_place(town: Town, order: SignedOrder) -> None:
    with refused_as("not-yours"):
        bring(town, order, result_of(order, WORLD.chain(order, 5)), who="agent-a")


def test_a_result_with_another_receipt_than_was_reported_is_refused_and_an_alarm(
    town: Town, order: SignedOrder
) -> None:
    other = WORLD.receipt(order, (), attempt=2)
    tell(town, "agent-a", order, report_on(order, 0, ReportState.DONE, receipt=other))

    with refused_as("record-conflict"):
        bring(town, order, result_of(order, WORLD.chain(order, 5)))

    assert len(town.books["o1"].alarms()) == 1
    assert state_of(town, order)[0] is OrderState.OPEN


def test_a_preduplet_ends_without_a_model_and_without_scores(town: Town) -> None:
    order = WORLD.order(preduplet())
    town.books["o1"].record_order(order, NOW)
    receipts = WORLD.chain(order, 2)
    result = replace(result_of(order, receipts), model=None)

    bring(town, order, result, who="agent-b")

    assert (result.scores, result.mean) == ({}, None)
    assert state_of(town, order)[0] is OrderState.DONE


# ------------------------------------------------------------------ shares


def ask_share(
    town: Town, order: SignedOrder, name: str = "a1", who: str = "agent-a", position: int = 0
) -> Any:
    sealed = seal(name)
    town.books["o1"].keep_share(sealed.ref, sealed.shares[key_of("o1").keyid])
    request = ShareRequest(
        order=order.envelope,
        receipts=tuple(receipt.envelope for receipt in WORLD.chain(order, position)),
        position=position,
        dataset=sealed.ref.id,
        version=sealed.ref.version,
        header=sealed.header,
        hpke_key=ShareKeyPair().public_base64,
    )
    return send(town, who, "POST", "/v1/shares", request.encode())


def test_each_release_is_written_down(town: Town, order: SignedOrder) -> None:
    ask_share(town, order)

    (release,) = town.books["o1"].releases()
    assert (release.order_id, release.position, release.agent) == (order.order.id, 0, A)


def test_no_share_is_given_for_a_place_that_somebody_has_finished(town: Town, order: SignedOrder) -> None:
    tell(town, "agent-a", order, report_on(order, 0, ReportState.DONE, receipt=WORLD.chain(order, 1)[0]))

    with refused_as("share-refused"):
        ask_share(town, order)
    assert town.books["o1"].releases() == ()


def test_no_share_is_given_for_an_order_that_failed(town: Town, order: SignedOrder) -> None:
    tell(town, "agent-a", order, report_on(order, 0, ReportState.FAILED, reason="oom"))

    with refused_as("share-refused"):
        ask_share(town, order, "a2", position=3)


def test_no_share_is_given_that_was_never_brought(town: Town, order: SignedOrder) -> None:
    sealed = seal("a1")
    request = ShareRequest(
        order=order.envelope,
        receipts=(),
        position=0,
        dataset=sealed.ref.id,
        version="1",
        header=sealed.header,
        hpke_key=ShareKeyPair().public_base64,
    )

    with refused_as("not-found"):
        send(town, "agent-a", "POST", "/v1/shares", request.encode())


def test_another_share_of_the_same_dataset_is_not_kept(town: Town) -> None:
    sealed = seal("a1")
    town.books["o1"].keep_share(sealed.ref, b"1" * 32)

    with pytest.raises(RecordConflict):
        town.books["o1"].keep_share(sealed.ref, b"2" * 32)


def test_a_share_is_given_again_once_it_is_no_longer_withheld(town: Town, order: SignedOrder) -> None:
    book, dataset_id = town.books["o1"], seal("a1").ref.id
    book.withhold(dataset_id, "the owner asked for it")
    book.withhold(dataset_id, None)

    assert ask_share(town, order)["sealed_share"]


# ------------------------------------------------------------------ what it tells


def test_an_agent_finds_the_open_orders_that_it_has(town: Town, order: SignedOrder) -> None:
    tell(town, "agent-a", order, report_on(order, 0, ReportState.STARTED))

    told = send(town, "agent-a", "GET", f"/v1/orders?agent={A}&state=open")["orders"]

    nothing: dict[str, Any] = {"orders": [], "next": None}
    assert [(each["id"], each["position"], each["tasks"]) for each in told] == [(order.order.id, 0, 5)]
    assert told[0]["reports"] == [{"position": 0, "n": 1}]
    assert send(town, "agent-b", "GET", f"/v1/orders?agent={B}&state=open") == nothing
    assert send(town, "agent-a", "GET", f"/v1/orders?agent={A}&state=done") == nothing


def test_many_open_orders_come_page_by_page_oldest_first(town: Town) -> None:
    ids = [OrderId(uuid_of(f"order {number}")) for number in range(PAGE_ORDERS + 3)]
    for each in ids:
        town.books["o1"].record_order(WORLD.order(id=each), NOW)
        town.books["o1"].note_holder(each, A)

    first = send(town, "agent-a", "GET", f"/v1/orders?agent={A}&state=open")
    last = send(town, "agent-a", "GET", f"/v1/orders?agent={A}&state=open&after={first['next']}")

    assert [each["id"] for each in (*first["orders"], *last["orders"])] == ids
    assert (len(last["orders"]), last["next"]) == (3, None)


def test_an_agent_does_not_read_what_others_have(town: Town, order: SignedOrder) -> None:
    for query in ("", f"?agent={A}"):
        with refused_as("not-yours"):
            send(town, "agent-b", "GET", f"/v1/orders{query}")


def test_one_order_is_told_with_its_envelope_and_the_receipts_that_were_acknowledged(
    town: Town, order: SignedOrder
) -> None:
    receipts = WORLD.chain(order, 2)
    for place, name in enumerate(("agent-a", "agent-b")):
        tell(town, name, order, report_on(order, place, ReportState.DONE, receipt=receipts[place]))

    told = send(town, "agent-b", "GET", f"/v1/orders/{order.order.id}")

    whole = parse_standing(json.dumps(told).encode())
    assert (whole.standing.digest, whole.standing.state) == (order.digest, OrderState.OPEN)
    assert whole.envelope == json.loads(order.envelope)
    assert whole.receipts == tuple(json.loads(receipt.envelope) for receipt in receipts)
    assert [told.digest for told in whole.standing.receipts] == [receipt.digest for receipt in receipts]
    assert [told.agent for told in whole.standing.receipts] == [A, B]
    assert (whole.standing.reports_at(0), whole.standing.reports_at(1)) == (0, 1)  # b's own


# ------------------------------------------------------------------ issuing


@pytest.fixture
def street(tmp_path: Path) -> Iterator[Town]:
    """Orchestrator o1, storage a, agent a; dataset a1 lies at a."""
    with open_town(tmp_path, "o1", "storage-a", "agent-a") as town:
        town.roster = Roster(
            tuple(e for e in town.roster.entries if e.name not in {"storage-b", "storage-c"})
        )
        file, sealed = tmp_path / "a1", seal("a1")
        file.write_bytes(sealed.file)
        publish_dataset(town.client("owner"), file, sealed.ref, [key_of("storage-a").keyid])
        yield town


def test_an_order_is_signed_written_down_and_sent_to_who_holds_its_first_dataset(street: Town) -> None:
    received: list[tuple[bytes, KeyId]] = []
    street.doors["agent-a"] = lambda body, sender: received.append((body, sender))

    signed = issue(learnuplet(), street.books["o1"], street.client("o1"))

    assert received == [(signed.envelope, key_of("o1").keyid)]
    assert state_of(street, signed) == (OrderState.OPEN, 0, A)


def test_an_order_that_could_not_be_sent_stays_and_is_sent_again(street: Town) -> None:
    book, client = street.books["o1"], street.client("o1")
    received: list[bytes] = []
    street.doors["agent-a"] = lambda body, _sender: received.append(body)

    with pytest.raises(PeerUnavailable):
        issue(learnuplet(), book, client, to=B)
    (issued,) = book.orders()
    agent = send_again(issued.id, book, client)

    assert agent == A
    assert received == [issued.envelope]


def test_a_cancellation_is_signed_and_sent_to_who_has_the_order(street: Town) -> None:
    book, client = street.books["o1"], street.client("o1")
    received: list[bytes] = []
    street.doors["agent-a"] = lambda body, _sender: received.append(body)
    signed = issue(learnuplet(), book, client)

    agent = cancel(signed.order.id, book, client)

    opened = open_cancellation(received[-1], street.roster, street.clock())
    assert agent == A
    assert (opened.cancellation.order, opened.signer) == (signed.digest, key_of("o1").keyid)
    assert state_of(street, signed)[0] is OrderState.OPEN  # that it ended is told by a report
    with pytest.raises(NotFound):
        cancel("0" * 36, book, client)


def test_an_order_id_is_used_once(street: Town) -> None:
    street.doors["agent-a"] = lambda _body, _sender: None
    issue(learnuplet(), street.books["o1"], street.client("o1"))

    with pytest.raises(RecordConflict):
        issue(learnuplet(rank=1), street.books["o1"], street.client("o1"))
    with pytest.raises(NotFound):
        send_again("0" * 36, street.books["o1"], street.client("o1"))


# ------------------------------------------------------------------ a hand-off that is sent again


def refused(order: SignedOrder) -> ReportBody:
    return report_on(order, 0, ReportState.HANDOFF_REFUSED, reason="policy-refused", next_agent=B)


def sent_again(order: SignedOrder) -> ReportBody:
    return report_on(order, 0, ReportState.HANDOFF_RETRIED, next_agent=B)


def done_at_a(order: SignedOrder) -> ReportBody:
    return report_on(order, 0, ReportState.DONE, receipt=WORLD.chain(order, 1)[0], next_agent=B)


def test_a_hand_off_that_is_sent_again_opens_its_order_again(town: Town, order: SignedOrder) -> None:
    tell(town, "agent-a", order, done_at_a(order), n=1)
    tell(town, "agent-a", order, refused(order), n=2)
    assert state_of(town, order)[0] is OrderState.FAILED

    tell(town, "agent-a", order, sent_again(order), n=3)

    assert state_of(town, order) == (OrderState.OPEN, 1, B)


def test_a_refusal_that_arrives_after_the_news_that_it_was_sent_again_ends_nothing(
    town: Town, order: SignedOrder
) -> None:
    tell(town, "agent-a", order, sent_again(order), n=3)
    tell(town, "agent-a", order, refused(order), n=2)
    tell(town, "agent-a", order, done_at_a(order), n=1)

    assert state_of(town, order) == (OrderState.OPEN, 1, B)


def test_a_failed_task_is_not_mended_by_a_hand_off(town: Town, order: SignedOrder) -> None:
    receipt = sign_receipt(failed(WORLD.chain(order, 1)[0].receipt), key_of("agent-a"))
    tell(town, "agent-a", order, report_on(order, 0, ReportState.FAILED, receipt=receipt), n=1)

    tell(town, "agent-a", order, sent_again(order), n=2)

    assert state_of(town, order)[0] is OrderState.FAILED
