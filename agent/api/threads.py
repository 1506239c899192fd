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

ANY: Final = ThreadPoolExecutor(40, thread_name_prefix="request")  # calls at once; further ones wait


async def in_thread(act: Callable[..., T], *arguments: Any) -> T:
    """What `act` gave in a thread, with the log's words of this task around it. Raises: what it raised."""
    context = contextvars.copy_context()
    return await asyncio.get_running_loop().run_in_executor(ANY, context.run, act, *arguments)
