"""One agent's API on in-memory ports: agent a of `tests.builders`, its two doors, and callers who sign for them.

house = open_house(tmp_path)
answer = house.call(house.world.orchestrator, "POST", "/v1/learnuplets", order.envelope)
answer = house.operator.get("/v1/orders")
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, cast

import httpx
from starlette.types import ASGIApp

from agent.api.desk import Desk
from agent.api.routes import network_app, open_desk, operator_app
from agent.pipeline.host import Host, Rules
from agent.ports import Ports
from agent.ports.broker import Queue
from agent.ports.images import Images
from agent.ports.runtime import Runtime
from agent.trust.http_signatures import HttpRequest, content_digest, sign_request
from agent.trust.keys import SigningKey
from agent.trust.policy import HostPolicy
from tests.builders import NOW, SKEW, Consortium, consortium, policy_for
from tests.fakes.hands import MemoryHands
from tests.fakes.ledger import MemoryLedger
from tests.fakes.orchestrators import MemoryOrchestrators, MemoryOrchestratorsPort
from tests.fakes.peers import MemoryPeers, MemoryPeersPort
from tests.fakes.storage import MemoryStorage, MemoryStorages

AUTHORITY = "agent-a.test:8440"
BASE_URL = f"https://{AUTHORITY}"


@dataclass
class Bells:
    """A broker that only counts: nobody consumes here."""

    rung: list[tuple[Queue, str]] = field(default_factory=list)

    def ring(self, queue: Queue, item: str, *, delay_s: float = 0.0) -> None:
        self.rung.append((queue, item))

    def ring_all(self, queue: Queue, items: Sequence[str]) -> None:
        self.rung += [(queue, item) for item in items]

    def depth(self) -> Mapping[Queue, int]:
        return {queue: sum(1 for rung, _ in self.rung if rung is queue) for queue in Queue}


@dataclass
class Clock:
    """NOW, until somebody moves it."""

    moment: datetime = NOW

    def __call__(self) -> datetime:
        return self.moment

    def pass_by(self, span: timedelta) -> None:
        self.moment += span


@dataclass(frozen=True)
class Door:
    """A door of the API, called without a network."""

    app: ASGIApp
    base_url: str

    def request(
        self,
        method: str,
        target: str,
        *,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        return asyncio.run(self._request(method, target, content, headers or {}))

    def get(self, target: str, **fields: Any) -> httpx.Response:
        return self.request("GET", target, **fields)

    def post(self, target: str, body: bytes, **fields: Any) -> httpx.Response:
        return self.request(
            "POST", target, content=body, headers={"content-type": "application/json"}, **fields
        )

    async def _request(
        self, method: str, target: str, content: bytes | None, headers: Mapping[str, str]
    ) -> httpx.Response:
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url=self.base_url) as client:
            return await client.request(method, target, content=content, headers=dict(headers))


@dataclass
class House:
    """The agent under test and everybody around it."""

    world: Consortium
    host: Host
    desk: Desk
    ledger: MemoryLedger
    storages: MemoryStorages
    bells: Bells
    clock: Clock
    network: Door
    operator: Door

    def call(
        self,
        key: SigningKey,
        method: str,
        target: str,
        body: bytes | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
    ) -> httpx.Response:
        """A request signed by `key` for exactly this body; `content` is sent instead of it."""
        signed = signed_headers(key, method, target, body, now=self.clock(), headers=headers)
        sent = body if content is None else content
        return self.network.request(method, target, content=sent, headers=signed)


def signed_headers(
    key: SigningKey,
    method: str,
    target: str,
    body: bytes | None,
    *,
    now: datetime,
    headers: Mapping[str, str] | None = None,
    authority: str = AUTHORITY,
) -> dict[str, str]:
    """The headers of a request as a peer signs it. `headers` are among what is signed."""
    fields: dict[str, str] = {"host": authority}
    if body is not None:
        fields |= {
            "content-type": "application/json",
            "content-length": str(len(body)),
            "content-digest": content_digest(body),
        }
    fields |= {name.lower(): value for name, value in (headers or {}).items()}
    request = HttpRequest(method, f"https://{authority}{target}", fields)
    return fields | sign_request(request, key, now=now, has_body=body is not None)


def open_house(folder: Path, *, hospital: str = "a", policy: HostPolicy | None = None, **rules: Any) -> House:
    """The agent of this hospital. `policy`: by default one that admits `world.order()`. `rules`: changes of Rules."""
    world, ledger, bells, clock = consortium(), MemoryLedger(), Bells(), Clock()
    key = world.agent(hospital)
    storages = MemoryStorages(world.roster)
    ports = Ports(
        ledger=ledger,
        broker=bells,
        storage=MemoryStorage(storages, key.keyid),
        orchestrators=MemoryOrchestratorsPort(MemoryOrchestrators(world.roster, clock), key.keyid),
        peers=MemoryPeersPort(MemoryPeers({}), key.keyid),
        runtime=cast(Runtime, None),  # the API never asks it, nor the next
        images=cast(Images, None),
        now=clock,
        hands=MemoryHands(),
    )
    told: dict[str, Any] = {
        "skew": SKEW,
        "lease": timedelta(seconds=60),
        "queue_limit": 100,
        "workspace_root": folder,
        "spool": folder,
        "low_disk_bytes": 0,
        "max_model_bytes": 1 << 20,
        "max_image_bytes": 1 << 20,
    }
    host = Host(key, world.roster, policy or policy_for(world.order()), ports, Rules(**(told | rules)))
    desk = open_desk(host)
    authority = f"agent-{hospital}.test:8440"
    return House(
        world=world,
        host=host,
        desk=desk,
        ledger=ledger,
        storages=storages,
        bells=bells,
        clock=clock,
        network=Door(network_app(desk, lambda: {authority}), f"https://{authority}"),
        operator=Door(operator_app(desk), "http://operator"),
    )
