"""A host on which one thing of each kind happened, for what watches it."""

import msgspec

from agent.domain.audit import NewEvent
from agent.domain.jobs import JobEvent
from agent.pipeline.gate import STATE_FILE, GateState, Standing
from tests.api.house import House
from tests.ports.ledger_stage import at, attested, report, running


def busy(house: House) -> None:
    """Jobs, a delivery, lines of the audit log, refusals, a cage that was proved."""
    ledger = house.ledger
    job = running(ledger, "one")
    ledger.move(job, JobEvent.FAIL, at(2), reason="exit:3", phases={"fetch": 0.5, "train": 400.0})
    done = attested(ledger, report(), name="two")
    ledger.acknowledge(ledger.deliveries(order_id=done.order_id)[0].id, at(31))
    told = (
        NewEvent(name="run.ended", values={"run": "train", "outcome": "exit:3", "wall_s": 3.0}),
        NewEvent(name="share.received", values={"of": "x"}),
        NewEvent(name="upload.ended", values={"kind": "model", "bytes": 4096}),
        NewEvent(name="attempt.failed", values={"code": "storage-unavailable", "attempt": 1}),
        NewEvent(name="job.parked", values={"reason": "storage-unavailable"}),
        NewEvent(name="job.adopted"),
        NewEvent(name="selftest.held", values={"runtime": "runc"}),
    )
    ledger.record_events(told, at(3))
    house.network.get("/nowhere")
    house.network.get("/v1/orders")
    held = msgspec.json.encode(Standing(GateState.OPEN, "held"))
    (house.host.rules.workspace_root / STATE_FILE).write_bytes(held)
