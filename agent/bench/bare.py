"""The baselines: a program of an image by bare rootless `runc run`, and by `podman run --rm`, with nothing of this agent's.

    archive, digest = noop_image(cache)
    bare = BareRunc(folder, unpacked(archive, digest, folder / "root"), ["/usr/bin/true"])
    seconds = bare.run()

Both may be called from several threads at once.
"""

import itertools
import json
import os
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agent.domain.ids import Digest
from agent.ports import image_archive, image_tree
from agent.ports.user_namespace import PATH, own_subordinate_ids
from agent.selftest.images import build_image, command_layer

TRUE = Path("/usr/bin/true")
MOUNT_POINTS = ("dev", "proc", "sys", "tmp")


def noop_image(cache: Path) -> tuple[Path, Digest]:
    """An image whose program does nothing, whatever its arguments: its archive, and its digest. Layers stay in `cache`."""
    archive = cache / "noop.tar"
    layers = [command_layer(cache, TRUE)]
    return archive, build_image(archive, layers=layers, entrypoint=[str(TRUE)], env={"PATH": "/usr/bin"})


def unpacked(archive: Path, digest: Digest, target: Path) -> Path:
    """The image's root file system in the new folder `target`, as the agent unpacks it for runc. Raises: BadImage, NoSpace."""
    image_tree.unpack(archive, image_archive.inspect(archive, digest), target, MOUNT_POINTS)
    return target


class BareRunc:
    """`runc run` of a bundle as `runc spec --rootless` writes it; only its root and its program are set.

    `has_ids`: the container gets the user's subordinate ids besides, as rootless Podman gives them, which costs runc the two
    programs newuidmap and newgidmap at every run; without them it has the user's own id alone, and nothing is cheaper.
    """

    def __init__(self, folder: Path, root: Path, words: Sequence[str], *, has_ids: bool = False) -> None:
        """`folder`: for the bundle and runc's state, in memory; `root`: the unpacked image. Raises: OSError,
        subprocess.SubprocessError.
        """
        runc = shutil.which("runc", path=PATH) or "runc"
        self._environment = {
            "PATH": PATH,
            "HOME": str(Path.home()),
            "XDG_RUNTIME_DIR": os.environ.get("XDG_RUNTIME_DIR", str(folder)),
        }
        bundle = folder / f"bundle-{os.urandom(4).hex()}"
        bundle.mkdir(parents=True)
        subprocess.run(
            [runc, "spec", "--rootless", "--bundle", str(bundle)], check=True, env=self._environment
        )
        config = json.loads((bundle / "config.json").read_text())
        config["root"]["path"] = str(root)
        config["process"] |= {"args": list(words), "terminal": False}
        if has_ids:
            config["linux"] |= _every_id()
        (bundle / "config.json").write_text(json.dumps(config))
        self._name, self._numbers = bundle.name, itertools.count()
        self._command = [runc, "--root", str(folder / "state"), "run", "--bundle", str(bundle)]

    def run(self) -> float:
        """Seconds from the call to the end of `runc run`. Raises: RuntimeError with what it said when it fails."""
        return _timed([*self._command, f"{self._name}-{next(self._numbers)}"], self._environment)


class BarePodman:
    """`podman run --rm` of an image that is in its storage, with nothing set."""

    def __init__(
        self, podman: Sequence[str], image: str, words: Sequence[str] = (), *, network: str | None = None
    ) -> None:
        """`podman`: the program with what names its storage; `image`: an id or a name; `words`: for the image's program;
        `network`: "none" where this user cannot have Podman's default one (`default_network`).
        """
        self._environment = {
            name: os.environ[name] for name in ("HOME", "XDG_RUNTIME_DIR") if name in os.environ
        }
        self._environment["PATH"] = PATH
        asked = [] if network is None else ["--network", network]
        self._command = [*podman, "run", "--rm", "--pull", "never", *asked, image, *words]

    def run(self) -> float:
        """Seconds from the call to the end of `podman run`. Raises: RuntimeError with what it said when it fails."""
        return _timed(self._command, self._environment)


def default_network() -> str | None:
    """What `podman run` must be told of its network here: None, or "none" without a program for it or a tun device."""
    has_program = shutil.which("slirp4netns", path=PATH) or shutil.which("pasta", path=PATH)
    return None if has_program and os.access("/dev/net/tun", os.R_OK | os.W_OK) else "none"


def network_notes() -> tuple[str, ...]:
    """What a reader of figures beside `podman run` must know of its network here."""
    network = default_network()
    note = f"`podman run` had --network {network}: this user cannot have Podman's default network"
    return () if network is None else (note,)


def _every_id() -> dict[str, Any]:
    """This user as root inside, and its subordinate ids from 1 on."""
    maps = {}
    for kind, own, ranges in zip(
        ("uid", "gid"), (os.getuid(), os.getgid()), own_subordinate_ids(), strict=True
    ):
        rows = [{"containerID": 0, "hostID": own, "size": 1}]
        for one in ranges:
            inside = rows[-1]["containerID"] + rows[-1]["size"]
            rows.append({"containerID": inside, "hostID": one.first, "size": one.count})
        maps[f"{kind}Mappings"] = rows
    return maps


def _timed(command: Sequence[str], environment: Mapping[str, str]) -> float:
    began_s = time.perf_counter()
    done = subprocess.run(
        command,
        env=environment,
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - began_s
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command[:4])} … failed: {done.stderr.strip()[-500:]}")
    return seconds
