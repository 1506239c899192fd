"""What every port to orchestrators promises, run on the fake and on the HTTPS adapter against real ones over TLS.

The order is one of o1; the dataset's key is split over o1 and o2, and the port is that of agent a.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest
from msgspec.structs import replace

from agent.domain.ids import KeyId, OrderId, wire_time
from agent.domain.orders import ModelRef, SignedOrder
from agent.domain.receipts import SignedReceipt, final_scores
from agent.domain.reports import ReportBody, ReportState, ResultBody, envelope_object, mean_of
from agent.domain.strict_json import encode
from agent.errors import OrchestratorUnavailable, PeerRefused, ShareWithheld, TrustError, WrongRole
from agent.ports.orchestrators import Orchestrators
from agent.ports.orchestrators_https import HttpsOrchestrators
from agent.trust.seal import parse_header
from agent.trust.shares import ShareKeyPair, ShareRequest, share_info, unwrap_data_key
from tests.builders import NOW, consortium, key_of
from tests.devkit.sealed import Sealed, seal
from tests.devkit.town import Town, open_town
from tests.fakes.orchestrators import MemoryOrchestrators, MemoryOrchestratorsPort

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


def test_who_is_no_orchestrator_of_the_roster_is_not_called(stage: Stage) -> None:
    with pytest.raises(WrongRole):
        stage.port.check(AGENT_A)
    with pytest.raises(TrustError):
        stage.port.share(KeyId("0" * 64), b"{}")
