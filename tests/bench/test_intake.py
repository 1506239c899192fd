"""Part intake measures what is shipped: the settings, what goes over the wire, and what is counted. No time is asserted."""

from pathlib import Path

import msgspec

from agent.bench import intake
from agent.bench.figures import TARGETS
from agent.bench.intake import Agent, Beside, Burst
from agent.bench.intake_load import Load, framed, requests_in
from agent.config import changed_keys, load_settings
from agent.trust.envelope import parse_envelope
from agent.trust.keys import SigningKey
from tests.bench.test_wiring import ITS_OWN


def load(*latency_s: float) -> Load:
    return Load(wall_s=sum(latency_s), cpu_s=0.1, latency_s=list(latency_s), statuses={"202": len(latency_s)})


def test_the_settings_are_the_defaults_but_for_the_room_in_the_queue(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "agent.toml").write_bytes(msgspec.toml.encode(intake._settings(home, 8443)))

    changed = changed_keys(load_settings(tmp_path / "nothing-said", {}), load_settings(home, {}))

    assert set(changed) - ITS_OWN == {("limits", "queue_limit")}


def test_each_request_carries_another_order_and_comes_back_from_its_frame_whole(tmp_path: Path) -> None:
    agent = Agent(
        home=tmp_path, port=8443, pid=1, authority=tmp_path / "a.pem", orchestrator=SigningKey.generate()
    )
    requests = [intake.request_of(agent) for _ in range(3)]

    found = requests_in(b"".join(framed(request) for request in requests))

    assert found == requests
    orders = {parse_envelope(one.partition(b"\r\n\r\n")[2], limit_bytes=1 << 20).digest for one in found}
    assert len(orders) == 3


def test_the_figures_are_of_sixteen_connections() -> None:
    slow, fast = load(0.5, 0.5), load(0.25, 0.25)
    bursts = {
        connections: [Burst(orders=2, load=fast if connections == intake.JUDGED else slow, server_cpu_s=0.1)]
        for connections in intake.CONNECTIONS
    }

    floor = Burst(orders=2, load=load(0.125, 0.125), server_cpu_s=0.02)

    told = intake._measured(Beside(raw=[8.0], floor=[floor], signatures_us=[200.0]), bursts)

    assert told.figures == {"intake_ratio": 0.5, "intake_p99_ms": 250.0, "intake_floor_ratio": 1.0}
    assert set(told.figures) - set(TARGETS) == {"intake_floor_ratio"}
    assert {row.baseline for row in told.rows if row.unit == "/s"} == {None, "raw commits"}
    assert {row.name: row.samples for row in told.rows if row.unit == "us CPU"} == {
        "an order: server": (50_000.0,),
        "an order: load": (50_000.0,),
        "bare server: server": (10_000.0,),
        "bare server: load": (50_000.0,),
        "two signatures": (200.0,),
    }
