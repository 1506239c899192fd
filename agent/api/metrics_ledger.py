"""The metrics that the ledger knows: what was counted, by whichever process, and how things stand.

Counters and durations come from the ledger's tallies, so a restart does not set them back; a restore from a backup does.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import product
from typing import Final

from msgspec import Struct
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from agent.domain import measures
from agent.domain.jobs import FINAL, JobState
from agent.domain.measures import BUCKETS_S, INFINITE, Gauges, Tally
from agent.ports.ledger import DeliveryKind

KINDS: Final = tuple(DeliveryKind)
OPEN: Final = tuple(state for state in JobState if state not in FINAL)

Labels = tuple[str, ...]


class Told(Struct, frozen=True):
    """How a tally is told. `known`: the values of each label that are told before anything was counted, so that the first
    increase is seen; empty where they are not a closed set.
    """

    metric: str
    about: str
    labels: Labels = ()
    known: tuple[Sequence[str], ...] = ()


COUNTERS: Final[Mapping[str, Told]] = {
    measures.MOVES: Told(
        "dc_compute_job_moves", "Moves of jobs, by the state they came to.", ("state",), (tuple(JobState),)
    ),
    measures.ENDED: Told(
        "dc_compute_jobs_ended",
        "Jobs that ended, by final state and reason (empty: none).",
        ("state", "reason"),
    ),
    measures.ATTEMPTS_FAILED: Told(
        "dc_compute_attempts_failed", "Attempts that ended badly, by the code of the error.", ("code",)
    ),
    measures.RETRIES: Told(
        "dc_compute_attempt_retries", "Attempts that were followed by another.", ("reason",)
    ),
    measures.PUT_OFF: Told(
        "dc_compute_attempts_put_off", "Attempts that rest because somebody outside is away.", ("reason",)
    ),
    measures.TAKEN_OVER: Told(
        "dc_compute_attempts_taken_over", "Attempts that a worker took over from another one.", (), ()
    ),
    measures.RUNS: Told("dc_compute_runs", "Containers that ended, by run and outcome.", ("run", "outcome")),
    measures.SHARES: Told(
        "dc_compute_shares",
        "Shares of datasets' keys that orchestrators were asked for, and that came.",
        ("what",),
        (("asked", "received"),),
    ),
    measures.UPLOADED: Told(
        "dc_compute_uploaded_bytes", "Bytes of outputs that went to this node's storage.", ("kind",)
    ),
    measures.SELFTESTS: Told(
        "dc_compute_selftests",
        "Self-tests of the cage that ended, by outcome.",
        ("outcome",),
        (("held", "failed"),),
    ),
    measures.TRIES: Told(
        "dc_compute_delivery_tries",
        "Times that something was sent to others, by what became of it.",
        ("kind", "outcome"),
        (KINDS, ("acknowledged", "failed", "refused")),
    ),
}

DURATIONS: Final[Mapping[str, Told]] = {
    measures.PHASE_S: Told(
        "dc_compute_phase_duration_seconds", "Phases of attempts that ended.", ("task", "phase")
    ),
    measures.RUN_S: Told("dc_compute_run_duration_seconds", "Wall clock of containers that ended.", ("run",)),
    measures.DELIVERY_S: Told(
        "dc_compute_delivery_duration_seconds",
        "From when a delivery was demanded until it was acknowledged.",
        ("kind",),
    ),
}


def counters(tallies: Sequence[Tally]) -> Iterator[Metric]:
    """Everything that only grows."""
    for name, told in COUNTERS.items():
        values = dict.fromkeys(product(*told.known), 0.0) if told.known or not told.labels else {}
        values |= {one.labels: one.value for one in tallies if one.name == name}
        family = CounterMetricFamily(told.metric, told.about, labels=told.labels)
        for labels, value in sorted(values.items()):
            family.add_metric(labels, value)
        yield family


def durations(tallies: Sequence[Tally]) -> Iterator[Metric]:
    """Everything that took time, as histograms."""
    for name, told in DURATIONS.items():
        family = HistogramMetricFamily(told.metric, told.about, labels=told.labels)
        for labels, seen in sorted(_by_labels(name, tallies).items()):
            family.add_metric(labels, buckets=_cumulative(seen), sum_value=seen.get("sum", 0.0))
        yield family


def standing(gauges: Gauges, now: Callable[[], datetime]) -> Iterator[Metric]:
    """How things stand. Ages are by this host's own clock."""
    moment = now()
    waiting = GaugeMetricFamily(
        "dc_compute_job_oldest_age_seconds",
        "Since the oldest job of each open state came to this host; 0 without one.",
        labels=("state",),
    )
    for state in OPEN:
        waiting.add_metric((state,), _age(gauges.waiting.get(state), moment))
    yield waiting
    yield GaugeMetricFamily(
        "dc_compute_delivery_oldest_age_seconds",
        "Since the oldest delivery that is still to be sent was demanded; 0 without one.",
        value=_age(gauges.unsent, moment),
    )
    yield GaugeMetricFamily(
        "dc_compute_targets_resting",
        "Orchestrators and peers that did not answer when they were called last.",
        value=gauges.resting,
    )
    yield CounterMetricFamily("dc_compute_audit_lines", "Lines of the audit log.", value=gauges.lines)
    yield GaugeMetricFamily(
        "dc_compute_audit_unsigned_age_seconds",
        "Since the oldest line of the audit log was written that no signed head covers; 0 without one.",
        value=_age(gauges.unsigned, moment),
    )


def _age(since: datetime | None, now: datetime) -> float:
    """Seconds; 0 for a moment that is still to come, for a clock may have been set back."""
    return 0.0 if since is None else max(0.0, (now - since).total_seconds())


def _by_labels(name: str, tallies: Sequence[Tally]) -> dict[Labels, dict[str, float]]:
    """What was seen of a duration, by its labels: how many in each bucket, and the sum."""
    found: dict[Labels, dict[str, float]] = {}
    for one in tallies:
        if one.name == name:
            *labels, part = one.labels
            found.setdefault(tuple(labels), {})[part] = one.value
    return found


def _cumulative(seen: Mapping[str, float]) -> list[tuple[str, float]]:
    """Prometheus' buckets, each with all below it."""
    bounds = [*(str(bound) for bound in BUCKETS_S), INFINITE]
    total, buckets = 0.0, []
    for bound in bounds:
        total += seen.get(bound, 0.0)
        buckets.append((bound, total))
    return buckets
