"""A reload while a task is under way: what was withdrawn begins nothing new, and an attempt keeps what it began with."""

from dataclasses import replace

import msgspec
import pytest

from agent.domain.jobs import JobState
from agent.domain.orders import SignedOrder
from agent.pipeline.host import InForce, Trusted
from agent.trust.policy import HostPolicy
from agent.trust.roster import Roster
from tests.builders import NOW, key_of, policy_text
from tests.fakes.runtime import Guest
from tests.pipeline.world import (
    ALGO,
    POLICY,
    PROBLEM,
    SMALL,
    Hospital,
    Tapped,
    World,
    append_what_it_sees,
    hide_and_score,
    once,
)

WITHDRAWN = policy_text(orchestrators=[], images=[ALGO, PROBLEM], rest=SMALL)
NARROWER = policy_text(
    orchestrators=[key_of("o1").keyid], images=[ALGO, PROBLEM], rest="ceilings.output_bytes = 4194304\n"
)


@pytest.fixture
def reloadable(world: World) -> Hospital:
    """Hospital a, whose roster and policy can be exchanged under its tasks."""
    host = world.a.host
    world.a.host = replace(host, in_force=InForce(Trusted(host.roster, host.policy)))
    return world.a


def exchange(hospital: Hospital, *, roster: Roster | None = None, policy: str = POLICY) -> None:
    """What a reload does."""
    assert hospital.host.in_force is not None
    hospital.host.in_force.exchange(Trusted(roster or hospital.host.roster, HostPolicy.from_toml(policy)))


def revoked(world: World) -> Roster:
    """The roster with the orchestrator's key revoked."""
    roster = world.people.roster
    signer = key_of("o1").keyid
    return Roster(
        tuple(
            msgspec.structs.replace(entry, revoked_at=NOW) if entry.keyid == signer else entry
            for entry in roster.entries
        )
    )


def ended(hospital: Hospital, order: SignedOrder) -> tuple[JobState, str | None]:
    job = hospital.job(order, 0)
    return job.state, job.reason


def test_a_host_gives_the_pair_in_force_and_stays_itself(reloadable: Hospital, world: World) -> None:
    before = reloadable.host

    exchange(reloadable, roster=revoked(world), policy=WITHDRAWN)

    newest = before.newest
    assert newest.policy == HostPolicy.from_toml(WITHDRAWN)
    assert newest.roster == revoked(world)
    assert before.policy == HostPolicy.from_toml(POLICY)
    assert newest.newest == newest


@pytest.mark.parametrize("what", ["policy", "roster"])
def test_what_was_withdrawn_during_one_container_begins_no_other(
    reloadable: Hospital, world: World, what: str
) -> None:
    order = world.order(train=("a1",), test=("a2",))

    def withdraw(guest: Guest) -> None:
        if "detarget" in guest.args:
            if what == "policy":
                exchange(reloadable, policy=WITHDRAWN)
            else:
                exchange(reloadable, roster=revoked(world))
        hide_and_score(guest)

    world.problem = withdraw
    world.post(order, world.a)
    world.settle()

    job = reloadable.job(order, 1)
    reason = "policy-refused" if what == "policy" else "key-not-valid"
    assert (job.state, job.reason) == (JobState.FAILED, reason)
    assert reloadable.runs() == ["train", "detarget"]


def test_what_was_withdrawn_while_inputs_came_asks_for_no_share_of_a_key(
    reloadable: Hospital, world: World
) -> None:
    order = world.order(train=("a1",), test=())
    withdraw = once(
        "image", lambda: exchange(reloadable, policy=WITHDRAWN)
    )  # asked for while inputs are fetched
    reloadable.ports(runtime=Tapped(reloadable.host.ports.runtime, after=withdraw))

    world.post(order, world.a)
    world.settle()

    assert ended(reloadable, order) == (JobState.FAILED, "policy-refused")
    assert world.orchestrators.releases == []
    assert reloadable.runs() == []


def test_an_attempt_keeps_the_ceilings_and_the_digest_that_it_began_with(
    reloadable: Hospital, world: World
) -> None:
    order = world.order(train=("a1",), test=("a2",))

    def narrow(guest: Guest) -> None:
        exchange(reloadable, policy=NARROWER)
        append_what_it_sees(guest)

    world.algo = narrow
    world.post(order, world.a)
    world.settle()

    begun_with = HostPolicy.from_toml(POLICY)
    receipts = [signed.receipt for signed in reloadable.ledger.receipts(order.digest)]
    train = next(spec for spec in reloadable.runtime.specs if spec.name.endswith("train"))
    assert train.ceilings.output_bytes == begun_with.ceilings.output_bytes
    assert receipts[0].policy == begun_with.digest
