"""`python -m agent.devkit.demo [--runc]`: the whole walk on this machine. Exit code 0 only when all that is promised was seen.

Jobs run in Podman, or with --runc in containers that no daemon makes.
"""

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from agent.devkit.consortium import NotStarted, found, on_podman, on_runc, running
from agent.devkit.demo.attacks import attack
from agent.devkit.demo.data import SPLITS, write_splits
from agent.devkit.demo.guests import demo_images
from agent.devkit.demo.show import Show
from agent.devkit.demo.story import Scene, cage, predict, score, train, verify
from agent.devkit.podman_service import NoPodman, checkout_folders, podman_service, why_no_runc
from agent.errors import AgentError
from agent.log import LogLevel, configure

# What rootless Podman cannot enforce on some hosts (cgroup v1); the receipts name what was really absent.
ACCEPTED_GAPS = ("memory_bytes", "cpu_millis", "pids")


def main(arguments: list[str]) -> int:
    """Tell the story; the exit code."""
    if arguments not in ([], ["--runc"]):
        sys.stderr.write("usage: python -m agent.devkit.demo [--runc]\n")
        return 2
    configure(LogLevel.ERROR)
    show = Show()
    try:
        tell(show, is_on_runc=bool(arguments))
    except (AgentError, NoPodman, NotStarted) as error:
        show.say(f"[red]the demo stopped:[/red] {error}")
        return 1
    missing = [what for what, is_seen in show.seen if not is_seen]
    show.chapter(f"{len(show.seen) - len(missing)} of {len(show.seen)} things seen that had to be seen")
    for what in missing:
        show.say(f"not seen: {what}")
    return 0 if show.is_complete else 1


def tell(show: Show, *, is_on_runc: bool) -> None:
    """Everything, in order."""
    cache = Path.home() / ".cache" / "dc-compute-demo"
    memory = Path(os.environ["XDG_RUNTIME_DIR"]) / "dcd"
    show.chapter("Images for the problem and the algorithms, made here without any registry")
    images = demo_images(cache / "images")
    for image in images:
        show.say(f"{image.name:11} {image.archive.stat().st_size >> 20:4} MiB  {image.digest}")
    with container_engine(is_on_runc) as runtime:
        show.chapter("Three hospitals, each a storage and an agent, and two orchestrators: eight programs")
        consortium = found(cache / "run", ("A", "B", "C"), runtime=runtime, memory=memory)
        consortium.admit([image.digest for image in images], accept_missing=ACCEPTED_GAPS)
        with running(consortium):
            scene = Scene(consortium, images, write_splits(cache / "run" / "plain"), show)
            settle_in(scene)
            signed = train(scene)
            score(scene, signed)
            cage(scene, signed)
            verify(scene, signed)
            predict(scene, signed)
            attack(scene, signed)


@contextlib.contextmanager
def container_engine(is_on_runc: bool) -> Iterator[Mapping[str, str]]:
    """What runs the jobs. Raises: NoPodman when it cannot run here."""
    if is_on_runc:
        if lacking := why_no_runc():
            raise NoPodman(f"containers need {lacking}")
        yield on_runc()
        return
    runtime_dir, root = checkout_folders()
    with podman_service(runtime_dir, root, name="demo") as podman_socket:
        yield on_podman(podman_socket)


def settle_in(scene: Scene) -> None:
    """Seal the data and bring data and images to storage."""
    consortium, show = scene.consortium, scene.show
    for party in consortium.parties:
        show.say(f"{party.name:15} {party.url}  {party.key.keyid[:16]}…")
    for image in scene.images:
        consortium.publish_image(image.archive)
    show.chapter("569 biopsies split over the hospitals, sealed, the keys split over both orchestrators")
    for split in SPLITS:
        consortium.seal(scene.files[split.name], split.ref, consortium.hospital(split.hospital), [split.use])
        scene.files[split.name].chmod(0o600)
    show.table(
        ["dataset", "hospital", "may be used to", "patients"],
        [[split.name, split.hospital, split.use, split.rows] for split in SPLITS],
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
