"""Part `scale`: what an agent takes for a claim, an intake and a look at it, with a hundred orders and with a million.

Two agents with the shipped settings lie side by side: one keeps its hundred orders, the other is filled in steps. Every sample
of the full one stands beside one of the other, taken in the same round. Copies of an order that the agent took in fill it
(`scale_rows.py`); bells are rung for them by what rings for them after a crash.

- claim: a thread of the shipped consumer, from one job RUNNING to the next: bell taken, order read, `execute.claim` committed
- intake: POST of a signed order at the operator's socket of `serve`, to the answer
- orders, control, metrics, page: GET there
- ready: `serve` and `work` started together, to the later READY=1 on systemd's socket; no engine answers at its socket
"""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import pairwise

from agent.bench.figures import Bench, Measured, Row, interleaved, median, over
from agent.bench.scale_agents import READY_S, Side, stage
from agent.domain.chain import TaskKind
from agent.domain.ids import JobId
from agent.domain.jobs import Job, JobEvent, JobState
from agent.pipeline.execute import claim
from agent.pipeline.host import Host, context_of
from agent.pipeline.ringing import Ringing, ring_waiting
from agent.ports.broker import TASK_QUEUES
from agent.ports.client import Client
from agent.wiring import MakeConsumer, open_host, open_worker

PART = "scale"
FEW = 100
LEVELS = (10_000, 100_000, 1_000_000)
SHORT_LEVELS = (2 * FEW,)
OPEN_AT_START = LEVELS[1]  # what `ready` is measured with; the last level where there is none such
ROUNDS, STARTS = 5, 5  # at each level; of both services
EACH = 20  # calls of a round: its sample is their median
MS = 1000.0
READS = {"orders": "/v1/orders?limit=20", "control": "/v1/control", "page": "/"}
METRICS = "/metrics"
METRICS_KEPT_S = 1.05  # for so long the page for Prometheus is shown as it was made

NOTES = (
    f"the baseline has {FEW} orders of the same kind; both agents' rows are interleaved",
    "a finished order failed before it began, by a ruling: receipt and acknowledged report, whose body was forgotten",
    "ready is said before the cage is proved and before bells are rung again (rung_*_s)",
)

Sampler = Callable[[], float]


def measure(bench: Bench) -> Measured:
    """The part."""
    levels = SHORT_LEVELS if bench.is_short else LEVELS
    rounds = 1 if bench.is_short else min(bench.rounds, ROUNDS)
    rows: list[Row] = []
    figures: dict[str, float] = {}
    with stage(bench) as (few, many):
        few.take_pattern()
        many.take_pattern()
        few.fill(FEW)
        _ring(few, FEW, {})
        started = OPEN_AT_START if OPEN_AT_START in levels else levels[-1]
        for level in levels:
            bench.say(f"{level:,} orders are made")
            many.fill(level)
            _ring(many, level, figures)
            rows += _side_by_side(few, many, f"{level:,} queued", rounds, bench)
            if level == started:
                rows += _starts(few, many, f"{level:,} open", 1 if bench.is_short else STARTS, bench)
        bench.say(f"{levels[-1]:,} orders end")
        few.fill(2 * FEW)
        few.end(FEW)
        many.end(0)
        for side in (few, many):
            _ring(side, FEW, {})
        rows += _side_by_side(few, many, f"{levels[-1]:,} finished", rounds, bench)
    return Measured(rows=tuple(rows), figures=figures | _figures(rows, levels[-1], started), notes=NOTES)


def _figures(rows: Sequence[Row], last: int, started: int) -> dict[str, float]:
    """The two with targets, and how much longer each thing takes beside the hundred orders."""
    known = {row.name: row.samples for row in rows}
    told = {
        f"{row.name.partition(',')[0]}_ratio_{_short(row.name.partition(', ')[2])}": over(
            row.samples, known[row.baseline]
        )
        for row in rows
        if row.baseline is not None
        and row.name.partition(", ")[2] in {f"{last:,} queued", f"{last:,} finished"}
    }
    told["claim_ratio_1m"] = told.pop(f"claim_ratio_{_short(f'{last:,} queued')}")
    told["ready_100k_s"] = median(known[f"ready, {started:,} open"])
    return told


def _short(what: str) -> str:
    """1,000,000 queued: 1000000_queued."""
    return what.replace(",", "").replace(" ", "_")


# ------------------------------------------------------------------ what is measured


