"""Every runtime that whole-system tests and the bench run in, by name."""

from collections.abc import Callable

from agent.ports.runtime import Runtime
from tests.host.podman import Engine, runc_kept

# A new runtime is a word here and a case in `runtime_of`.
RUNTIMES = ("podman", "runc")


def runtime_of(name: str, engine: Engine) -> Runtime:
    """A runtime of this name that nobody else uses. Raises: KeyError for a name that is none."""
    makers: dict[str, Callable[[], Runtime]] = {"podman": engine.runtime, "runc": runc_kept}
    return makers[name]()
