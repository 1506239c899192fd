"""Where requests are worked on: threads of their own, so that the loop of a door only reads and writes.

Starlette's own way into a thread costs more than what most calls do there: it goes through a second library's task groups,
limits and cancel scopes. A request needs none of them: nobody cancels what was begun, and the pool is the limit.
"""

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

T = TypeVar("T")

# Calls at once; further ones wait. More threads than cores help only where they wait themselves: the others take the
# interpreter from each other, and each time costs as much as a statement of the ledger.
ANY: Final = ThreadPoolExecutor(40, thread_name_prefix="request")
OF_DISK: Final = ThreadPoolExecutor(8, thread_name_prefix="intake")  # wait for nothing but this host's disk


async def in_thread(act: Callable[..., T], *arguments: Any, pool: ThreadPoolExecutor = ANY) -> T:
    """What `act` gave in a thread, with the log's words of this task around it. Raises: what it raised."""
    context = contextvars.copy_context()
    return await asyncio.get_running_loop().run_in_executor(pool, context.run, act, *arguments)
