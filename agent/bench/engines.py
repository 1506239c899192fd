"""The container engines that the bench measures, wired as an agent's: a Podman service of the bench's own, and runc."""

import hashlib
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from agent import wiring
from agent.bench.run import cache_folder
from agent.config import Settings, load_settings
from agent.devkit.consortium import on_podman, on_runc
from agent.devkit.podman_service import (
    checkout_folders,
    podman_service,
    podman_words,
    service_environment,
    why_no_runc,
)
from agent.domain.ids import Digest, KeyId, hex_of
from agent.ports.runtime import Runtime

ME = KeyId(hashlib.sha256(b"dc-compute bench").hexdigest())  # whose containers those of the bench are


@contextmanager
def podman_engine() -> Iterator[Path]:
    """The socket of a Podman service on this checkout's storage, for the bench alone. Raises: NoPodman."""
    runtime_dir, root = checkout_folders()
    with podman_service(runtime_dir, root, name=f"bench-{os.getpid()}") as socket:
        yield socket


def engines(socket: Path) -> dict[str, Mapping[str, str]]:
    """The settings of each engine that works here, by name: the section `runtime`."""
    return {"podman": on_podman(socket), **({} if why_no_runc() else {"runc": on_runc()})}


def quickest(known: Mapping[str, Mapping[str, str]]) -> str:
    """The name of the engine that starts a container sooner, of those that work here."""
    return "runc" if "runc" in known else "podman"


def runtime_of(engine: Mapping[str, str]) -> Runtime:
    """The runtime that an agent with this section of settings has. What it loaded stays from run to run."""
    return wiring.make_runtime(settings_of(engine), ME)


def settings_of(engine: Mapping[str, str]) -> Settings:
    """The settings of an agent that has this engine and nothing else said: the defaults."""
    home = cache_folder() / "agent"
    return load_settings(home, {}, [f"runtime.{key}={value}" for key, value in engine.items()])


def podman_program(socket: Path) -> list[str]:
    """Podman without a service, on the storage that the service at this socket has."""
    ask = ["podman", "--remote", "--url", f"unix://{socket}", "info", "--format", "{{.Store.GraphRoot}}"]
    root = _said(ask).strip()
    return podman_words(Path(root), checkout_folders()[0])


def podman_name(podman: list[str], digest: Digest) -> str:
    """The name of an image that an agent's runtime loaded there. Raises: StopIteration when there is none."""
    named = _said([*podman, "images", "--format", "{{.Repository}}:{{.Tag}}"])
    return next(name for name in named.split() if name.endswith(hex_of(digest)))


def _said(command: list[str]) -> str:
    environment = service_environment()
    done = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, check=True)
    return done.stdout
