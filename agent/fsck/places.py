"""What lies outside of the ledger, against the jobs in it: rings, folders, containers."""

from collections.abc import Collection, Iterator, Mapping

from agent.fsck.findings import BY_ITSELF, Code, Finding, Fix
from agent.fsck.orders import finding
from agent.fsck.seen import Folder, Places, Ring
from agent.pipeline.run import ATTEMPT_LABEL, JOB_LABEL
from agent.pipeline.trials import TRIAL_LABEL
from agent.pipeline.workspace import parse_folder_name
from agent.ports.runtime import Leftover

LOOK = "look at what it is, and remove it when it is nobody's"
AWAY = "start the engine (`dc-compute doctor` tells how), and look again"


def judge_places(
    places: Places, running: Mapping[str, int], known: Collection[str], ours: Collection[str]
) -> Iterator[Finding]:
    """`running`: attempt by job of everything that runs; `known`: the names of all jobs and deliveries; `ours`: names that the
    agent itself gives to entries of those folders.
    """
    for ring in places.rings:
        yield from _ring(ring, known)
    for folder in places.folders:
        yield from _folder(folder, running, ours)
    if places.containers is None:
        yield finding(Code.CONTAINERS_UNSEEN, "containers", places.unseen, AWAY)
        return
    used = {folder.name for folder in places.folders if folder.is_used}
    for container in places.containers:
        yield from _container(container, running, used)


def _ring(ring: Ring, known: Collection[str]) -> Iterator[Finding]:
    if ring.item in known:
        return
    told = "it is no id" if ring.item is None else f"it rings for {ring.item}, which is not there"
    yield Finding(
        code=Code.RING_OF_NOTHING,
        where=f"queue {ring.queue}",
        seen=told[:200],
        mend=BY_ITSELF,
        fix=Fix.DROP_RING,
        target=ring.row,
    )


def _folder(folder: Folder, running: Mapping[str, int], ours: Collection[str]) -> Iterator[Finding]:
    path = f"{folder.root}/{folder.name}"
    if folder.is_used or folder.name in ours:
        return
    owner = parse_folder_name(folder.name)
    if owner is None and not folder.name.startswith("selftest-"):
        yield finding(Code.FOLDER_STRANGE, path, "nothing of this agent bears such a name", LOOK)
    elif owner is None or running.get(owner[0]) != owner[1]:
        told = "its self-test is over" if owner is None else "its attempt does not run"
        yield Finding(
            code=Code.FOLDER_LEFT,
            where=path,
            seen=told,
            mend=f"{BY_ITSELF}, or the worker's next sweep",
            fix=Fix.REMOVE_FOLDER,
            target=path,
        )


def _container(container: Leftover, running: Mapping[str, int], used: Collection[str]) -> Iterator[Finding]:
    labels = container.labels
    if labels.get(TRIAL_LABEL) in used:
        return
    attempt = running.get(labels.get(JOB_LABEL, ""))
    if attempt is None or str(attempt) != labels.get(ATTEMPT_LABEL):
        told = "runs" if container.is_running else "is there"
        yield Finding(
            code=Code.CONTAINER_LEFT,
            where=f"container {container.name}",
            seen=f"it {told}, and its attempt does not",
            mend=f"{BY_ITSELF}, or the worker's next sweep",
            fix=Fix.REMOVE_CONTAINER,
            target=container.name,
        )
