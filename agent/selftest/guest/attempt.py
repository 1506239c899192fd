"""How one attempt is made and told: in this process, or in a child whose death is part of the answer."""

import errno
import os
import signal
from collections.abc import Callable

Attempt = Callable[[], str]

CHILD_ENDS_S = 10  # by an alarm: an attempt that hangs is an answer too
HARD_END_S = 30  # of processes that try to outlive their container


def told(attempt: Attempt) -> str:
    """What the attempt says of itself, or the errno that it met."""
    try:
        return attempt()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, f"OSError {error}")
    except MemoryError:
        return "MemoryError"


def in_child(attempt: Attempt) -> str:
    """The same in a forked child: `killed by SIGSYS` when it died of it."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reader)
            signal.alarm(CHILD_ENDS_S)
            os.write(writer, told(attempt).encode()[:4096])
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    with open(reader, "rb") as words:
        seen = words.read().decode()
    return ending(os.waitpid(child, 0)[1]) or seen or "it ended without a word"


def ending(status: int) -> str:
    """How a child ended, when it was by a signal."""
    if not os.WIFSIGNALED(status):
        return ""
    number = os.WTERMSIG(status)
    names = {one.value: one.name for one in signal.Signals}
    return f"killed by {names.get(number, str(number))}"
