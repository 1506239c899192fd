"""runc as a `Runtime`, without a daemon: a bundle for each run, conmon for exit code and log, one unpacked root an image.

The cage is one config (`runtime_runc_config.py`) and the comparison that Podman's runs go through too (`cage_check.py`). Images
are in `runtime_runc_images.py`, a started container in `container_run.py`. Everything is made inside a user namespace of
the agent's subordinate ids (`user_namespace.py`), where the agent's own supplementary groups are gone as well.

What a run is known by lies in a folder of its own below `run_dir`, in memory: `run.json` is there before the container is, and
goes after it, so whoever comes later finds every container of this agent.
"""

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from agent.domain.ceilings import DEFAULT_CEILINGS
from agent.domain.ids import Digest, hex_of
from agent.errors import BadImage, CageNotApplied, ContainerLost, RuntimeUnavailable
from agent.log import get_logger
from agent.ports import cage, cage_check, cage_seen, runtime_runc_config
from agent.ports.cage import EngineFacts, StoredImage
from agent.ports.cage_check import Bind
from agent.ports.container_run import ContainerRun
from agent.ports.memory_events import MemoryEvents
from agent.ports.process_times import began, opened
from agent.ports.run_ended import EndedRun
from agent.ports.run_kept import Kept, plan_of
from agent.ports.run_stack import RunStack
from agent.ports.run_watch import RunWatch, lying_before
from agent.ports.runtime import Enforcement, ImageInfo, Leftover, RunSpec
from agent.ports.runtime_runc_adoption import Adoption
from agent.ports.runtime_runc_cgroups import Cgroups
from agent.ports.runtime_runc_frames import Frame, Frames
from agent.ports.runtime_runc_images import RuncImages
from agent.ports.runtime_runc_mount_points import add_mount_points
from agent.ports.runtime_runc_output import ConmonOutput
from agent.ports.runtime_runc_programs import Programs
from agent.ports.runtime_runc_removal import Removal
from agent.ports.runtime_runc_runs import Known, Runs
from agent.ports.user_namespace import PATH, UserNamespace, own_subordinate_ids

_LOG = get_logger(__name__)