def _starts(few: Side, many: Side, what: str, rounds: int, bench: Bench) -> list[Row]:
    """Rows of starting both services of an agent, and of starting an interpreter that does nothing."""
    found_: dict[str, list[float]] = {}
    for _ in range(rounds):
        begun_s = time.perf_counter()
        subprocess.run([sys.executable, "-c", "pass"], check=True)
        found_.setdefault("python -c pass", []).append(time.perf_counter() - begun_s)
        for side, name in ((few, f"{FEW} beside {what}"), (many, what)):
            took = side.starts(bench)
            for word, seconds in {"ready": max(took.values()), **took}.items():
                found_.setdefault(f"{word}, {name}", []).append(seconds)
    baselines = {
        f"{word}, {what}": f"{word}, {FEW} beside {what}" for word in ("ready", "serve ready", "work ready")
    }
    return [
        Row(part=PART, name=name, unit="s", samples=tuple(samples), baseline=baselines.get(name))
        for name, samples in found_.items()
    ]


def _ring(side: Side, level: int, figures: dict[str, float]) -> None:
    """Ring for all that waits, by what does so at a worker's start, and tell how long that took."""
    with open_host(side.settings) as host:
        begun_s = time.perf_counter()
        ring_waiting(host, Ringing())
        figures[f"rung_{level}_s"] = time.perf_counter() - begun_s


def _side_by_side(few: Side, many: Side, what: str, rounds: int, bench: Bench) -> list[Row]:
    """Rows of the full agent, each with the other's as its baseline. One round that does not count goes before."""
    with ExitStack() as stack:
        samplers: dict[str, Sampler] = {}
        for side, name in ((few, f"{FEW} beside {what}"), (many, what)):
            client = stack.enter_context(side.served(bench))
            host, make_consumer = stack.enter_context(open_worker(side.settings))
            samplers |= {
                f"{word}, {name}": one for word, one in _samplers(side, client, host, make_consumer).items()
            }
        if not bench.is_short:
            interleaved(1, samplers)
        samples = interleaved(rounds, samplers)
    rows = []
    for name, found_ in samples.items():
        word, _, of = name.partition(", ")
        baseline = f"{word}, {FEW} beside {what}" if of == what else None
        rows.append(Row(part=PART, name=name, unit="ms", samples=found_, baseline=baseline))
    return rows


def _samplers(side: Side, client: Client, host: Host, make_consumer: MakeConsumer) -> dict[str, Sampler]:
    reads = {
        name: partial(_median_ms, [partial(_get, client, target)] * EACH) for name, target in READS.items()
    }
    last_s = 0.0

    def metrics() -> float:
        """One page that is made anew."""
        nonlocal last_s
        time.sleep(max(0.0, last_s + METRICS_KEPT_S - time.monotonic()))
        took_ms = _median_ms([partial(_get, client, METRICS)])
        last_s = time.monotonic()
        return took_ms

    return {
        "metrics": metrics,
        "claim": lambda: _claims(side, host, make_consumer),
        "intake": lambda: _median_ms([partial(_post, client, side.order().envelope) for _ in range(EACH)]),
        **reads,
    }


def _get(client: Client, target: str) -> None:
    answer = client.get(target)
    if not answer.is_success:
        raise Unanswered(f"GET {target}: {answer.status} {answer.body[:200]!r}")


def _post(client: Client, envelope: bytes) -> None:
    answer = client.post("/v1/learnuplets", envelope)
    if not answer.is_success:
        raise Unanswered(f"POST /v1/learnuplets: {answer.status} {answer.body[:200]!r}")


class Unanswered(Exception):
    """A call that was to be measured was refused; the message holds the answer."""


def _claims(side: Side, host: Host, make_consumer: MakeConsumer) -> float:
    """The median of milliseconds from one claim to the next; afterwards the jobs wait again, behind all others."""
    claimed: list[Job] = []
    moments: list[float] = []
    is_enough = threading.Event()

    def take(item: str) -> None:
        job = host.ports.ledger.job(JobId(item))
        if job.state is not JobState.QUEUED:
            return  # it ended since its bell was rung
        context = claim(context_of(job, host), host, "bench")
        if context is not None:
            claimed.append(context.job)
            moments.append(time.perf_counter())
        if len(moments) > EACH:
            is_enough.set()

    consumer = make_consumer({TASK_QUEUES[TaskKind.LEARN]: take})
    consumer.start()
    is_enough.wait(READY_S)
    consumer.stop()
    for job in claimed:
        host.ports.ledger.move(job, JobEvent.RETRY, host.ports.now())
    side.claimed |= {job.id for job in claimed}
    host.ports.broker.ring_all(TASK_QUEUES[TaskKind.LEARN], [job.id for job in claimed])
    return median([later - earlier for earlier, later in pairwise(moments)]) * MS


def _median_ms(calls: Iterable[Callable[[], object]]) -> float:
    took = []
    for call in calls:
        begun_s = time.perf_counter()
        call()
        took.append(time.perf_counter() - begun_s)
    return median(took) * MS
