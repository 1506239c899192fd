"""The first container of a task is made while its inputs are still on their way.

It is a frame: its first process waits, none of the image's code runs. What it is for comes later, in this order, whether or not
there is a frame: the inputs are whole and verified, the policy and the operator's word are asked once more, the ledger has that
the run begins, the cage is looked at, the program is let go (`run.py`, `agent/ports/runtime.py`).

The journal knows nothing of a frame, because nothing follows from one. It bears the labels of its attempt: a cancellation finds
it by them, and so does the sweep when the attempt is over. Who takes the attempt over removes it and makes one of its own.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

from agent.domain.jobs import Job
from agent.errors import RuntimeUnavailable
from agent.pipeline.fetch import Inputs
from agent.pipeline.host import Context, Host
from agent.pipeline.run import ATTEMPT_LABEL, JOB_LABEL, first_run
from agent.pipeline.workspace import Workspace

SOON_BYTES = 256 << 20  # a frame takes a place, which is not kept from others while much data comes


@contextmanager
def framing(
    context: Context, space: Workspace, host: Host, *, awaited_bytes: int
) -> Iterator[Callable[[Inputs], None]]:
    """What makes the frame, called at most once, with where the inputs will lie. The frame goes with the context, unless the
    task's first run took it. `awaited_bytes`: how much is still to come.
    """
    with ExitStack() as stack:

        def make(inputs: Inputs) -> None:
            if awaited_bytes > SOON_BYTES:
                return
            with suppress(RuntimeUnavailable):  # the run tells, which makes its own
                stack.enter_context(host.ports.runtime.framed(first_run(context, inputs, space, host)))

        yield make


def remove_frames(job: Job, host: Host) -> None:
    """Take away what was made for an attempt of which nothing ran. While the engine is away it stays, for the sweep."""
    with suppress(RuntimeUnavailable):
        for left in host.ports.runtime.leftovers():
            if (left.labels.get(JOB_LABEL), left.labels.get(ATTEMPT_LABEL)) == (job.id, str(job.attempt)):
                host.ports.runtime.remove(left.name)
