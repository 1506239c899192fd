"""The steps of a build, in the cage of a job as Podman makes it, with three differences and no other: the root is writable,
the user inside may be 0 (no user of the host, without capabilities), and the working directory is the Dockerfile's.

The cage is read back before a step begins, the differences too, as for every run.
"""

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from agent.domain.ceilings import Ceilings
from agent.domain.ids import Digest
from agent.errors import NoSpace, RuntimeUnavailable
from agent.ports import cage, cage_check
from agent.ports import runtime_podman_body as body
from agent.ports.cage import EngineFacts, StoredImage
from agent.ports.cage_check import GUEST_ID, Asked
from agent.ports.cage_seen import Process
from agent.ports.image_layers import MAX_BYTES
from agent.ports.runtime import RunKind, RunOutcome, RunSpec
from agent.ports.runtime_podman import PodmanRuntime
from agent.ports.runtime_podman_api import ApiRefusal
from agent.ports.runtime_podman_body import Names
from agent.ports.runtime_podman_found import pid_of, recorded_code

DELETED = 2  # as Podman numbers what may happen to a file
STEP_UMASK = 0o022

# Where the root is writable, Podman mounts files of its own for this one container writable too.
WRITABLE_WITH_ROOT = frozenset({"/", "/etc/hostname", "/run/.containerenv"})


class PodmanStep(PodmanRuntime):
    """A runtime whose runs are steps of a build: each as `user` (0 or 1000), in `work_dir`, kept as an archive.

    `store` must be another than that of the agent's images: what lies between leaves with `close`.
    """

    def __init__(
        self,
        socket: Path,
        seccomp_dir: Path,
        store: Path,
        *,
        instance: str,
        pool_size: int,
        work_dir: str,
        user: int,
    ) -> None:
        super().__init__(socket, seccomp_dir, store, instance=instance, pool_size=pool_size)
        self._work_dir, self._user, self._store = work_dir, user, store

    def run_and_keep(self, spec: RunSpec, archive: Path, target: Path) -> tuple[RunOutcome, tuple[str, ...]]:
        """Run the image of this archive; after exit code 0 what it is then lies at `target`. The names that are gone, too.

        Raises: as `Runtime.run` and `Runtime.load`; NoSpace.
        """
        self.load(archive, spec.image)
        gone: tuple[str, ...] = ()
        try:
            with self.run(spec) as run:
                outcome = run.wait()
                if outcome.cause is None:
                    recorded_code(
                        self._api, self._container_name(spec.name)
                    )  # Podman knows that it ended, too
                    gone = self._keep(spec.name, target)
            return outcome, gone
        finally:
            self.discard(spec.image)

    def _keep(self, name: str, target: Path) -> tuple[str, ...]:
        """The stopped container as an archive; its image is gone after that. Gives what the container has removed: Podman
        4.3.1 leaves whiteouts out of what it commits of a container with an id map of its own."""
        with _translated():
            changes = self._api.get(f"/containers/{self._container_name(name)}/changes")
            made = self._api.post(
                "/commit", container=self._container_name(name), format="oci", pause="false"
            )
            image = made["Id"].removeprefix("sha256:")
            try:
                self._api.download(f"/images/{image}/get", target, MAX_BYTES, format="oci-archive")
            finally:
                self._api.delete(f"/images/{image}", force="true")
        return tuple(change["Path"].lstrip("/") for change in changes or () if change["Kind"] == DELETED)

    # -------------------------------------------------------------- the three differences

    def _make(self, container: str) -> Mapping[str, Any]:
        """As for a job; and the root is its owner's to write, which rootless Podman makes 0555."""
        told = super()._make(container)
        self._inside.do("open_root", pid_of(told))
        return told

    def _body(
        self,
        spec: RunSpec,
        image: StoredImage,
        names: Names,
        number: int,
        seccomp_path: str,
        facts: EngineFacts,
    ) -> dict[str, Any]:
        document = body.create_body(spec, image, names, number, seccomp_path, facts)
        return document | {
            "read_only_filesystem": False,
            "user": f"{self._user}:{self._user}",
            "work_dir": self._work_dir,
            "umask": f"{STEP_UMASK:04o}",  # what a step makes is read by the job's user later
        }

    def _asked_for(
        self, spec: RunSpec, image: StoredImage, number: int, seccomp: Mapping[str, Any], facts: EngineFacts
    ) -> Asked:
        return replace(
            cage.asked_for(spec, image, number, seccomp, facts), work_dir=self._work_dir, umask=STEP_UMASK
        )

    def _differences(self, config: Mapping[str, Any], process: Process, asked: Asked) -> list[str]:
        """Hold the two that the job's check knows otherwise against what they must be here, and leave the rest to it."""
        user = config.get("process", {}).get("user", {})
        found = []
        if (user.get("uid"), user.get("gid")) != (self._user, self._user) or set(
            user.get("additionalGids") or ()
        ) - {self._user}:
            found.append(f"the user inside is {user}")
        as_for_a_job = {**config, "root": {**config.get("root", {}), "readonly": True}}
        as_for_a_job["process"] = {
            **config.get("process", {}),
            "user": {"uid": GUEST_ID, "gid": GUEST_ID, "umask": user.get("umask")},
        }
        found += cage_check.config_differences(as_for_a_job, asked)
        seen, differs = self._as_guest(process)
        return found + differs + cage_check.process_differences(seen, asked, os.getuid())

    def _as_guest(self, process: Process) -> tuple[Process, list[str]]:
        """The process as it would be for a job, and what keeps it from being that."""
        differs, status = [], dict(process.status)
        for name, table in (("Uid", process.uid_map), ("Gid", process.gid_map)):
            start = table[0][1] if table else -1
            if set(status.get(name, "").split()) != {str(start + self._user)}:
                differs.append(f"{name} is {status.get(name)}")
            status[name] = str(start + GUEST_ID)
        start = process.gid_map[0][1] if process.gid_map else -1
        if set(status.get("Groups", "").split()) - {str(start + self._user)}:
            differs.append(f"the process has the groups {status.get('Groups')}")
        status["Groups"] = ""
        mounts = {
            point: replace(mount, options=mount.options - {"rw"} | {"ro"})
            if point in WRITABLE_WITH_ROOT
            else mount
            for point, mount in process.mounts.items()
        }
        return replace(process, status=status, mounts=mounts), differs


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except ApiRefusal as refusal:
        error = NoSpace if "no space left" in str(refusal) else RuntimeUnavailable
        raise error(f"Podman does not give back what a step made: {refusal}") from refusal
    except OSError as cause:
        raise NoSpace(f"what a step made cannot be written: {cause}") from cause


