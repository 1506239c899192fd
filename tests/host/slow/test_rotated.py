"""An agent changes its key in the middle of a chain, and again nothing is lost: everything is a process of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from agent.devkit.consortium import Party, on_podman, on_runc, running
from agent.devkit.podman_service import why_no_runc
from agent.devkit.waiting import wait_for
from agent.domain.orders import SignedOrder
from agent.domain.reports import ReportState
from agent.trust.keys import SigningKey
from agent.trust.roster import Role, Roster
from agent.trust.signed import open_receipt
from tests.chain.conftest import ORDER_TIMEOUT_S, Town, make_town
from tests.host.podman import Engine

ROOT = Path(__file__).resolve().parents[3]


LONG_S = b"75"  # until all others know the new key and the agent signs with it


@pytest.fixture(params=["podman", "runc"])
def town(request: pytest.FixtureRequest) -> Iterator[Town]:
    if request.param == "podman":
        engine: Engine = request.getfixturevalue("engine")
        yield from make_town(on_podman(engine.socket), ("A", "B"), ("as_told",))
    elif lacking := why_no_runc():
        pytest.skip(f"runc's containers need {lacking}")
    else:
        yield from make_town(on_runc(), ("A", "B"), ("as_told",))


def command(party: Party, *words: str) -> str:
    """What the real command prints for this party's home."""
    done = subprocess.run(
        [sys.executable, "-m", "agent", "--home", str(party.folder), *words],
        cwd=ROOT,
        env={name: os.environ[name] for name in ("PATH", "HOME", "XDG_RUNTIME_DIR") if name in os.environ},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def start_anew(town: Town, party: Party) -> None:
    town.consortium.stop(party)
    town.consortium.start(party)
    town.consortium.wait_until_ready([party])


def agents_of(town: Town, signed: SignedOrder, roster: Roster) -> list[str]:
    """Who signed the receipts that the orchestrator has, by position."""
    return [open_receipt(told, roster).signer for told in town.consortium.book().receipts(signed.order.id)]


@pytest.mark.slow
@pytest.mark.host
@pytest.mark.timeout(500)
def test_an_agent_that_rotates_in_mid_chain_goes_on_under_its_new_key(town: Town) -> None:
    consortium = town.consortium
    a, b = consortium.hospital("A"), consortium.hospital("B")
    others = [party for party in consortium.parties if party not in (a.agent, b.agent)]
    with running(consortium):
        town.bring("as_told")
        before, after = town.dataset(a, LONG_S), town.dataset(a, b"0")  # sealed for the old key, both
        signed = town.issue("as_told", [before, town.dataset(b, b"0")])
        wait_for(
            lambda: ReportState.STARTED in [report.state for report in town.reports(signed)],
            "the task to begin",
            timeout_s=ORDER_TIMEOUT_S,
        )

        statement = json.loads(command(a.agent, "keys", "rotate", "--json"))
        command(b.agent, "peers", "rotate", statement["statement"], "--yes", "--json")
        (told,) = [one for one in json.loads(command(a.agent, "keys", "rotate", "--check", "--json"))["others"]
                   if one["role"] == "storage"]  # fmt: skip
        for party in others:  # storages and orchestrators have the roster as a file, too
            (party.folder / "roster.toml").write_text((b.agent.folder / "roster.toml").read_text())
            start_anew(town, party)
        start_anew(town, b.agent)
        known = json.loads(command(a.agent, "keys", "rotate", "--check", "--json"))["others"]
        command(a.agent, "keys", "switch", "--json")
        start_anew(town, a.agent)  # the container goes on meanwhile
        town.wait_for_result(signed)
        again = town.issue("as_told", [after])
        town.wait_for_result(again)

    roster = Roster.from_toml((b.agent.folder / "roster.toml").read_text())
    new = SigningKey.load(a.agent.folder / "identity.pem").keyid
    assert told["knows"] is False
    assert {one["knows"] for one in known} == {True}
    assert new == statement["new"] != a.agent.key.keyid
    assert agents_of(town, signed, roster) == [new, b.agent.key.keyid]
    assert agents_of(town, again, roster) == [new]
    assert [told.attempt for told in town.reports(signed) if told.state is ReportState.DONE] == [1, 1]
    assert consortium.book().alarms() == ()
    assert roster.require(a.agent.key.keyid, role=Role.AGENT, at=datetime.now(UTC)).name == "A"
