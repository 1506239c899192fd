"""Rootless Podman as a `Runtime`: make the container, look at what was really applied, and only then start it.

The cage is one create body (`runtime_podman_body.py`) and one comparison (`cage_check.py`). The socket is in
`runtime_podman_api.py`, images in `runtime_podman_images.py`, a started container in `container_run.py`. The agent runs as
the socket's own user.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from agent.domain.ceilings import DEFAULT_CEILINGS
from agent.domain.ids import Digest, hex_of
from agent.errors import BadImage, CageNotApplied, CageNotMade, ContainerLost, RuntimeUnavailable
from agent.ports import cage, cage_check, cage_seen
from agent.ports import runtime_podman_body as body
from agent.ports.alone import alone
from agent.ports.cage import EngineFacts, StoredImage
from agent.ports.container_run import ContainerRun
from agent.ports.memory_events import MemoryEvents
from agent.ports.run_ended import EndedRun
from agent.ports.run_kept import Kept, write_kept
from agent.ports.run_stack import RunStack
from agent.ports.run_watch import RunWatch, lying_before
from agent.ports.runtime import Enforcement, ImageInfo, Leftover, RunSpec
from agent.ports.runtime_podman_adoption import Adoption, why_lost
from agent.ports.runtime_podman_api import ApiRefusal, PodmanApi
from agent.ports.runtime_podman_body import Names
from agent.ports.runtime_podman_found import (
    GIVEN_LABEL,
    INSTANCE_LABEL,
    KEPT_LABEL,
    MAP_LABEL,
    NAME_LABEL,
    await_filter,
    exit_file_of,
    find,
    given_labels,
    not_made,
    pid_of,
    recorded_code,
    refusals,
)
from agent.ports.runtime_podman_images import PodmanImages
from agent.ports.runtime_podman_removals import Removals
from agent.ports.user_namespace import UserNamespace


class PodmanRuntime:
    """Implements `Runtime` over the socket of a rootless Podman of this very user.

    `seccomp_dir` holds train.json, predict.json and problem.json; `store` remembers which archives were loaded;
    `instance` tells this agent's containers from those of others on the same socket; `pool_size` is how many runs may go on
    at once, each under ids of its own (each distinct map copies the image once, when it is first used).
    """

    name = "podman"

    def __init__(
        self, socket: Path, seccomp_dir: Path, store: Path, *, instance: str, pool_size: int = 4
    ) -> None:
        self._api = PodmanApi(socket)
        self._images = PodmanImages(self._api, store)
        self._seccomp_dir = seccomp_dir
        self._instance, self._pool_size = instance, pool_size
        self._inside = UserNamespace.joined(self._api.service_pid)
        self._removals = Removals(self._destroy)
        self._asked: tuple[int, EngineFacts] | None = None  # by process of the service: asking takes 0.2 s

    def enforcement(self) -> Enforcement:
        """As the protocol says."""
        return cage.enforcement(self._facts(), DEFAULT_CEILINGS)

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
        self._removals.wait()
        return self._images.discard(digest)

    def clear_images(self) -> int:
        """As the protocol says."""
        return self._images.clear()

    # -------------------------------------------------------------- runs

    @contextlib.contextmanager
    def run(self, spec: RunSpec) -> Iterator[ContainerRun]:
        """As the protocol says. Raises RuntimeUnavailable too when every id map stays in use."""
        with RunStack() as stack:
            with self._api.kept():
                run = self._started(spec, stack)
            yield stack.gives(run)

    def framed(self, spec: RunSpec) -> contextlib.AbstractContextManager[None]:
        """As the protocol says: it makes nothing ahead."""
        return contextlib.nullcontext()

    def _started(self, spec: RunSpec, stack: RunStack) -> ContainerRun:
        """The run of a container that was made, looked at and let go; `stack` takes all of it away again."""
        image = self._images.remembered(spec.image)  # when a container is made, Podman says if it lost it
        if image is None:
            raise BadImage(f"image {hex_of(spec.image)[:12]} is not loaded")
        facts = self._facts()
        cage.refuse_missing(facts, spec.accept_missing)
        seccomp, seccomp_digest = cage.read_seccomp(self._seccomp_dir, spec.kind)
        applied = cage.applied(self.name, spec, facts, seccomp_digest)
        kept = Kept.of(spec, applied, lying_before(spec, self._inside))
        container, number = self._create(spec, image, facts, kept, stack)
        asked = self._asked_for(spec, image, number, seccomp, facts)
        told = self._make(container)
        pid = pid_of(told)
        self._check(told, asked)
        pidfd = cage_seen.read_back(lambda: os.pidfd_open(pid))
        stack.callback(os.close, pidfd)
        memory = cage_seen.read_back(lambda: MemoryEvents(pid))
        stack.callback(memory.close)
        exit_file = exit_file_of(told)
        run = ContainerRun(
            pidfd,
            memory,
            output=self._api.attach(container),
            log_bytes=spec.ceilings.log_bytes,
            engine_code=lambda: recorded_code(self._api, container, exit_file),
        )
        stack.callback(run.close)
        self._images.touch(spec.image)
        watch = RunWatch(spec, kept, pid, self._inside, run.kill)
        with refusals(CageNotMade):
            run.start(applied, spec.ceilings.wall_s, watch, lambda: self._start(container))
        await_filter(pid)
        return run

    @contextlib.contextmanager
    def adopt(self, spec: RunSpec) -> Iterator[ContainerRun | EndedRun]:
        """As the protocol says."""
        self._removals.wait(spec.name)
        found = find(self._api, self._container_name(spec.name))
        if found is None:
            raise ContainerLost(f"there is no container named {spec.name}")
        named = found.labels.get(INSTANCE_LABEL), found.labels.get(NAME_LABEL)
        if named != (self._instance, spec.name) or found.given != dict(spec.labels):
            raise ContainerLost(f"the container named {spec.name} is another agent's, job's or attempt's")
        with RunStack() as stack:
            stack.removes(self._destroy, found.id)
            why, kept = why_lost(found, spec), found.kept
            if why is not None or kept is None:
                raise ContainerLost(why or f"nothing is known of {spec.name}")
            adoption = Adoption(spec, found, kept, self._api, self._inside)
            yield stack.gives(adoption.living(stack) or adoption.ended())

    def _start(self, container: str) -> None:
        self._api.post(f"/containers/{container}/start")

    def leftovers(self) -> tuple[Leftover, ...]:
        """As the protocol says."""
        self._removals.wait()
        return tuple(
            Leftover(
                name=entry["Labels"].get(NAME_LABEL, ""),
                labels=given_labels(entry["Labels"]),
                is_running=entry["State"] in {"running", "paused", "stopping"},
            )
            for entry in self._containers(f"{INSTANCE_LABEL}={self._instance}")
        )

    def remove(self, name: str) -> None:
        """As the protocol says."""
        self._removals.wait(name)
        self._destroy(self._container_name(name))

    def _facts(self) -> EngineFacts:
        """Raises: RuntimeUnavailable; CageNotApplied when the engine runs as root."""
        service = self._api.service_pid()
        if self._asked is None or self._asked[0] != service:
            self._asked = service, self._ask(service)
        return self._asked[1]

    def _ask(self, service: int) -> EngineFacts:
        with refusals(RuntimeUnavailable):
            info = self._api.get("/info")
        host = info["host"]
        if not host["security"]["rootless"]:
            raise CageNotApplied("Podman runs as root: the agent wants the socket of its own user")
        maps = [*host["idMappings"]["uidmap"]], [*host["idMappings"]["gidmap"]]
        counts = [sum(row["size"] for row in rows if row["container_id"] > 0) for rows in maps]
        on_v2 = host["cgroupVersion"] == "v2"
        runtime_line = host["ociRuntime"]["version"].splitlines()[0]
        return EngineFacts(
            version=f"podman {info['version']['Version']}, {runtime_line}",
            controllers=frozenset(host.get("cgroupControllers") or ()) if on_v2 else frozenset(),
            id_count=min(counts),
            hard_limits=cage_seen.read_back(lambda: cage.hard_limits(service)),
        )

    def _create(
        self, spec: RunSpec, image: StoredImage, facts: EngineFacts, kept: Kept, stack: RunStack
    ) -> tuple[str, int]:
        """(container, number of its id map); `stack` removes it. Raises: CageNotApplied, BadImage, RuntimeUnavailable."""
        deadline_s = time.monotonic() + spec.patience_s
        pool = cage.map_pool(facts, self._pool_size)
        self._removals.wait(spec.name)
        while True:
            with alone(self._api.path.parent):  # no two runs choose one id map
                number = self._free_map(pool)
                if number is not None:
                    return self._create_mapped(spec, image, facts, number, kept, stack), number
            if time.monotonic() > deadline_s:
                raise RuntimeUnavailable(f"all {len(pool)} id maps of this host stay in use")
            if not self._removals.wait():  # one of ours would give its id map back
                time.sleep(0.05)

    def _create_mapped(
        self,
        spec: RunSpec,
        image: StoredImage,
        facts: EngineFacts,
        number: int,
        kept: Kept,
        stack: RunStack,
    ) -> str:
        labels = {INSTANCE_LABEL: self._instance, NAME_LABEL: spec.name, MAP_LABEL: str(number)}
        labels |= {KEPT_LABEL: write_kept(kept)}
        labels |= {GIVEN_LABEL + key: value for key, value in spec.labels.items()}
        names = Names(self._container_name(spec.name), labels)
        seccomp_path = str((self._seccomp_dir / f"{spec.kind}.json").resolve())
        document = self._body(spec, image, names, number, seccomp_path, facts)
        try:
            answer = self._api.post("/containers/create", document)
        except ApiRefusal as refusal:
            if "already in use" in str(refusal):
                raise RuntimeUnavailable(f"a container named {spec.name} is still there") from refusal
            if refusal.status == 404:
                raise BadImage(f"image {hex_of(spec.image)[:12]} is gone: {refusal}") from refusal
            raise CageNotMade(f"Podman did not make the container: {refusal}") from refusal
        container: str = answer["Id"]
        stack.removes(self._part_with, stack, spec.name, container)
        if answer.get("Warnings"):
            raise CageNotApplied(f"Podman warned: {'; '.join(answer['Warnings'])[:300]}")
        return container

    def _make(self, container: str) -> Mapping[str, Any]:
        """Make the container's frame: its first process waits before the image's program. Gives what Podman tells of it."""
        try:
            self._api.post(f"/containers/{container}/init")
        except ApiRefusal as refusal:
            raise not_made(refusal) from refusal
        with refusals(RuntimeUnavailable):
            told: Mapping[str, Any] = self._api.get(f"/containers/{container}/json")
        return told

    def _check(self, told: Mapping[str, Any], asked: cage_check.Asked) -> None:
        """Compare what was applied with what was asked; `told`: by Podman, once the frame was made.

        Raises: CageNotApplied naming every difference.
        """
        pid = pid_of(told)
        config = json.loads(self._inside.do("read", told["OCIConfigPath"])["text"])
        process = cage_seen.read_back(lambda: cage_seen.read_process(pid, asked.cgroup))
        differences = self._differences(config, process, asked)
        if differences:
            raise CageNotApplied("; ".join(differences)[:1000])
        tmp = cage_seen.read_back(lambda: Path(f"/proc/{pid}/root/tmp").stat())
        if tmp.st_mode & 0o7777 != 0o1777:
            raise BadImage(
                f"the image's /tmp has mode {tmp.st_mode & 0o7777:o}: make it 1777 or leave it out"
            )

    # What the steps of a build have otherwise (runtime_podman_build.py).
    def _body(
        self,
        spec: RunSpec,
        image: StoredImage,
        names: Names,
        number: int,
        seccomp_path: str,
        facts: EngineFacts,
    ) -> dict[str, Any]:
        return body.create_body(spec, image, names, number, seccomp_path, facts)

    def _asked_for(
        self, spec: RunSpec, image: StoredImage, number: int, seccomp: Mapping[str, Any], facts: EngineFacts
    ) -> cage_check.Asked:
        return cage.asked_for(spec, image, number, seccomp, facts)

    def _differences(
        self, config: Mapping[str, Any], process: cage_seen.Process, asked: cage_check.Asked
    ) -> list[str]:
        differences = cage_check.config_differences(config, asked)
        return differences + cage_check.process_differences(process, asked, os.getuid())

    def _free_map(self, pool: range) -> int | None:
        """The lowest id map that no container of any agent on this socket has."""
        taken = {entry["Labels"].get(MAP_LABEL) for entry in self._containers(MAP_LABEL)}
        return next((number for number in pool if str(number) not in taken), None)

    def _containers(self, label: str) -> list[dict[str, Any]]:
        with refusals(RuntimeUnavailable):
            found = self._api.get("/containers/json", all="true", filters=json.dumps({"label": [label]}))
        return [entry for entry in found or () if entry.get("Labels")]

    def _container_name(self, name: str) -> str:
        """The run's name with a mark of this agent before it: two agents may use one socket."""
        return f"dc-{hashlib.sha256(self._instance.encode()).hexdigest()[:8]}-{name}"

    def _part_with(self, stack: RunStack, name: str, container: str) -> None:
        """Remove it: one that ended while the caller goes on, one that may live at once."""
        if stack.is_over:
            self._removals.begin(name, container)
        else:
            self._destroy(container)

    def _destroy(self, container: str) -> None:
        try:
            self._api.delete(f"/containers/{container}", force="true", v="true", timeout="0")
        except ApiRefusal as refusal:
            if refusal.status != 404:
                raise RuntimeUnavailable(f"Podman did not remove a container: {refusal}") from refusal

    # -------------------------------------------------------------- files of the guests

    def reclaim(self, folder: Path) -> None:
        """As the protocol says: everything is the agent's even when this raises.

        Raises: BadOutput when a file had a set-id bit (it is cleared) or folders lay too deep (they are lifted out).
        """
        cage.judge_reclaimed(self._inside.do("reclaim", str(folder)))
