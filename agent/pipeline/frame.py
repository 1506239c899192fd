"""The first container of a task is made while its inputs are still on their way.

It is a frame: its first process waits, none of the image's code runs. What it is for comes later, in this order, whether or not
there is a frame: the inputs are whole and verified, the policy and the operator's word are asked once more, the ledger has that
the run begins, the cage is looked at, the program is let go (`run.py`, `agent/ports/runtime.py`).

The journal knows nothing of a frame, because nothing follows from one. It bears the labels of its attempt: a cancellation finds
it by them, and so does the sweep when the attempt is over. Who takes the attempt over makes a container of its own.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from agent.errors import AgentError
from agent.log import get_logger
from agent.pipeline.fetch import Inputs
from agent.pipeline.host import Context, Host
from agent.pipeline.run import first_run
from agent.pipeline.workspace import Workspace

log = get_logger(__name__)

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
            spec = first_run(context, inputs, space, host)
            try:
                stack.enter_context(host.ports.runtime.framed(spec))
                log.debug("run.framed", container=spec.name)
            except AgentError as error:  # what is wrong with it, the run tells, which makes its own
                log.debug("run.not_framed", container=spec.name, code=error.code, detail=error.detail)

        yield make
