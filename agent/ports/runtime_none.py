"""No container engine at all: what the API has. It faces the network, and no way leads from it to containers.

Its process imports no engine's client either. Every method of the port refuses: whatever asks for a container there is a bug.
"""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import NoReturn

from agent.domain.ids import Digest
from agent.errors import RuntimeUnavailable
from agent.ports.runtime import Enforcement, ImageInfo, Leftover, Run, RunSpec


class NoRuntime:
    """See `runtime.Runtime`. Raises everywhere: RuntimeUnavailable."""

    name = "none"

    def enforcement(self) -> Enforcement:
        _refuse()

    def load(self, archive: Path, digest: Digest) -> ImageInfo:
        _refuse()

    def image(self, digest: Digest) -> ImageInfo | None:
        _refuse()

    def images(self) -> tuple[ImageInfo, ...]:
        _refuse()

    def discard(self, digest: Digest) -> bool:
        _refuse()

    def clear_images(self) -> int:
        _refuse()

    def run(self, spec: RunSpec) -> AbstractContextManager[Run]:
        _refuse()

    def framed(self, spec: RunSpec) -> AbstractContextManager[None]:
        _refuse()

    def adopt(self, spec: RunSpec) -> AbstractContextManager[Run]:
        _refuse()

    def leftovers(self) -> tuple[Leftover, ...]:
        _refuse()

    def remove(self, name: str) -> None:
        _refuse()

    def reclaim(self, folder: Path) -> None:
        _refuse()


def _refuse() -> NoReturn:
    raise RuntimeUnavailable("the API has no way to containers: the worker alone runs them")
