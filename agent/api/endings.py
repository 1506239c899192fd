"""How an order ended, read from its view: the same for streams and for whoever watches."""

from datetime import datetime
from enum import StrEnum

from agent.api.views import OrderView
from agent.domain.jobs import FINAL, JobState

LOST = frozenset({JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED})


class Ending(StrEnum):
    """How an order ended, as far as this host can tell."""

    DONE = "done"
    LOST = "lost"  # failed, cancelled or expired
    ELSEWHERE = "elsewhere"  # nothing is left to do here; another host goes on


def ending_of(view: OrderView, now: datetime) -> Ending | None:
    """How the order ended; None while it goes on here."""
    if any(job.state in LOST for job in view.jobs) or any(task.state in LOST for task in view.chain):
        return Ending.LOST
    if view.chain[-1].state is JobState.DONE:
        return Ending.DONE
    if any(job.state not in FINAL for job in view.jobs):
        return None
    return Ending.LOST if now >= view.expires else Ending.ELSEWHERE
