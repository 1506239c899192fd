"""What Podman tells of one container that is there, and of its refusals: read here, judged by the runtime."""

import contextlib
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from msgspec import Struct

from agent.errors import BadImage, CageNotApplied, CageNotMade, RuntimeUnavailable
from agent.ports import cage, cage_seen
from agent.ports.run_kept import Kept, read_kept
from agent.ports.runtime_podman_api import ApiRefusal, PodmanApi

LABEL = "dc-compute."
INSTANCE_LABEL, NAME_LABEL, MAP_LABEL = LABEL + "instance", LABEL + "name", LABEL + "id-map"
KEPT_LABEL = LABEL + "kept"
GIVEN_LABEL = LABEL + "given."  # before the labels of a RunSpec

FILTER_WAIT_S = 5.0
EXIT_FILE_WAIT_S = 0.2  # from the end of the container to conmon's note of it, a moment
NEVER = 1  # Podman writes a time that never came as one in this year
PASSING = "resource temporarily unavailable"  # processes that were killed a moment ago still count under the same ids
REMOVED = ("no such container", "container state improper", "being removed")
NOT_STARTABLE = (
    "attempted to invoke a command that was not found",
    "permission denied",
    "no such file",
    "exec format",
)


class Found(Struct, frozen=True, kw_only=True):
    """A container as Podman tells it. `pid`: of its first process, 0 when it has none; `began_at`: aware UTC, None when its
    program never began; `ended_at`: None when it did not end; `exit_file`: as `exit_file_of` tells.
    """

    id: str
    labels: Mapping[str, str]
    status: str
    pid: int
    exit_code: int
    was_out_of_memory: bool
    began_at: datetime | None
    ended_at: datetime | None
    exit_file: Path | None

    @property
    def given(self) -> dict[str, str]:
        """The labels of the RunSpec it was made from."""
        return given_labels(self.labels)

    @property
    def kept(self) -> Kept | None:
        """What was kept of its run."""
        return read_kept(self.labels.get(KEPT_LABEL, ""))

    def lasted_s(self) -> float:
        """From its begin to its end, to now when it has none."""
        now = datetime.now(UTC)
        return max(0.0, ((self.ended_at or now) - (self.began_at or now)).total_seconds())


def find(api: PodmanApi, container: str) -> Found | None:
    """The container of this name or id, None when there is none. Raises: RuntimeUnavailable."""
    try:
        told = api.get(f"/containers/{container}/json")
    except ApiRefusal as refusal:
        if refusal.status == 404:
            return None
        raise RuntimeUnavailable(f"Podman does not tell of a container: {refusal}") from refusal
    state = told["State"]
    return Found(
        id=told["Id"],
        labels=told["Config"].get("Labels") or {},
        status=state["Status"],
        pid=state["Pid"],
        exit_code=state["ExitCode"],
        was_out_of_memory=bool(state.get("OOMKilled")),
        began_at=_time(state["StartedAt"]),
        ended_at=_time(state["FinishedAt"]),
        exit_file=exit_file_of(told),
    )


def given_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """Those of a RunSpec among a container's own."""
    return {
        key.removeprefix(GIVEN_LABEL): value for key, value in labels.items() if key.startswith(GIVEN_LABEL)
    }


def _time(text: str) -> datetime | None:
    """Aware UTC; Podman writes nanoseconds, and any offset."""
    at = datetime.fromisoformat(text)
    return None if at.year == NEVER else at.astimezone(UTC)


def exit_file_of(told: Mapping[str, Any]) -> Path | None:
    """The file in which the conmon of an inspected container writes down its exit code, as conmon itself was told; None when
    it is gone.
    """
    try:
        words = Path(f"/proc/{int(told['State']['ConmonPid'])}/cmdline").read_bytes().decode().split("\0")
        return Path(words[words.index("--exit-dir") + 1], str(told["Id"]))
    except (OSError, ValueError, IndexError, KeyError, TypeError):
        return None


