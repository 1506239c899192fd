"""What is counted on a host: numbers that only grow, kept by the ledger in the transaction that makes them true.

Most of them follow from a line of the audit log (`tallies_of`), so whoever writes the line counts, in whichever process. Labels
are from closed sets or cut to one word: what a guest, a peer or an orchestrator chose is never a label.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final

from msgspec import Struct

from agent.domain.audit import NewEvent, Plain
from agent.domain.ids import JobId
from agent.domain.jobs import FINAL, JobState

# Upper bounds of a duration's buckets in seconds: from what a local call takes to a training of days.
BUCKETS_S: Final = (0.01, 0.05, 0.25, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0)
INFINITE: Final = "+Inf"
OTHER: Final = "other"  # the label of what is no word of ours

# Names of tallies. The metrics of the same facts: agent/api/metrics_ledger.py.
MOVES: Final = "job_moves"  # by state
ENDED: Final = "jobs_ended"  # by state, reason
RETRIES: Final = "attempt_retries"  # by reason
PUT_OFF: Final = "attempts_put_off"  # by reason
TAKEN_OVER: Final = "attempts_taken_over"
ATTEMPTS_FAILED: Final = "attempts_failed"  # by code
RUNS: Final = "runs"  # by run, outcome
SHARES: Final = "shares"  # by what: asked, received
UPLOADED: Final = "uploaded_bytes"  # by kind
SELFTESTS: Final = "selftests"  # by outcome
TRIES: Final = "delivery_tries"  # by kind, outcome
RUN_S: Final = "run_s"  # a duration, by run
PHASE_S: Final = "phase_s"  # a duration, by kind of task, phase
DELIVERY_S: Final = "delivery_s"  # a duration, by kind: from when it was demanded until it arrived
PHASES_MOST: Final = 32  # of one attempt

_WORD = re.compile(r"[a-z][a-z0-9_-]{0,39}")
_REASON = re.compile(r"[a-z][a-z-]{0,39}(?=:[0-9]{1,3}$)|[a-z][a-z0-9-]{0,39}$")
_STATES: Final = {f"job.{state}": state for state in JobState}


class Tally(Struct, frozen=True):
    """A number that grew by `value`, or has grown to it. `labels`: in the order that the name's comment tells."""

    name: str
    labels: tuple[str, ...] = ()
    value: float = 1.0


class PhaseTime(Struct, frozen=True, kw_only=True):
    """How long a phase of one attempt took, in seconds, on whichever workers had it in hand."""

    job: JobId
    attempt: int
    phase: str
    seconds: float


class Gauges(Struct, frozen=True, kw_only=True):
    """How things stand now.

    `waiting`: when the oldest open job of each state came; states without one are left out. `unsent`: since when the oldest
    pending delivery waits. `resting`: how many orchestrators and peers did not answer when they were called last. `lines`:
    of the audit log; `unsigned`: when the oldest was written that no signed head covers. `ledger_bytes`: of its file.
    """

    waiting: Mapping[JobState, datetime]
    unsent: datetime | None
    resting: int
    lines: int
    unsigned: datetime | None
    ledger_bytes: int


def observed(name: str, seconds: float, *labels: str) -> tuple[Tally, Tally]:
    """A duration, as its bucket and its share of the sum. The last label is the bucket's upper bound, or `sum`."""
    bound = next((str(bound) for bound in BUCKETS_S if seconds <= bound), INFINITE)
    return Tally(name, (*labels, bound)), Tally(name, (*labels, "sum"), max(0.0, seconds))


def observed_phases(kind: str, phases: Mapping[str, float]) -> list[Tally]:
    """The phases of an attempt that ended."""
    return [tally for phase, seconds in phases.items() for tally in observed(PHASE_S, seconds, kind, phase)]


def delivered(kind: str, waited: timedelta) -> tuple[Tally, ...]:
    """A delivery arrived, so long after it was demanded."""
    return Tally(TRIES, (kind, "acknowledged")), *observed(DELIVERY_S, waited.total_seconds(), kind)


def not_delivered(kind: str, outcome: str) -> tuple[Tally]:
    """A delivery was tried and did not arrive: `failed`, to be tried again, or `refused` for good."""
    return (Tally(TRIES, (kind, outcome)),)


def added_up(tallies: Sequence[Tally]) -> list[Tally]:
    """The same with one for each name and labels."""
    sums: dict[tuple[str, tuple[str, ...]], float] = {}
    for tally in tallies:
        key = (tally.name, tally.labels)
        sums[key] = sums.get(key, 0.0) + tally.value
    return [Tally(name, labels, value) for (name, labels), value in sums.items()]


def word(text: Plain, otherwise: str = OTHER) -> str:
    """The text when it may be a label."""
    return text if isinstance(text, str) and _WORD.fullmatch(text) else otherwise


def reason(text: Plain) -> str:
    """The reason of a job as a label: a code or a word of the container contract, `exit:3` as `exit`; "" for none."""
    if text is None:
        return ""
    found = _REASON.match(text) if isinstance(text, str) else None
    return OTHER if found is None else found[0]


def tallies_of(event: NewEvent) -> tuple[Tally, ...]:
    """What a line of the audit log counts."""
    told = event.values
    if event.name in _STATES:
        return _moved(_STATES[event.name], told)
    match event.name:
        case "job.parked":
            return (Tally(PUT_OFF, (reason(told.get("reason")),)),)
        case "job.adopted":
            return (Tally(TAKEN_OVER),)
        case "attempt.failed":
            return (Tally(ATTEMPTS_FAILED, (word(told.get("code")),)),)
        case "run.ended":
            run, seconds = word(told.get("run")), told.get("wall_s")
            ended = Tally(RUNS, (run, reason(told.get("outcome"))))
            return ended, *observed(RUN_S, seconds if isinstance(seconds, int | float) else 0.0, run)
        case "share.asked" | "share.received" as name:
            return (Tally(SHARES, (name.removeprefix("share."),)),)
        case "upload.ended":
            size = told.get("bytes")
            return (Tally(UPLOADED, (word(told.get("kind")),), size if isinstance(size, int) else 0.0),)
        case "selftest.held" | "selftest.failed" as name:
            return (Tally(SELFTESTS, (name.removeprefix("selftest."),)),)
    return ()


def _moved(state: JobState, told: Mapping[str, Plain]) -> tuple[Tally, ...]:
    tallies = [Tally(MOVES, (state,))]
    why = told.get("reason")
    if state in FINAL:
        tallies.append(Tally(ENDED, (state, reason(why))))
    attempt = told.get("attempt")
    if state is JobState.QUEUED and isinstance(attempt, int) and attempt > 0:
        tallies.append(Tally(RETRIES, (reason(why),)))
    return tuple(tallies)
