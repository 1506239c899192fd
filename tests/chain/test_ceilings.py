"""A whole order on a host that cannot hold every ceiling, and on one that can: refused, or named, or held."""

from collections.abc import Iterator

import pytest

from agent.devkit.consortium import on_podman, running
from agent.devkit.waiting import wait_for
from agent.domain.orders import SignedOrder
from agent.domain.receipts import Receipt
from agent.domain.reports import ReportBody, ReportState, envelope_bytes
from agent.trust.signed import open_receipt
from tests.chain.conftest import ORDER_TIMEOUT_S, Town, make_town
from tests.host.podman import Engine

pytestmark = [pytest.mark.chain, pytest.mark.host, pytest.mark.xdist_group("chain"), pytest.mark.timeout(400)]


@pytest.fixture
def absent(engine: Engine) -> tuple[str, ...]:
    """The ceilings that this host cannot hold."""
    return engine.runtime().enforcement().absent


@pytest.fixture
def town(engine: Engine) -> Iterator[Town]:
    yield from make_town(on_podman(engine.socket), ("A",), ("noop", "bomb"))


def last_report(town: Town, guest: str) -> ReportBody:
    """An order of one task with this guest, told to its end."""
    hospital = town.consortium.hospital("A")
    with running(town.consortium):
        town.bring(guest)
        signed = town.issue(guest, [town.dataset(hospital)])
        wait_for(
            lambda: bool(ended(town, signed)), f"the end of {signed.order.id}", timeout_s=ORDER_TIMEOUT_S
        )
        (report,) = ended(town, signed)
    return report


def ended(town: Town, signed: SignedOrder) -> list[ReportBody]:
    ends = {ReportState.DONE, ReportState.FAILED}
    return [report for report in town.reports(signed) if report.state in ends]


def receipt_in(report: ReportBody, town: Town) -> Receipt:
    assert report.receipt is not None
    return open_receipt(envelope_bytes(report.receipt), town.consortium.roster).receipt


def allow(town: Town, *absent: str) -> None:
    """The host's policy: these gaps, and a quarter of a gibibyte of memory."""
    town.consortium.admit([town.image(guest) for guest in ("noop", "bomb")], accept_missing=absent)
    policy = town.consortium.hospital("A").agent.folder / "policy.toml"
    head, found, ceilings = policy.read_text().partition("[ceilings]\n")
    assert found
    policy.write_text(f"{head}{found}memory_bytes = {256 << 20}\n{ceilings}")


def test_an_order_is_refused_where_a_ceiling_cannot_be_held(town: Town, absent: tuple[str, ...]) -> None:
    if not absent:
        pytest.skip("a host that lacks a ceiling (this one enforces all)")
    allow(town, *absent[1:])

    report = last_report(town, "noop")

    assert (report.state, report.reason, report.attempt) == (ReportState.FAILED, "cage-not-applied", 1)


def test_the_receipt_names_what_this_host_cannot_hold(town: Town, absent: tuple[str, ...]) -> None:
    allow(town, *absent)

    report = last_report(town, "noop")

    sandbox = receipt_in(report, town).sandbox
    assert report.state is ReportState.DONE
    assert sandbox is not None
    assert sandbox.absent == absent
    assert not set(absent) & {name for name, told in sandbox.ceilings.items() if told.endswith(" by cgroup")}


def test_a_memory_bomb_ends_the_order(town: Town, absent: tuple[str, ...]) -> None:
    allow(town, *absent)

    report = last_report(town, "bomb")

    receipt = receipt_in(report, town)
    assert report.state is ReportState.FAILED
    assert receipt.reason == report.reason
    if "memory_bytes" in absent:  # an rlimit stands in, and Python ends itself unless the watcher was quicker
        assert report.reason in {"exit:1", "oom"}
    else:
        assert report.reason == "oom"
        assert 128 << 20 < (receipt.usage.max_memory_bytes or 0) <= 256 << 20