class PodmanSteps:
    """Runs steps (the port `builder.Steps`) over one Podman; `work` is a folder on disk for its notes, this object's alone.

    `instance` must be another than the agent's, whose sweep removes what belongs to no job.
    """

    def __init__(self, socket: Path, seccomp_dir: Path, work: Path, *, instance: str, pool_size: int) -> None:
        self._socket, self._seccomp_dir, self._work = socket, seccomp_dir, work
        self._instance, self._pool_size = instance, pool_size

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
        """As `builder.Steps.run`."""
        mark = uuid.uuid4().hex
        store = self._work / f"step-{mark}"
        runtime = self._runtime(store, work_dir, user)
        spec = RunSpec(
            name=f"build-{mark[:12]}",
            labels={"build": mark},
            image=digest,
            kind=RunKind.PROBLEM,
            args=(),
            mounts=(),
            ceilings=ceilings,
            accept_missing=accept_missing,
        )
        try:
            return runtime.run_and_keep(spec, archive, target)
        finally:
            shutil.rmtree(store, ignore_errors=True)

    def clear(self) -> None:
        """Remove what builds left that were killed. Raises: RuntimeUnavailable."""
        for store in self._work.glob("step-*"):
            runtime = self._runtime(store, "/", 0)
            for leftover in runtime.leftovers():
                runtime.remove(leftover.name)
            for image in runtime.images():
                runtime.discard(image.digest)
            runtime.clear_images()
            shutil.rmtree(store, ignore_errors=True)

    def _runtime(self, store: Path, work_dir: str, user: int) -> PodmanStep:
        return PodmanStep(
            self._socket,
            self._seccomp_dir,
            store,
            instance=self._instance,
            pool_size=self._pool_size,
            work_dir=work_dir,
            user=user,
        )
