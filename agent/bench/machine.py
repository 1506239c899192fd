"""On what the bench ran: the machine, and the version of everything that has a part in the figures."""

import os
import platform
import shutil
import sqlite3
import ssl
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from agent import __version__
from agent.devkit.podman_service import oci_runtime

PROGRAMS = ("podman", "conmon", "runc", "crun")
LIBRARIES = ("cryptography", "httpx", "huey", "msgspec", "sqlalchemy", "starlette", "uvicorn")


def about(commit: str | None) -> dict[str, Any]:
    """Versions, commit, machine. `commit`: of the sources, where they came from a repository."""
    return {
        "commit": commit,
        "versions": {
            "dc-compute": __version__,
            "python": platform.python_version(),
            "sqlite": sqlite3.sqlite_version,
            "openssl": ssl.OPENSSL_VERSION,
            **{name: version(name) for name in LIBRARIES},
            **{name: told for name in PROGRAMS if (told := _version(name)) is not None},
        },
        "machine": {
            "cpus": os.cpu_count(),
            "kernel": platform.release(),
            "processor": platform.machine(),
            "cgroups": 2 if Path("/sys/fs/cgroup/cgroup.controllers").exists() else 1,
            "oci_runtime": oci_runtime(),
            "load": os.getloadavg()[0],
        },
    }


def _version(name: str) -> str | None:
    """The first line that the program says of its version; None where there is no such program."""
    path = shutil.which(name)
    if path is None:
        return None
    done = subprocess.run([path, "--version"], capture_output=True, text=True, check=False, cwd="/")
    return (done.stdout.strip().splitlines() or [""])[0]
