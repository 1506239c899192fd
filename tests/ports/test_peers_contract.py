"""What every port to peers promises, run on the fake and on the HTTPS adapter against real hand-off routes over TLS."""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from agent.domain.ids import KeyId
from agent.domain.reports import SignedRefusal
from agent.domain.strict_json import decode
from agent.errors import (
    BrokenLink,
    LedgerUnavailable,
    NotYours,
    PeerRefused,
    PeerUnavailable,
    QueueFull,
    UnknownKey,
)
from agent.ports.peers import Peers
from agent.ports.peers_https import HttpsPeers
from tests.builders import consortium, key_of
from tests.devkit.town import Door, Town, open_town
from tests.fakes.peers import MemoryPeers, MemoryPeersPort

A, B = key_of("agent-a").keyid, key_of("agent-b").keyid
BODY = b'{"order": {}, "receipts": []}'


class Stage(Protocol):
    """Agents a and b: the port of a, the door of b."""

    port: Peers

    def set_door(self, door: Door) -> None: ...
    def go_down(self) -> None: ...


class FakeStage:
    def __init__(self) -> None:
        self._all = MemoryPeers({})
        self.port: Peers = MemoryPeersPort(self._all, A)

    def set_door(self, door: Door) -> None:
        self._all.doors[B] = self._all.cancel_doors[B] = door

    def go_down(self) -> None:
        self._all.down.add(B)


class RealStage:
    def __init__(self, town: Town) -> None:
        self._town = town
        self.https = HttpsPeers(town.identity("agent-a"), town.timeouts)
        self.port: Peers = self.https

    def set_door(self, door: Door) -> None:
        self._town.doors["agent-b"] = door

    def go_down(self) -> None:
        self._town.stop("agent-b")


@pytest.fixture(params=["fake", "https"])
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stage]:
    if request.param == "fake":
        fake = FakeStage()
        fake.set_door(lambda _body, _sender: None)
        yield fake
        return
    with open_town(tmp_path, "agent-b") as town:
        real = RealStage(town)
        real.set_door(lambda _body, _sender: None)
        yield real
        real.https.close()


def raising(error: Exception) -> Door:
    def door(_body: bytes, _sender: KeyId) -> object:
        raise error

    return door


def test_a_hand_off_reaches_the_peer_with_its_senders_name(stage: Stage) -> None:
    received: list[tuple[bytes, KeyId]] = []
    stage.set_door(lambda body, sender: received.append((body, sender)))

    stage.port.hand_off(B, BODY)

    assert received == [(BODY, A)]


def test_a_cancellation_reaches_the_peer_as_it_is(stage: Stage) -> None:
    received: list[tuple[bytes, KeyId]] = []
    stage.set_door(lambda body, sender: received.append((body, sender)))

    stage.port.cancel(B, BODY)

    assert received == [(BODY, A)]


def test_a_refused_cancellation_carries_the_peers_code(stage: Stage) -> None:
    stage.set_door(raising(NotYours("it is of another orchestrator")))

    with pytest.raises(PeerRefused, match="another orchestrator") as refusal:
        stage.port.cancel(B, BODY)

    assert refusal.value.refusal == "not-yours"


def test_a_peer_that_cannot_take_a_cancellation_now_is_tried_again(stage: Stage) -> None:
    stage.set_door(raising(QueueFull("1000 wait")))

    with pytest.raises(PeerUnavailable):
        stage.port.cancel(B, BODY)


def test_a_large_hand_off_arrives_whole(stage: Stage) -> None:
    received: list[bytes] = []
    stage.set_door(lambda body, _sender: received.append(body))
    body = b'{"x": "' + b"x" * (20 << 20) + b'"}'

    stage.port.hand_off(B, body)

    assert received == [body]


def test_a_refused_hand_off_carries_the_peers_code_and_sentence(stage: Stage) -> None:
    stage.set_door(raising(BrokenLink("receipt 2 does not link to the one before it")))

    with pytest.raises(PeerRefused, match="receipt 2 does not link") as refusal:
        stage.port.hand_off(B, BODY)

    assert refusal.value.refusal == "broken-link"


@pytest.mark.parametrize("error", [QueueFull("1000 jobs wait"), LedgerUnavailable("the disk is gone")])
def test_a_peer_that_cannot_take_it_now_is_tried_again(stage: Stage, error: Exception) -> None:
    stage.set_door(raising(error))

    with pytest.raises(PeerUnavailable):
        stage.port.hand_off(B, BODY)


def test_a_peer_that_is_away_is_unavailable(stage: Stage) -> None:
    stage.go_down()

    with pytest.raises(PeerUnavailable):
        stage.port.hand_off(B, BODY)
    with pytest.raises(PeerUnavailable):
        stage.port.check(B)


def test_a_peer_that_is_there_is_there(stage: Stage) -> None:
    stage.port.check(B)


def test_who_is_not_in_the_roster_is_not_called(stage: Stage) -> None:
    with pytest.raises(UnknownKey):
        stage.port.hand_off(KeyId("0" * 64), BODY)


def test_a_signed_refusal_is_kept_as_evidence(tmp_path: Path) -> None:
    with open_town(tmp_path, "agent-b") as town:
        stage = RealStage(town)
        stage.set_door(raising(BrokenLink("receipt 2 does not link")))

        with pytest.raises(PeerRefused) as refusal:
            stage.port.hand_off(B, BODY)
        stage.https.close()

    evidence = decode(refusal.value.evidence, SignedRefusal, limit_bytes=1 << 16, what="the evidence")
    assert evidence.status == 403
    assert "broken-link" in evidence.body
    assert consortium().roster.find(B) is not None
