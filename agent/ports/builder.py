"""The port that makes an image of a build context: no network, local bases only, and every step in the cage.

Source: docs/algorithms.md, "From a Dockerfile".
"""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from msgspec import Struct

from agent.domain.ceilings import Ceilings
from agent.domain.ids import Digest
from agent.ports.runtime import RunOutcome


class Base(Struct, frozen=True):
    """An image archive to start from: its file, whose digest the caller has checked."""

    archive: Path
    digest: Digest


FindBase = Callable[[str], Base | None]


class Steps(Protocol):
    """What runs the steps of a build: the cage of a job, but with a writable root that is kept."""

    def run(
        self,
        archive: Path,
        digest: Digest,
        target: Path,
        *,
        work_dir: str,
        user: int,
        ceilings: Ceilings,
        accept_missing: frozenset[str],
    ) -> tuple[RunOutcome, tuple[str, ...]]:
        """Run the entry point of this image as `user`, 0 or 1000; how it ended, and the names that it took away.

        After exit code 0 `target` is the image with one more layer, which need not say what is gone.
        Raises: CageNotApplied before any of it ran, BadImage, NoSpace, RuntimeUnavailable.
        """
        ...


class Builder(Protocol):
    """Makes images."""

    def build(
        self,
        context: Path,
        find_base: FindBase,
        target: Path,
        ceilings: Ceilings,
        accept_missing: frozenset[str] = frozenset(),
    ) -> Digest:
        """Write the image archive of this context to `target`; its digest. It passed the reader of image archives.

        `find_base` tells what FROM names, None for what the host does not know. `ceilings` hold for each step.
        Raises: BadBuild, BadImage, CageNotApplied, NoSpace, RuntimeUnavailable.
        """
        ...
