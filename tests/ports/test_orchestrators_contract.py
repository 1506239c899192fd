"""What every port to orchestrators promises, run on the fake and on the HTTPS adapter against real ones over TLS.

The order is one of o1; the dataset's key is split over o1 and o2, and the port is that of agent a.
"""

import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest
from msgspec.structs import replace

from agent.api.serving import listen, url_of
from agent.domain.ids import KeyId, OrderId, wire_time
from agent.domain.orders import ModelRef, SignedOrder
from agent.domain.receipts import SignedReceipt, final_scores
from agent.domain.reports import ReportBody, ReportState, ResultBody, envelope_object, mean_of
from agent.domain.standings import OrderState
from agent.domain.strict_json import encode
from agent.errors import BadAnswer, OrchestratorUnavailable, PeerRefused, ShareWithheld, TrustError, WrongRole
from agent.ports.orchestrators import Orchestrators
from agent.ports.orchestrators_https import HttpsOrchestrators
from agent.trust.seal import parse_header
from agent.trust.shares import ShareKeyPair, ShareRequest, share_info, unwrap_data_key
from tests.builders import NOW, changed, consortium, key_of, uuid_of
from tests.devkit.sealed import Sealed, seal
from tests.devkit.town import Town, open_town
from tests.fakes.orchestrators import MemoryOrchestrators, MemoryOrchestratorsPort
from tests.ports.rude import answer, rude_server
from tests.ports.test_https import signed_answer

WORLD = consortium()
O1, O2 = key_of("o1").keyid, key_of("o2").keyid
AGENT_A = key_of("agent-a").keyid


class Stage(Protocol):
    """Orchestrators o1 and o2, and the port of agent a."""

    port: Orchestrators

    def issue(self, order: SignedOrder) -> None: ...
    def keep_shares(self, sealed: Sealed) -> None: ...
    def withhold(self, orchestrator: str, sealed: Sealed) -> None: ...
    def reports(self, orchestrator: str, order_id: OrderId) -> list[bytes]: ...
    def result(self, orchestrator: str, order_id: OrderId) -> bytes | None: ...
    def send_to(self, order: SignedOrder, agent: KeyId) -> None: ...
    def go_down(self, orchestrator: str) -> None: ...


class FakeStage:
    def __init__(self) -> None:
        self._all = MemoryOrchestrators(WORLD.roster, lambda: NOW)
        self.port: Orchestrators = MemoryOrchestratorsPort(self._all, AGENT_A)

    def issue(self, order: SignedOrder) -> None:
        pass  # it takes what it is told

    def keep_shares(self, sealed: Sealed) -> None:
        for orchestrator, share in sealed.shares.items():
            self._all.shares[orchestrator, sealed.ref] = share

    def withhold(self, orchestrator: str, sealed: Sealed) -> None:
        self._all.withheld.add((key_of(orchestrator).keyid, sealed.ref.id))

    def reports(self, orchestrator: str, order_id: OrderId) -> list[bytes]:
        return list(self._all.reports.get(key_of(orchestrator).keyid, {}).values())

    def result(self, orchestrator: str, order_id: OrderId) -> bytes | None:
        return self._all.results.get(key_of(orchestrator).keyid, {}).get(order_id)

    def send_to(self, order: SignedOrder, agent: KeyId) -> None:
        self._all.issued[order.order.id] = (order, agent)

    def go_down(self, orchestrator: str) -> None:
        self._all.down.add(key_of(orchestrator).keyid)


class RealStage:
    def __init__(self, town: Town) -> None:
        self._town = town
        self.https = HttpsOrchestrators(town.identity("agent-a"), town.timeouts)
        self.port: Orchestrators = self.https

    def issue(self, order: SignedOrder) -> None:
        self._town.books["o1"].record_order(order, NOW)

    def keep_shares(self, sealed: Sealed) -> None:
        for name in ("o1", "o2"):
            self._town.books[name].keep_share(sealed.ref, sealed.shares[key_of(name).keyid])

    def withhold(self, orchestrator: str, sealed: Sealed) -> None:
        self._town.books[orchestrator].withhold(sealed.ref.id, "the owner asked for it")

    def reports(self, orchestrator: str, order_id: OrderId) -> list[bytes]:
        return list(self._town.books[orchestrator].reports(order_id))

    def result(self, orchestrator: str, order_id: OrderId) -> bytes | None:
        return self._town.books[orchestrator].result(order_id)

    def send_to(self, order: SignedOrder, agent: KeyId) -> None:
        self.issue(order)
        self._town.books["o1"].note_holder(order.order.id, agent)

    def go_down(self, orchestrator: str) -> None:
        self._town.stop(orchestrator)


@pytest.fixture(params=["fake", "https"])
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stage]:
    if request.param == "fake":
        yield FakeStage()
        return
    with open_town(tmp_path, "o1", "o2") as town:
        real = RealStage(town)
        yield real
        real.https.close()


# ------------------------------------------------------------------ shares


