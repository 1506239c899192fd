"""Reads which versions are here: what a program tells of itself, and which package its file belongs to."""

import os
import platform
import re
import sqlite3
import ssl
from pathlib import Path

from agent.doctor.lines import Unknown
from agent.doctor.look import ask_program, find_program
from agent.doctor.versions import Build, Host

PROGRAMS = ("podman", "runc", "crun", "conmon")
REBOOT_MARK = Path("/run/reboot-required")


def look_at_versions() -> Host:
    """The versions of this host."""
    return Host(
        kernel=os.uname().release,
        reboot_waits=REBOOT_MARK.exists(),
        programs={name: look_at_program(name) for name in PROGRAMS},
        python=platform.python_version(),
        sqlite=sqlite3.sqlite_version,
        openssl=ssl.OPENSSL_VERSION,
        has_tls_1_3=ssl.HAS_TLSv1_3,
    )


def look_at_program(name: str) -> Build | Unknown | None:
    """The build of a program; None when there is none."""
    path = find_program(name)
    if path is None:
        return None
    words = ask_program([path, "--version"])
    if isinstance(words, Unknown):
        return words
    match = re.search(r"version:? +(\S+)", words)
    told = match[1] if match else words.splitlines()[0] if words else ""
    return _packaged(path, told)


def _packaged(path: str, told: str) -> Build:
    """With the package that the file belongs to. A merged /usr gives one file two names; the package knows one of them."""
    real = os.path.realpath(path)
    names = dict.fromkeys((path, real, real.removeprefix("/usr"), f"/usr{path.removeprefix('/usr')}"))
    if find_program("dpkg-query"):
        for name in names:
            owner = ask_program(["dpkg-query", "-S", name])
            if isinstance(owner, Unknown) or ":" not in owner:
                continue
            package = owner.splitlines()[0].split(":")[0].split(",")[0]
            version = ask_program(["dpkg-query", "-W", "-f", "${Version}", package])
            if not isinstance(version, Unknown):
                return Build(path, told, (package, version))
    if find_program("rpm"):
        owner = ask_program(["rpm", "-qf", "--qf", "%{NAME} %{VERSION}-%{RELEASE}\n", real])
        if not isinstance(owner, Unknown) and len(owner.split()) == 2:
            package, version = owner.split()
            return Build(path, told, (package, version), "rpm")
    return Build(path, told)