class RuncRuntime:
    """Implements `Runtime` with runc, conmon and a user namespace of this very user.

    `run_dir` lies in memory and is shared by all agents of the user; `store` keeps unpacked images; `instance` tells this
    agent's containers from those of others; `cgroups` is where runs get a cgroup of their own. As many runs as `pool_size` go
    on at once, each under its own ids. `path`: where the programs are looked for.
    """

    name = "runc"

    def __init__(
        self,
        run_dir: Path,
        seccomp_dir: Path,
        store: Path,
        *,
        instance: str,
        cgroups: Cgroups,
        pool_size: int = 4,
        path: str = PATH,
    ) -> None:
        self._seccomp_dir, self._cgroups, self._pool_size = seccomp_dir, cgroups, pool_size
        self._images = RuncImages(store)
        self._runs = Runs(run_dir / "runs", instance)
        self._inside = UserNamespace.made(path)
        self._programs = Programs(self._inside, run_dir / "runc", cgroups, path)
        self._removal = Removal(self._runs, self._programs, cgroups, self._inside)
        self._frames = Frames()
        self._known_facts: EngineFacts | None = None

    def enforcement(self) -> Enforcement:
        """As the protocol says."""
        facts = self._facts()
        return cage.enforcement(facts, DEFAULT_CEILINGS)

    # -------------------------------------------------------------- images

    def load(self, archive: Path, digest: Digest) -> ImageInfo:
        """As the protocol says. Raises NoSpace too."""
        return self._images.load(archive, digest)

    def image(self, digest: Digest) -> ImageInfo | None:
        """As the protocol says."""
        return self._images.image(digest)

    def images(self) -> tuple[ImageInfo, ...]:
        """As the protocol says."""
        return self._images.images()

    def discard(self, digest: Digest) -> bool:
        """As the protocol says."""
        with self._runs.alone():  # no run is claimed meanwhile
            if self._runs.uses(digest):
                return False
            self._images.discard(digest)
        return True

    def clear_images(self) -> int:
        """As the protocol says."""
        return self._images.clear()

    # -------------------------------------------------------------- runs

    @contextlib.contextmanager
    def run(self, spec: RunSpec) -> Iterator[ContainerRun]:
        """As the protocol says. Raises RuntimeUnavailable too when every id map stays in use."""
        with RunStack() as stack:
            frame = self._made_ahead(spec, stack) or self._frame(spec, stack, spec.patience_s)
            folder, known = frame.folder, frame.known
            pidfd = cage_seen.read_back(lambda: opened(known.pid, known.began))
            stack.callback(os.close, pidfd)
            self._check(frame)
            applied = cage.applied(self.name, spec, frame.facts, frame.seccomp_digest)
            kept = Kept.of(spec, applied, lying_before(spec, self._inside))
            let_go_s = time.clock_gettime(time.CLOCK_BOOTTIME)
            self._runs.remember(folder, replace(known, kept=kept, let_go_s=let_go_s))
            monitor = cage_seen.read_back(lambda: opened(known.monitor, known.monitor_began))
            stack.callback(os.close, monitor)
            memory = cage_seen.read_back(lambda: MemoryEvents(known.pid))
            stack.callback(memory.close)
            run = ContainerRun(
                pidfd,
                memory,
                output=ConmonOutput(folder),
                log_bytes=spec.ceilings.log_bytes,
                engine_code=lambda: self._runs.code_of(folder, known, monitor),
            )
            stack.callback(run.close)
            watch = RunWatch(spec, kept, known.pid, self._inside, run.kill)
            run.start(applied, spec.ceilings.wall_s, watch, lambda: self._start(folder, known))
            yield stack.gives(run)

    @contextlib.contextmanager
    def framed(self, spec: RunSpec) -> Iterator[None]:
        """As the protocol says."""
        self._programs.check()
        making = self._frames.begin(spec.name, lambda: self._ahead(spec))
        try:
            yield
        finally:
            if making is not None and (frame := self._frames.take(spec.name, making)) is not None:
                self._let_fall(frame)

    @contextlib.contextmanager
    def adopt(self, spec: RunSpec) -> Iterator[ContainerRun | EndedRun]:
        """As the protocol says."""
        self._programs.check()
        folder = self._runs.folder_of(spec.name)
        known = self._runs.read(folder)
        if known is None:
            self._removal.destroy(folder)  # whoever made or removed it may have been interrupted there
            raise ContainerLost(f"there is no container named {spec.name}")
        if (known.name, dict(known.labels)) != (spec.name, dict(spec.labels)):
            raise ContainerLost(f"the container named {spec.name} is another job's or attempt's")
        with RunStack() as stack:
            stack.removes(self._removal.destroy, folder, known)
            if known.kept is None or not self._programs.has_begun(folder.name):
                raise ContainerLost(f"the program of {spec.name} never began")
            if known.kept.plan != plan_of(spec):
                raise ContainerLost(f"the container named {spec.name} runs something else")
            adoption = Adoption(spec, known, known.kept, folder, self._runs, self._inside)
            yield stack.gives(adoption.living(stack) or adoption.ended(stack))

    def leftovers(self) -> tuple[Leftover, ...]:
        """As the protocol says."""
        self._programs.check()
        self._runs.clear()
        return tuple(Leftover(known.name, known.labels, known.is_running()) for known in self._runs.own())

    def remove(self, name: str) -> None:
        """As the protocol says. What this process makes ahead under that name is made first, and then goes whole."""
        self._frames.take(name)
        self._removal.destroy(self._runs.folder_of(name))

    def reclaim(self, folder: Path) -> None:
        """As the protocol says: everything is the agent's even when this raises."""
        cage.judge_reclaimed(self._inside.do("reclaim", str(folder)))

    def _stored(self, digest: Digest) -> StoredImage:
        """Raises: BadImage when it is not loaded."""
        stored = self._images.stored(digest)
        if stored is None:
            raise BadImage(f"image {hex_of(digest)[:12]} is not loaded")
        return stored

    # -------------------------------------------------------------- what this host can do

    def _facts(self) -> EngineFacts:
        """Raises: CageNotApplied without subordinate ids; RuntimeUnavailable without runc and conmon."""
        if self._known_facts is None:
            ranges = own_subordinate_ids()
            self._known_facts = EngineFacts(
                version=self._programs.version(),
                controllers=self._cgroups.controllers,
                id_count=min(sum(one.count for one in kind) for kind in ranges),
                hard_limits=cage.hard_limits(os.getpid()),
                cgroup_version=self._cgroups.version,
                tmp_inodes=cage.TMP_INODES,
            )
        return self._known_facts

    # -------------------------------------------------------------- one run

    def _frame(self, spec: RunSpec, stack: RunStack, patience_s: float) -> Frame:
        """The container of the run, none of its image's code let go; `stack` takes all of it away again.

        Raises: BadImage, CageNotApplied, RuntimeUnavailable, also when every place is in use for so long.
        """
        self._stored(spec.image)
        facts = self._facts()
        cage.refuse_missing(facts, spec.accept_missing)
        seccomp, seccomp_digest = cage.read_seccomp(self._seccomp_dir, spec.kind)
        folder, known = self._claim(spec, facts, stack, patience_s)
        image = self._stored(spec.image)  # once more: from the claim on nobody discards it
        self._images.touch(spec.image)
        made_s = time.monotonic()
        config = self._set_up(spec, image, known.number, seccomp, facts, folder)
        helper = self._inside.started
        return Frame(
            spec=spec,
            image=image,
            facts=facts,
            seccomp=seccomp,
            seccomp_digest=seccomp_digest,
            config=config,
            folder=folder,
            known=self._make(spec, known, folder),
            made_s=made_s,
            helper=helper,
        )

    def _made_ahead(self, spec: RunSpec, stack: RunStack) -> Frame | None:
        """The frame that `framed` made for this very run, the caller's from now on; None where there is none that fits."""
        frame = self._frames.take(spec.name)
        if frame is None:
            return None
        stack.removes(self._removal.destroy, frame.folder, frame.known)
        stage, helper = self._inside.stage, self._inside.started  # in this order: it is alive, and which one
        is_fit = frame.is_fit_for(spec, helper) and bool(stage)
        if is_fit and self._runs.is_there(frame.folder, frame.known):
            return frame
        _LOG.info("frame.not_taken", container=spec.name)
        self._removal.destroy(frame.folder, frame.known)
        return None

    def _ahead(self, spec: RunSpec) -> Frame:
        """One that outlives this call. No place is waited for. Raises: as `_frame`."""
        with RunStack() as stack:
            frame = self._frame(spec, stack, patience_s=0.0)
            stack.pop_all()
        return frame

    def _let_fall(self, frame: Frame) -> None:
        """Remove a frame that no run took; what cannot go is left to the sweep."""
        try:
            self._removal.destroy(frame.folder, frame.known)
        except RuntimeUnavailable as error:
            _LOG.warning("leftover.stays", container=frame.spec.name, detail=str(error))

    def _claim(
        self, spec: RunSpec, facts: EngineFacts, stack: RunStack, patience_s: float
    ) -> tuple[Path, Known]:
        """A folder for the run, and its id map; `stack` takes all of it away again. Raises: RuntimeUnavailable."""
        pool = cage.map_pool(facts, cage.every_map(facts))
        deadline_s = time.monotonic() + patience_s
        claim = (spec.name, spec.labels, spec.image, pool, self._pool_size)
        while (known := self._runs.claim(*claim)) is None:
            if time.monotonic() >= deadline_s:
                raise RuntimeUnavailable("all places for runs of this host stay in use")
            # A run that has its inputs goes before one that still waits for them, which makes its container later.
            if not self._frames.give_up_one(self._let_fall):
                time.sleep(0.05)
        folder = self._runs.folder_of(spec.name)
        stack.removes(self._removal.destroy, folder, known)
        return folder, known

    def _set_up(
        self,
        spec: RunSpec,
        image: StoredImage,
        number: int,
        seccomp: Mapping[str, Any],
        facts: EngineFacts,
        folder: Path,
    ) -> dict[str, Any]:
        """The run's folders where its ids can reach them, and its bundle; the config as it was read back from there."""
        root = self._images.root(spec.image)
        add_mount_points(root, [mount.target for mount in spec.mounts])
        stage = f"{self._inside.stage}/{folder.name}"
        binds = [(str(root), "root"), *((str(m.source), f"m{n}") for n, m in enumerate(spec.mounts))]
        self._inside.do("stage_run", stage, binds)
        config = runtime_runc_config.oci_config(
            spec,
            image,
            number,
            seccomp,
            facts,
            root=f"{stage}/root",
            sources=[f"{stage}/m{n}" for n in range(len(spec.mounts))],
            cgroup=self._cgroups.path_of(folder.name),
        )
        with _unless_taken_away(spec.name):
            (folder / "config.json").write_text(json.dumps(config))
            read: dict[str, Any] = json.loads((folder / "config.json").read_text())
        return read

    def _make(self, spec: RunSpec, known: Known, folder: Path) -> Known:
        """Make the container's frame: its first process waits before the image's program.

        Raises: BadImage when the image cannot start; CageNotApplied.
        """
        started = self._inside.started
        try:
            pid = self._programs.create(folder, spec.ceilings)
        except CageNotApplied as refusal:
            if self._inside.started != started:
                raise RuntimeUnavailable(f"the helper died while a run was set up: {refusal}") from refusal
            if not self._runs.is_there(folder, known):
                raise RuntimeUnavailable(
                    f"the container {spec.name} was removed by somebody else"
                ) from refusal
            raise
        monitor = cage_seen.read_back(lambda: int((folder / "conmon.pid").read_text()))
        made = replace(
            known,
            pid=pid,
            began=cage_seen.read_back(lambda: began(pid)),
            monitor=monitor,
            monitor_began=cage_seen.read_back(lambda: began(monitor)),
            cgroup=cage_seen.read_back(lambda: Path(f"/proc/{pid}/cgroup").read_text()),
        )
        self._runs.remember(folder, made)
        return made

    def _start(self, folder: Path, known: Known) -> None:
        """Let the program begin: that of this very run. Raises: as `Programs.start`."""
        with self._runs.holding(folder, known):
            self._programs.start(folder.name, known.pid)

    def _check(self, frame: Frame) -> None:
        """Compare what was applied with what was asked. Raises: CageNotApplied naming every difference."""
        spec, known = frame.spec, frame.known
        asked = cage.asked_for(spec, frame.image, known.number, frame.seccomp, frame.facts)
        stage = f"{self._inside.stage}/{self._runs.folder_of(spec.name).name}"
        binds = tuple(
            Bind(f"{stage}/m{number}", bind.target, bind.is_writable)
            for number, bind in enumerate(asked.binds)
        )
        asked = replace(asked, binds=binds)
        process = cage_seen.read_back(lambda: cage_seen.read_process(known.pid, asked.cgroup))
        differences = cage_check.config_differences(frame.config, asked)
        differences += cage_check.process_differences(process, asked, os.getuid())
        if process.status.get("Seccomp") != "2":
            differences.append("the seccomp filter was not loaded")
        for mount in spec.mounts:
            seen = cage_seen.read_back(lambda: os.stat(f"/proc/{known.pid}/root{mount.target}"))  # noqa: B023 - called at once
            wanted = mount.source.stat()
            if (seen.st_dev, seen.st_ino) != (wanted.st_dev, wanted.st_ino):
                differences.append(f"{mount.target} is another folder than the one that was asked for")
        if differences:
            raise CageNotApplied("; ".join(differences)[:1000])


@contextlib.contextmanager
def _unless_taken_away(name: str) -> Iterator[None]:
    """Somebody else may remove a run while it is set up: who gave this worker up, as it did not answer."""
    try:
        yield
    except FileNotFoundError as cause:
        raise RuntimeUnavailable(f"the container {name} was removed by somebody else") from cause