def share_request(order: SignedOrder, sealed: Sealed, pair: ShareKeyPair, position: int = 0) -> bytes:
    return ShareRequest(
        order=order.envelope,
        receipts=tuple(receipt.envelope for receipt in WORLD.chain(order, position)),
        position=position,
        dataset=sealed.ref.id,
        version=sealed.ref.version,
        header=sealed.header,
        hpke_key=pair.public_base64,
    ).encode()


def test_the_shares_of_all_orchestrators_make_the_key(stage: Stage) -> None:
    order, sealed, pair = WORLD.order(), seal("a1"), ShareKeyPair()
    stage.issue(order)
    stage.keep_shares(sealed)

    shares = {}
    for orchestrator in (O1, O2):  # o2 did not issue the order: it knows o1's key
        answer = stage.port.share(orchestrator, share_request(order, sealed, pair))
        shares[orchestrator] = pair.open(
            answer, share_info(order.digest, 0, sealed.ref.id, AGENT_A, orchestrator)
        )

    assert shares == sealed.shares
    assert len(unwrap_data_key(parse_header(sealed.header, WORLD.roster, at=NOW), shares)) == 32


def test_a_share_in_the_middle_of_a_chain_comes_with_the_receipts_before(stage: Stage) -> None:
    order, sealed, pair = WORLD.order(), seal("a2"), ShareKeyPair()
    stage.issue(order)
    stage.keep_shares(sealed)

    answer = stage.port.share(O1, share_request(order, sealed, pair, position=3))

    info = share_info(order.digest, 3, sealed.ref.id, AGENT_A, O1)
    assert pair.open(answer, info) == sealed.shares[O1]


def test_a_withheld_share_is_withheld_and_the_code_says_by_which_rule(stage: Stage) -> None:
    order, sealed = WORLD.order(), seal("a1")
    stage.issue(order)
    stage.keep_shares(sealed)
    stage.withhold("o2", sealed)

    stage.port.share(O1, share_request(order, sealed, ShareKeyPair()))
    with pytest.raises(ShareWithheld, match="share-refused"):
        stage.port.share(O2, share_request(order, sealed, ShareKeyPair()))


def test_a_share_for_an_order_that_is_over_is_withheld(stage: Stage) -> None:
    order, sealed = WORLD.order(not_before=NOW.replace(hour=1), expires=NOW.replace(hour=2)), seal("a1")
    stage.issue(order)
    stage.keep_shares(sealed)

    with pytest.raises(ShareWithheld, match="order-expired"):
        stage.port.share(O1, share_request(order, sealed, ShareKeyPair()))


# ------------------------------------------------------------------ reports


def report_on(
    order: SignedOrder, position: int, state: ReportState, receipt: SignedReceipt | None = None
) -> bytes:
    return encode(
        ReportBody(
            order=order.digest,
            position=position,
            state=state,
            attempt=1,
            max_attempts=3,
            receipt=None if receipt is None else envelope_object(receipt.envelope),
            at=wire_time(NOW),
        )
    )


def test_a_report_is_acknowledged_and_kept_as_it_was_sent(stage: Stage) -> None:
    order = WORLD.order()
    stage.issue(order)
    started = report_on(order, 0, ReportState.STARTED)
    done = report_on(order, 0, ReportState.DONE, WORLD.chain(order, 1)[0])

    stage.port.report(O1, order.order.id, 0, 1, started)
    stage.port.report(O1, order.order.id, 0, 2, done)

    assert stage.reports("o1", order.order.id) == [started, done]


def test_the_same_report_again_is_acknowledged_again_and_kept_once(stage: Stage) -> None:
    order = WORLD.order()
    stage.issue(order)
    started = report_on(order, 0, ReportState.STARTED)

    stage.port.report(O1, order.order.id, 0, 1, started)
    stage.port.report(O1, order.order.id, 0, 1, started)

    assert stage.reports("o1", order.order.id) == [started]


def test_another_report_in_the_same_place_is_refused_for_good(stage: Stage) -> None:
    order = WORLD.order()
    stage.issue(order)
    stage.port.report(O1, order.order.id, 0, 1, report_on(order, 0, ReportState.STARTED))

    with pytest.raises(PeerRefused) as refusal:
        stage.port.report(O1, order.order.id, 0, 1, report_on(order, 0, ReportState.ATTEMPT))

    assert refusal.value.refusal == "record-conflict"
    assert len(stage.reports("o1", order.order.id)) == 1


# ------------------------------------------------------------------ results


def result_of(order: SignedOrder, receipts: tuple[SignedReceipt, ...]) -> ResultBody:
    scores = final_scores(receipts)
    model = receipts[-1].receipt.model_out
    assert model is not None
    maker = next(receipt.signer for receipt in receipts if receipt.receipt.model_out == model)
    return ResultBody(
        order=order.digest,
        receipts=tuple(envelope_object(receipt.envelope) for receipt in receipts),
        scores=scores,
        mean=mean_of(scores),
        model=ModelRef(model, maker),
    )


def order_that_ends_at_a() -> tuple[SignedOrder, tuple[SignedReceipt, ...]]:
    order = WORLD.order(test=("a9",))
    return order, WORLD.chain(order, 5)


