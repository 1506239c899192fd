"""The port to containers: one description of a run and its cage, which each adapter turns into its own form.

The cage itself is no part of a run's description, because it is no choice: an adapter applies all of
docs/contracts/container.md, "The cage", reads back what was really applied, and refuses with CageNotApplied otherwise.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from msgspec import Struct

from agent.domain.ceilings import Ceilings
from agent.domain.ids import Digest


class RunKind(StrEnum):
    """What a run is, which decides its seccomp profile."""

    TRAIN = "train"
    PREDICT = "predict"
    PROBLEM = "problem"  # detarget and perf


class Mount(Struct, frozen=True):
    """A folder of the workspace as the guest sees it. `target` is absolute; a writable one belongs to the guest."""

    source: Path
    target: str
    is_writable: bool = False


class RunSpec(Struct, frozen=True, kw_only=True):
    """One run of one image. `name` is unique on the host and deterministic: order, position, attempt, run."""

    name: str
    labels: Mapping[str, str]
    image: Digest
    kind: RunKind
    args: tuple[str, ...]
    mounts: tuple[Mount, ...]
    ceilings: Ceilings
    accept_missing: frozenset[str] = frozenset()  # ceilings (by field name) this host may lack
    patience_s: float = 900.0  # how long it waits for a place, while as many containers run as may


class Cage(Struct, frozen=True, kw_only=True):
    """What was really applied, as read back. `ceilings`: name -> "value by means"; `absent`: not enforced here."""

    runtime: str
    version: str
    seccomp: Digest
    ceilings: Mapping[str, str]
    absent: tuple[str, ...]


class RunOutcome(Struct, frozen=True, kw_only=True):
    """How a run ended.

    `cause` is None on exit code 0, else a word of the container contract: `exit:N`, `signal:N`, `oom`, `timeout`, `disk`,
    `output` (folders too deep to be measured), `seccomp`, `unknown`. `log`: stdout and stderr, capped, head and tail
    kept; it may carry data and stays on the host.
    """

    cause: str | None
    cage: Cage
    log: bytes
    wall_s: float
    cpu_s: float | None = None
    max_memory_bytes: int | None = None


class Leftover(Struct, frozen=True):
    """A container of ours that exists: its name and the labels it was made with. One that is only made is not running."""

    name: str
    labels: Mapping[str, str]
    is_running: bool


class ImageInfo(Struct, frozen=True):
    """A loaded image: digest of its archive, what its config says, and when it was loaded or ran last (aware UTC)."""

    digest: Digest
    size_bytes: int
    entrypoint: tuple[str, ...]
    used_at: datetime


class Enforcement(Struct, frozen=True, kw_only=True):
    """Which ceilings this host can hold, and how. `version`: of the engine; `means`: ceiling -> what enforces it here, or
    stands in for it; `absent`: ceilings that nothing holds, as `Cage.absent` will name them.
    """

    version: str
    means: Mapping[str, str]
    absent: tuple[str, ...]


def runs_outputs(version: str) -> bool:
    """Whether an engine of this version leaves noexec out of writable binds: crun 1.8 does, below Podman.

    A guest may run programs of its own anyway, those of its image and whatever its interpreter reads.
    """
    return "crun" in version


class Runtime(Protocol):
    """A container engine that holds the cage.

    Every method raises RuntimeUnavailable when the engine does not answer.
    """

    name: str

    def enforcement(self) -> Enforcement:
        """What the next run's ceilings would be held by. Raises: CageNotApplied when the engine can hold no cage at all."""
        ...

    def load(self, archive: Path, digest: Digest) -> ImageInfo:
        """Read the archive's manifest and config, refuse what must not be loaded, load the rest. Idempotent.

        `digest` is that of the archive's bytes; the caller has checked it. Raises: BadImage.
        """
        ...

    def image(self, digest: Digest) -> ImageInfo | None:
        """The loaded image of this archive digest, or None."""
        ...

    def images(self) -> tuple[ImageInfo, ...]:
        """Every image that `load` brought in."""
        ...

    def discard(self, digest: Digest) -> bool:
        """Forget the image and give its space back. Whether that is done: False while a container uses it.

        What is not there is discarded already. Another archive of the same image keeps its own.
        """
        ...

    def clear_images(self) -> int:
        """Remove what loads and discards left that were interrupted; how many. One that goes on is let alone."""
        ...

    def run(self, spec: RunSpec) -> AbstractContextManager["Run"]:
        """The started container of this spec. Leaving the context kills and removes it, whatever happened.

        Raises: CageNotApplied before any code of the image ran; BadImage when the image is not loaded or cannot start.
        """
        ...

    def framed(self, spec: RunSpec) -> AbstractContextManager[None]:
        """Have the container of this spec made ahead, beside what the caller does, as far as this engine can: none of the
        image's code is let go. `run` of the very same spec, within the context, waits for it and takes it. The mounts'
        folders are there; what a guest reads may come into them until `run` is called.

        Only one is made of a name at a time, and it may give its place up to another run that finds none.
        What goes wrong with it, no free place too, is told by `run`, which makes its own. Leaving the context removes a
        container that no run took; one that cannot go is left to the sweep. Raises: RuntimeUnavailable.
        """
        ...

    def adopt(self, spec: RunSpec) -> AbstractContextManager["Run"]:
        """The container of this spec's name that an earlier worker started, running or ended by now, as if this worker had
        started it. Leaving the context kills and removes it.

        Its ceilings and its cage stay those it was made with, its wall clock counts from its begin. Of its log there is what
        can still be read. Raises: ContainerLost when there is none with these labels, or its program never began or is
        another one than this spec's (what exists of it is removed first); RuntimeUnavailable.
        """
        ...

    def leftovers(self) -> tuple[Leftover, ...]:
        """Every container of ours on this host, running or not."""
        ...

    def remove(self, name: str) -> None:
        """Kill and remove one container by name. Gone already is fine."""
        ...

    def reclaim(self, folder: Path) -> None:
        """Make everything below `folder` belong to the agent and be readable by it. Follows no link; no run may use it.

        Raises: BadOutput, when all that is done, for a set-id file (its bits are cleared) or folders too deep to keep.
        """
        ...


class Run(Protocol):
    """A started container."""

    def wait(self) -> RunOutcome:
        """Wait for its end, kill it at its wall clock ceiling, and tell how it ended."""
        ...

    def kill(self) -> None:
        """Kill it now; `wait` then returns with `signal:9`. Callable from another thread."""
        ...

    def leave(self) -> None:
        """It is another worker's by now: leaving its context lets go of it, and touches nothing."""
        ...

    def progress(self) -> float | None:
        """The last number of a `progress: 0.42 …` line on stdout, in [0, 1], two decimals; None when there was none."""
        ...
