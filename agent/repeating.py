"""Something that is done from time to time, in a thread of its own, while a block runs."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def repeating(
    name: str,
    act: Callable[[], object],
    rest_s: Callable[[], float],
    *,
    is_at_once: bool = False,
    is_awaited: bool = True,
) -> Iterator[None]:
    """Do it after each rest, in seconds, that `rest_s` gives anew each time. `name`: the thread's, for who looks at a dump.

    `is_at_once`: before the first rest too. At the block's end one that is under way is waited for; where not `is_awaited`, it
    is left to end by itself. What `act` raises ends the thread: it says by itself what may go wrong.
    """
    is_over = threading.Event()

    def go_round() -> None:
        if is_at_once:
            act()
        while not is_over.wait(rest_s()):
            act()

    thread = threading.Thread(target=go_round, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        if is_awaited:
            thread.join()