def test_a_result_is_acknowledged_and_kept_as_it_was_sent(stage: Stage) -> None:
    order, receipts = order_that_ends_at_a()
    stage.issue(order)
    body = encode(result_of(order, receipts))

    stage.port.result(O1, order.order.id, body)
    stage.port.result(O1, order.order.id, body)

    assert stage.result("o1", order.order.id) == body


def test_another_result_of_the_same_order_is_refused_for_good(stage: Stage) -> None:
    order, receipts = order_that_ends_at_a()
    stage.issue(order)
    result = result_of(order, receipts)
    stage.port.result(O1, order.order.id, encode(result))
    other = replace(result, model=ModelRef(result.model.digest, AGENT_A)) if result.model else result

    with pytest.raises(PeerRefused):
        stage.port.result(O1, order.order.id, encode(other) + b" ")


# ------------------------------------------------------------------ how orders stand


def test_an_agent_is_told_of_the_open_orders_that_it_has(stage: Stage) -> None:
    order, other = WORLD.order(), WORLD.order(id=OrderId(uuid_of("for b")))
    stage.send_to(order, AGENT_A)
    stage.send_to(other, key_of("agent-b").keyid)
    stage.port.report(O1, order.order.id, 0, 3, report_on(order, 0, ReportState.STARTED))

    page = stage.port.open_orders(O1)

    (told,) = page.orders
    assert (told.id, told.digest, told.state, told.position, told.tasks, told.holder) == (
        order.order.id,
        order.digest,
        OrderState.OPEN,
        0,
        5,
        AGENT_A,
    )
    assert (told.receipts, told.reports_at(0), told.reports_at(1), page.next) == ((), 3, 0, None)


def test_one_order_is_told_whole_with_what_was_acknowledged_of_it(stage: Stage) -> None:
    order = WORLD.order()
    (receipt,) = WORLD.chain(order, 1)
    stage.send_to(order, AGENT_A)
    stage.port.report(O1, order.order.id, 0, 1, report_on(order, 0, ReportState.DONE, receipt))

    told = stage.port.standing(O1, order.order.id)

    assert told is not None
    assert (told.standing.position, told.envelope) == (1, envelope_object(order.envelope))
    assert told.receipts == (envelope_object(receipt.envelope),)
    at_place = told.standing.receipt_at(0)
    assert at_place is not None
    assert (at_place.digest, at_place.agent) == (receipt.digest, AGENT_A)


def test_an_order_that_an_orchestrator_never_issued_is_none(stage: Stage) -> None:
    assert stage.port.standing(O1, WORLD.order().order.id) is None


# ------------------------------------------------------------------ orchestrators that are away


def test_an_orchestrator_that_is_there_is_there(stage: Stage) -> None:
    stage.port.check(O1)


def test_an_orchestrator_that_is_away_is_unavailable_for_everything(stage: Stage) -> None:
    order, sealed = WORLD.order(), seal("a1")
    stage.go_down("o1")

    with pytest.raises(OrchestratorUnavailable):
        stage.port.check(O1)
    with pytest.raises(OrchestratorUnavailable):
        stage.port.share(O1, share_request(order, sealed, ShareKeyPair()))
    with pytest.raises(OrchestratorUnavailable):
        stage.port.report(O1, order.order.id, 0, 1, report_on(order, 0, ReportState.STARTED))
    with pytest.raises(OrchestratorUnavailable):
        stage.port.result(O1, order.order.id, b"{}")
    with pytest.raises(OrchestratorUnavailable):
        stage.port.open_orders(O1)
    with pytest.raises(OrchestratorUnavailable):
        stage.port.standing(O1, order.order.id)


def test_who_is_no_orchestrator_of_the_roster_is_not_called(stage: Stage) -> None:
    with pytest.raises(WrongRole):
        stage.port.check(AGENT_A)
    with pytest.raises(TrustError):
        stage.port.share(KeyId("0" * 64), b"{}")


# ------------------------------------------------------------------ who tells how orders stand


@pytest.mark.parametrize("key", [None, "o2"], ids=["unsigned", "another key"])
@pytest.mark.parametrize("status", [200, 404])
def test_nothing_is_believed_of_orders_that_the_orchestrator_did_not_sign(
    key: str | None, status: int, tmp_path: Path
) -> None:
    body = b'{"orders": [], "next": null}' if status == 200 else b'{"code": "not-found"}'
    with open_town(tmp_path) as town:
        town.listeners["o1"] = listen("127.0.0.1", 0)
        url = url_of(town.listeners["o1"], tls=True)
        town.roster = changed(town.roster, O1, orchestrator_url=url)
        port = HttpsOrchestrators(town.identity("agent-a"), town.timeouts)

        def manner(line: ssl.SSLSocket, heard: list[bytes]) -> None:
            signed = None if key is None else signed_answer(heard, town, key=key, status=status, body=body)
            line.sendall(signed or answer(body, status))

        with rude_server(town, "o1", manner):
            with pytest.raises((BadAnswer, OrchestratorUnavailable)):
                port.open_orders(O1)
            with pytest.raises((BadAnswer, OrchestratorUnavailable)):
                port.standing(O1, WORLD.order().order.id)
        port.close()
