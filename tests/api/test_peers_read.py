"""What one agent tells another of an order they share, asked through the real port over TLS."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from agent.api.routes import network_app, open_desk
from agent.domain.ids import KeyId
from agent.domain.jobs import JobState
from agent.errors import BadAnswer, PeerRefused, PeerUnavailable
from agent.ports.peers_https import HttpsPeers
from agent.trust.http_signatures import authority_of
from tests.builders import consortium, key_of
from tests.devkit.town import Town, open_town
from tests.pipeline.world import World
from tests.ports.ledger_stage import fresh_ledger
from tests.ports.rude import answer, rude_server
from tests.ports.test_https import reserve

WORLD = consortium()
B = key_of("agent-b").keyid


@pytest.fixture
def world(tmp_path: Path) -> World:
    (tmp_path / "world").mkdir()
    return World(tmp_path / "world", fresh_ledger)


@pytest.fixture
def town(tmp_path: Path, world: World) -> Iterator[Town]:
    """Agent b serves; order (a1, b1) was handed over to it."""
    with open_town(tmp_path) as town:
        reserve(town, "agent-b")
        town.start(
            "agent-b", network_app(open_desk(world.b.host), lambda: {authority_of(town.url("agent-b"))})
        )
        yield town


ORDER = WORLD.order(train=("a1", "b1"), test=())


def test_an_agent_of_the_chain_reads_how_far_its_hand_off_came(town: Town, world: World) -> None:
    world.hand_over(ORDER, 1, to=world.b)

    with closing(HttpsPeers(town.identity("agent-a"), town.timeouts)) as port:
        told = port.order(B, ORDER.order.id)
        receipts = port.receipts(B, ORDER.order.id)

    assert told is not None
    assert [(job.position, job.state) for job in told.jobs] == [(1, JobState.QUEUED)]
    assert (told.digest, told.is_known_at(1), told.is_known_at(0)) == (ORDER.digest, True, False)
    assert len(receipts) == 1


def test_an_order_that_the_peer_does_not_know_is_none_by_its_own_word(town: Town) -> None:
    with closing(HttpsPeers(town.identity("agent-a"), town.timeouts)) as port:
        assert port.order(B, ORDER.order.id) is None
        assert port.receipts(B, ORDER.order.id) == ()


def test_an_agent_that_is_not_of_the_chain_is_told_nothing(town: Town, world: World) -> None:
    world.hand_over(ORDER, 1, to=world.b)

    with closing(HttpsPeers(town.identity("agent-c"), town.timeouts)) as port:
        for ask in (port.order, port.receipts):
            with pytest.raises(PeerRefused) as refusal:
                ask(B, ORDER.order.id)
            assert refusal.value.refusal == "not-yours"


@pytest.mark.parametrize("status", [200, 404])
def test_an_unsigned_word_on_an_order_is_not_believed(tmp_path: Path, status: int) -> None:
    with open_town(tmp_path) as town:
        reserve(town, "agent-b")
        with (
            rude_server(town, "agent-b", lambda line, heard: line.sendall(answer(b"{}", status))),
            closing(HttpsPeers(town.identity("agent-a"), town.timeouts)) as port,
            pytest.raises((BadAnswer, PeerUnavailable)),
        ):
            port.order(KeyId(B), ORDER.order.id)
