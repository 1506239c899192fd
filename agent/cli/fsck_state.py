"""How fsck looks at the state of an agent, and mends it.

What lies outside is listed before the ledger is read: what was there then, and belongs to nothing that runs, will not be
wanted again.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from agent.cli.doctor_patient import Patient
from agent.doctor.lines import Unknown
from agent.domain.ids import digest_from_hex
from agent.errors import AgentError, LedgerUnavailable
from agent.fsck.findings import BY_ITSELF, RESTORE, Code, Finding, Fix
from agent.fsck.ledger import LEDGER, judge_file, judge_orders, judge_rows
from agent.fsck.orders import finding
from agent.fsck.places import judge_places
from agent.fsck.seen import Folder, Places, QueuesSeen, Ring
from agent.pipeline.space import SHELF
from agent.pipeline.trials import is_under_way
from agent.pipeline.workspace import remove_folder
from agent.ports.runtime import Runtime

STOPPED_ONLY = "images, and files that were left: judged when no service runs"
STOP_FIRST = f"`systemctl stop dc-compute.target`, then {BY_ITSELF}"
_IMAGE = re.compile(r"(?P<hex>[0-9a-f]{64})(?P<rest>.*)")
_LOADED = ("", ".json")  # how the entry of an image that is whole ends: below runc, below Podman


@dataclass(frozen=True, slots=True)
class State:
    """What was found, and what could not be judged."""

    findings: tuple[Finding, ...]
    not_judged: tuple[str, ...]


class Look:
    """One look at everything that `patient` keeps."""

    def __init__(self, patient: Patient, *, is_stopped: bool) -> None:
        self._patient, self._settings, self._is_stopped = patient, patient.settings, is_stopped
        self._runtime = runtime_of(patient)
        self._not_judged: list[str] = []

    def state(self) -> State:
        """Everything that does not agree."""
        from agent.wiring_state import look_into_queues

        queues = look_into_queues(self._settings)
        places = self._places(queues)
        findings = [*self._damaged(queues), *self._ledger(places)]
        if self._is_stopped:
            findings += [*self._left_files(), *self._images()]
        else:
            self._not_judged.append(STOPPED_ONLY)
        return State(tuple(findings), tuple(self._not_judged))

    # ---- the ledger

    def _ledger(self, places: Places) -> Iterator[Finding]:
        from agent.pipeline.garbage import BUILDS
        from agent.wiring_state import interrupted, look_into_ledger

        patient, path = self._patient, self._settings.paths.ledger
        if begun := interrupted(self._settings):
            told = f"the ledger was being replaced; what lay there is in {path.with_name(begun)}"
            yield finding(Code.RESTORE_INTERRUPTED, LEDGER, told, "`dc-compute restore FILE`, again")
        elif not path.exists():
            self._not_judged.append("the ledger: there is none yet")
            return
        try:
            with look_into_ledger(self._settings) as ledger:
                yield from judge_file(ledger)
                if ledger.revision() != ledger.head:
                    self._not_judged.append(
                        "orders, folders and containers: the ledger is of another version"
                    )
                    return
                if isinstance(patient.roster, Unknown) or isinstance(patient.key, Unknown):
                    self._not_judged.append("orders and receipts: the roster or the key cannot be read")
                else:
                    yield from judge_orders(ledger, patient.roster, patient.key.keyid)
                yield from judge_rows(ledger)
                running, known = ledger.running(), ledger.names()
        except LedgerUnavailable as error:
            yield finding(Code.UNREADABLE, LEDGER, error.detail, RESTORE)
            self._not_judged.append("what the ledger would tell")
            return
        own = {SHELF, f"{SHELF}.lock", BUILDS}
        yield from (one for one in judge_places(places, running, known, own) if _is_still_there(one))

    # ---- what lies outside

    def _places(self, queues: QueuesSeen) -> Places:
        """Folders and containers as they are now."""
        root, spool = self._settings.workspace.root, self._settings.paths.spool
        folders = [
            Folder(str(place), entry.name, place == root and is_under_way(entry.name, root))
            for place in (root, spool)
            for entry in _entries(place)
        ]
        rings = tuple(Ring(ring.queue, ring.item, ring.row) for ring in queues.rings)
        try:
            if isinstance(self._runtime, Unknown):
                return Places(
                    rings=rings, folders=tuple(folders), containers=None, unseen=self._runtime.reason
                )
            found = self._runtime.leftovers()
        except AgentError as error:
            return Places(rings=rings, folders=tuple(folders), containers=None, unseen=error.detail)
        return Places(rings=rings, folders=tuple(folders), containers=found)

    def _damaged(self, queues: QueuesSeen) -> Iterator[Finding]:
        for complaint in queues.complaints[:1]:
            yield Finding(
                code=Code.QUEUES_DAMAGED,
                where=str(self._settings.paths.queues),
                seen=complaint[:300],
                mend=BY_ITSELF if self._is_stopped else STOP_FIRST,
                fix=Fix.QUEUES_ASIDE if self._is_stopped else None,
            )

    # ---- when nothing runs

    def _left_files(self) -> Iterator[Finding]:
        """Copies of the ledger that a restore left when it was killed."""
        ledger = self._settings.paths.ledger
        for path in sorted(ledger.parent.glob(f"{ledger.name}.restoring*")):
            yield Finding(
                code=Code.FILE_LEFT,
                where=str(path),
                seen="a restore that was interrupted left it",
                mend=BY_ITSELF,
                fix=Fix.REMOVE_FILE,
                target=str(path),
            )

    def _images(self) -> Iterator[Finding]:
        """What is remembered of loaded images, against what the engine has."""
        if isinstance(self._runtime, Unknown):
            return
        paths = self._settings.paths
        store = paths.roots if self._runtime.name == "runc" else paths.images
        try:
            loaded = {image.digest for image in self._runtime.images()}
        except AgentError as error:
            self._not_judged.append(f"images: {error.detail}")
            return
        for entry in _entries(store):
            parts = _IMAGE.fullmatch(entry.name)
            if parts is None:
                continue
            if parts["rest"] not in _LOADED:
                told = "it was on its way in or out, and that was interrupted"
                yield Finding(
                    code=Code.IMAGE_LEFT, where=str(entry), seen=told, mend=BY_ITSELF, fix=Fix.CLEAR_IMAGES
                )
            elif digest_from_hex(parts["hex"]) not in loaded:
                told = f"{self._runtime.name} does not have this image any more, or only half of it"
                yield finding(
                    Code.IMAGES_DIFFER, str(entry), told, "nothing: it is loaded anew when an order names it"
                )


def runtime_of(patient: Patient) -> Runtime | Unknown:
    """The engine that runs jobs here, not asked yet."""
    from agent.wiring import make_runtime

    if isinstance(patient.key, Unknown):
        return patient.key
    try:
        return make_runtime(patient.settings, patient.key.keyid)
    except AgentError as error:
        return Unknown(error.detail)


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _is_still_there(one: Finding) -> bool:
    """A folder may be one that was just removed."""
    return one.fix is not Fix.REMOVE_FOLDER or Path(one.target).exists()


# ------------------------------------------------------------------ mends


def mend_all(seen: State, patient: Patient) -> tuple[Finding, ...]:
    """Do the mends that lose nothing; those that were done. What a mend cannot do stays a finding."""
    done = []
    for one in seen.findings:
        with suppress(AgentError, OSError):
            if one.fix is not None and _mend(one, one.fix, patient):
                done.append(one)
    return tuple(done)


def _mend(one: Finding, fix: Fix, patient: Patient) -> bool:
    """Whether it is mended now."""
    from agent import wiring_state

    settings, now = patient.settings, datetime.now(UTC)
    match fix:
        case Fix.MIGRATE:
            wiring_state.migrate_ledger(settings)
        case Fix.END_LEASE | Fix.DROP_LEASE | Fix.SETTLE:
            with wiring_state.open_mends(settings) as ledger:
                mends: Mapping[Fix, Callable[[str, datetime], bool]] = {
                    Fix.END_LEASE: ledger.end_lease,
                    Fix.DROP_LEASE: ledger.drop_lease,
                    Fix.SETTLE: ledger.settle,
                }
                return mends[fix](one.target, now)
        case Fix.DROP_RING:
            return wiring_state.drop_ring(settings, one.target)
        case Fix.QUEUES_ASIDE:
            wiring_state.set_queues_aside(settings, f"damaged-{now:%Y%m%dT%H%M%SZ}")
        case Fix.REMOVE_FILE:
            os.unlink(one.target)
        case Fix.REMOVE_FOLDER | Fix.REMOVE_CONTAINER | Fix.CLEAR_IMAGES:
            return _mend_by_engine(one, fix, patient)
    return True


def _mend_by_engine(one: Finding, fix: Fix, patient: Patient) -> bool:
    runtime = runtime_of(patient)
    if isinstance(runtime, Unknown):
        return False
    match fix:
        case Fix.REMOVE_FOLDER:
            remove_folder(Path(one.target), runtime)
        case Fix.REMOVE_CONTAINER:
            runtime.remove(one.target)
        case _:
            runtime.clear_images()
            return not Path(one.where).exists()
    return True
