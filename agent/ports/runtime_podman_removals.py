"""Containers that ended, being removed while their runs' callers go on.

Podman removes an ended container only after the process that conmon starts to clear up after it: some 50 ms, in which a worker
packs the model. Nothing that is read afterwards depends on it: every process of the container is gone, and its mounts with
them. What does, the name, the id map and the image, waits for the removal here first.
"""

import threading
from collections.abc import Callable

from agent.errors import RuntimeUnavailable
from agent.log import get_logger

_LOG = get_logger(__name__)


class Removals:
    """Those of one runtime; `remove` takes one container away. Safe to share between threads."""

    def __init__(self, remove: Callable[[str], None]) -> None:
        self._remove = remove
        self._lock = threading.Lock()
        self._going: dict[threading.Thread, str] = {}

    def begin(self, name: str, container: str) -> None:
        """Remove the container of the run of this name, meanwhile. What cannot be removed is left to the sweep."""
        thread = threading.Thread(target=self._go, args=(name, container), name=f"remove-{name}", daemon=True)
        try:
            with self._lock:  # it waits for that before it says that it has gone
                thread.start()
                self._going[thread] = name
        except RuntimeError:  # no thread is to be had
            self._try(name, container)

    def wait(self, name: str | None = None) -> bool:
        """Until the removals of this name, or all, have ended; whether there was one."""
        with self._lock:
            threads = [thread for thread, its_name in self._going.items() if name in {None, its_name}]
        for thread in threads:
            thread.join()
        return bool(threads)

    def _go(self, name: str, container: str) -> None:
        try:
            self._try(name, container)
        finally:
            with self._lock:
                del self._going[threading.current_thread()]

    def _try(self, name: str, container: str) -> None:
        try:
            self._remove(container)
        except RuntimeUnavailable as error:
            _LOG.warning("leftover.stays", container=name, detail=str(error))