def recorded_code(api: PodmanApi, container: str, exit_file: Path | None = None) -> int | None:
    """The exit code of a container whose process has ended, or None when nobody can tell. Raises: RuntimeUnavailable.

    conmon writes it down before it starts the process of Podman that clears up. Podman itself answers only after that one, or,
    when conmon was killed, in the 20 seconds that it waits for it.
    """
    deadline_s = time.monotonic() + EXIT_FILE_WAIT_S
    while exit_file is not None and time.monotonic() < deadline_s:
        for path in (
            exit_file,
            exit_file.with_name(f"{exit_file.name}-old"),
        ):  # Podman calls it so when it cleared up
            with contextlib.suppress(OSError, ValueError):
                return int(path.read_text())
        time.sleep(0.002)
    try:
        code = api.post(f"/containers/{container}/wait", condition="stopped", interval="10ms")
    except ApiRefusal:
        return None
    return code if isinstance(code, int) else None


def is_first_process(pid: int, number: int, service: int) -> bool:
    """Whether this is the first process of the container that has this id map: no other container has it meanwhile, and a
    process that got the id after the end is no such one. `service`: a process of Podman in its user namespace.
    """
    try:
        outside = _outside(cage.map_start(number), cage_seen.id_map(Path(f"/proc/{service}/uid_map")))
        own = Path(f"/proc/{pid}")
        is_mapped = cage_seen.id_map(own / "uid_map") == ((0, outside, cage.MAP_SIZE),)
        return is_mapped and cage_seen.read_status(own).get("NSpid", "").split()[-1:] == ["1"]
    except (OSError, ValueError):
        return False


def _outside(inside: int, table: tuple[tuple[int, int, int], ...]) -> int:
    """The host's number of an id of a user namespace. Raises: ValueError when it has none."""
    for start, outside, count in table:
        if start <= inside < start + count:
            return outside + inside - start
    raise ValueError(inside)


def await_filter(pid: int) -> None:
    """See the seccomp filter on the running process: crun loads it only right before the image's program.

    A process that has ended was the program itself. Raises: CageNotApplied.
    """
    deadline_s = time.monotonic() + FILTER_WAIT_S
    own = Path(f"/proc/{pid}")
    while time.monotonic() < deadline_s:
        try:
            status = cage_seen.read_status(own)
        except OSError:
            return
        if status.get("Seccomp") == "2" or status.get("State", "").startswith(("Z", "X")):
            return
        time.sleep(0.001)
    raise CageNotApplied("the seccomp filter was not loaded")


# ------------------------------------------------------------------ what Podman refuses


@contextlib.contextmanager
def refusals(error: type[CageNotApplied] | type[RuntimeUnavailable]) -> Iterator[None]:
    """Podman's no, as this error; as RuntimeUnavailable when the container was removed meanwhile."""
    try:
        yield
    except ApiRefusal as refusal:
        kind = RuntimeUnavailable if is_removed(refusal) else error
        raise kind(f"Podman refused: {refusal}") from refusal


def is_removed(refusal: ApiRefusal) -> bool:
    """Whether somebody else removed the container, or is about to."""
    return refusal.status == 404 or any(words in str(refusal).lower() for words in REMOVED)


def not_made(refusal: ApiRefusal) -> BadImage | CageNotMade | RuntimeUnavailable:
    """Why a container's frame was not made: for the image, for what passes by itself, or for the host."""
    words = str(refusal)
    if any(known in words for known in NOT_STARTABLE):
        return BadImage(f"the image cannot start: {words}")
    if PASSING in words.lower() or is_removed(refusal):
        return RuntimeUnavailable(f"Podman could not make the cage now: {words}")
    return CageNotMade(f"Podman did not make the cage: {words}")


def pid_of(told: Mapping[str, Any]) -> int:
    """The first process of an inspected container whose frame is made. Raises: RuntimeUnavailable when it is gone."""
    pid = int(told["State"]["Pid"])
    if pid <= 0:
        raise RuntimeUnavailable("the container ended before it was started")
    return pid
