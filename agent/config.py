"""Settings: `agent.toml`, then the environment over it, then flags, into one frozen value. They stop at wiring.

Where the folder of the settings (`home`) lies: `--home DIR`, else `$DC_COMPUTE_HOME`, else /etc/dc-compute
when it can be read, else the user's own configuration folder. A path in a setting is relative to `home`.
The name of `port` of the section `[listen]` in the environment is DC_COMPUTE_LISTEN_PORT, as a flag `--set listen.port=8443`.
A file that systemd lent as the credential `identity.key` stands for the default of `key` of `[identity]`.

Beside it: `config_sections.py`, which settings there are; `config_sources.py`, how each source is read;
`config_reference.py`, how they are told to people.
"""

import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import platformdirs
from msgspec import Struct

from agent.config_sections import RELOADED, SECTIONS, LogSection, Settings
from agent.config_sources import (
    HOME_VARIABLE,
    PREFIX,
    Found,
    Mistake,
    Origin,
    Source,
    read_credentials,
    read_environment,
    read_file,
    read_flags,
    value_of,
)
from agent.errors import BadSettings

__all__ = [
    "HOME_VARIABLE",
    "PREFIX",
    "RELOADED",
    "SECTIONS",
    "SETTINGS_FILE",
    "SYSTEM_HOME",
    "Effective",
    "LogSection",
    "Mistake",
    "Origin",
    "Places",
    "Settings",
    "Source",
    "changed_keys",
    "find_home",
    "load_settings",
    "places",
    "read_settings",
    "user_home",
]

NAME = "dc-compute"
SETTINGS_FILE = "agent.toml"
SYSTEM_HOME = Path("/etc") / NAME


# ------------------------------------------------------------------ where things lie by default


@dataclass(frozen=True, slots=True)
class Places:
    """The folders that defaults start from: what lasts, and what need not outlive a boot."""

    data: Path
    run: Path
    podman_socket: Path
    runc_dir: Path  # one for all agents of a user: they share its subordinate ids


def find_home(flag: Path | None, environment: Mapping[str, str]) -> Path:
    """The folder of the settings; it need not exist."""
    if flag is not None:
        return flag.expanduser().absolute()
    if named := environment.get(HOME_VARIABLE):
        return Path(named).expanduser().absolute()
    if os.access(SYSTEM_HOME, os.R_OK | os.X_OK):
        return SYSTEM_HOME
    return user_home()


def user_home() -> Path:
    """The user's own folder for settings."""
    return Path(platformdirs.user_config_path(NAME))


def places(home: Path, environment: Mapping[str, str]) -> Places:
    """The default folders of an agent whose settings lie in `home`."""
    if home == SYSTEM_HOME:
        run = Path("/run") / NAME
        return Places(Path("/var/lib") / NAME, run, run / "podman" / "podman.sock", run / "runc")
    is_user = home == user_home()
    data = Path(platformdirs.user_data_path(NAME)) if is_user else home / "data"
    session = Path(environment.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}")
    podman_socket = session / "podman" / "podman.sock"
    if not session.is_dir():
        return Places(data, data / "run", podman_socket, data / "run/runc")
    # A folder of its own for each further agent; a short name, for a socket's path has 107 bytes at most.
    name = NAME if is_user else f"{NAME}-{hashlib.sha256(bytes(home)).hexdigest()[:8]}"
    return Places(data, session / name, podman_socket, session / f"{NAME}-runc")


def _defaults(home: Path, environment: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    here = places(home, environment)
    return {
        "identity": {"key": here.data / "identity.pem"},
        "listen": {
            "tls_cert": here.data / "tls.crt",
            "tls_key": here.data / "tls.key",
            "operator_socket": here.run / "operator.sock",
        },
        "trust": {"roster": home / "roster.toml", "policy": home / "policy.toml"},
        "paths": {"data": here.data, "spool": here.data / "spool"},
        "workspace": {"root": here.run / "work"},
        "runtime": {
            "podman_socket": here.podman_socket,
            "seccomp_dir": _seccomp_dir(),
            "run_dir": here.runc_dir,
        },
    }


def _seccomp_dir() -> Path:
    """Beside the program when it is installed, in the clone when it is not."""
    installed = Path(sys.prefix) / "share" / NAME / "seccomp"
    return installed if installed.is_dir() else Path(__file__).resolve().parent.parent / "seccomp"


# ------------------------------------------------------------------ reading


class Effective(Struct, frozen=True):
    """What the settings are, where each comes from, and everything that is wrong. `settings` is None when something is."""

    settings: Settings | None
    origins: dict[tuple[str, str], Origin]
    mistakes: tuple[Mistake, ...] = ()


def load_settings(home: Path, environment: Mapping[str, str], flags: Sequence[str] = ()) -> Settings:
    """The settings in force: defaults, `agent.toml` of `home` when there is one, the environment, flags.

    Raises: BadSettings, which names the file or variable and the key.
    """
    read = read_settings(home, environment, flags)
    if read.settings is None:
        raise BadSettings(str(read.mistakes[0]))
    return read.settings


def read_settings(
    home: Path, environment: Mapping[str, str], flags: Sequence[str] = (), *, file: Path | None = None
) -> Effective:
    """The same with where each value comes from. `file`: in place of `agent.toml` of `home`; then it must be there."""
    sources = (
        read_credentials(environment),
        read_file(home / SETTINGS_FILE if file is None else file, may_be_absent=file is None),
        read_environment(environment),
        read_flags(flags),
    )
    mistakes = [mistake for found in sources for mistake in found.mistakes]
    defaults = _defaults(home, environment)
    origins: dict[tuple[str, str], Origin] = {}
    sections: dict[str, Any] = {}
    for section, kind in SECTIONS.items():
        values = dict(defaults.get(section, {}))
        for key in kind.__struct_fields__:
            origins[section, key] = _read_key(section, key, home, sources, values, mistakes)
        try:
            sections[section] = kind(**values)
        except BadSettings as cause:  # keys that do not go together
            mistakes.append(Mistake(f"[{section}]", cause.detail))
    settings = None if mistakes else Settings(home=home, **sections)
    return Effective(settings, origins, tuple(mistakes))


def _read_key(
    section: str,
    key: str,
    home: Path,
    sources: Sequence[Found],
    values: dict[str, Any],
    mistakes: list[Mistake],
) -> Origin:
    """Put the key's value among `values`, and give where it comes from. A value that is covered by another is judged too."""
    origin = Origin(Source.DEFAULT)
    for told in (found.told[section, key] for found in sources if (section, key) in found.told):
        origin = told.origin
        try:
            values[key] = value_of(told, section, key, home)
        except msgspec.ValidationError as cause:
            mistakes.append(Mistake(told.origin.where or "", f"[{section}] {key}: {cause}"))
    return origin


def changed_keys(before: Settings, after: Settings) -> tuple[tuple[str, str], ...]:
    """The section and name of every key in which two settings differ."""
    return tuple(
        (section, key)
        for section, kind in SECTIONS.items()
        for key in kind.__struct_fields__
        if getattr(getattr(before, section), key) != getattr(getattr(after, section), key)
    )
