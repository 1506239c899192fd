"""Settings: `agent.toml`, then the environment over it, into one frozen value. They stop at wiring.

Where the folder of the settings (`home`) lies: `--home DIR`, else `$DC_COMPUTE_HOME`, else /etc/dc-compute
when it can be read, else the user's own configuration folder. A path in a setting is relative to `home`.
The name of `port` of the section `[listen]` in the environment is DC_COMPUTE_LISTEN_PORT. A file that systemd handed over as
the credential `identity.key` stands for the default of `key` of `[identity]`.
"""

import difflib
import hashlib
import os
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import msgspec
import platformdirs
from msgspec import Meta, Struct

from agent.errors import BadSettings

NAME = "dc-compute"
SETTINGS_FILE = "agent.toml"
SYSTEM_HOME = Path("/etc") / NAME
HOME_VARIABLE = "DC_COMPUTE_HOME"
PREFIX = "DC_COMPUTE_"
CREDENTIALS_VARIABLE = "CREDENTIALS_DIRECTORY"

S = TypeVar("S", bound=Struct)

Seconds = Annotated[float, Meta(gt=0, le=86400)]
Bytes = Annotated[int, Meta(ge=0, le=1 << 50)]
Threads = Annotated[int, Meta(ge=1, le=64)]


# ------------------------------------------------------------------ the sections


class Identity(Struct, frozen=True, kw_only=True):
    """Who this agent is. `key`: its Ed25519 key file (PEM, 0600); the public half stands in the roster."""

    key: Path


class Listen(Struct, frozen=True, kw_only=True):
    """Where it is called.

    `names`: further `host` or `host:port` by which it may be dialled, beside its roster address.
    `operator_socket`: the operator's Unix socket, 0600 in a folder 0700; with `operator_group` 0660 in a
    folder 0750 of that group.
    """

    host: str = "0.0.0.0"  # noqa: S104 - peers and orchestrators call it from other hosts, by signed requests
    port: Annotated[int, Meta(ge=0, le=65535)] = 8443
    names: tuple[str, ...] = ()
    tls_cert: Path
    tls_key: Path
    operator_socket: Path
    operator_group: str | None = None


class Trust(Struct, frozen=True, kw_only=True):
    """Whom it knows (`roster`) and what may run here (`policy`). An empty policy runs nothing."""

    roster: Path
    policy: Path


class Paths(Struct, frozen=True, kw_only=True):
    """Where it keeps things. `data`: ledger and queues; `spool`: images on their way from storage."""

    data: Path
    spool: Path

    @property
    def ledger(self) -> Path:
        return self.data / "ledger.sqlite"

    @property
    def queues(self) -> Path:
        return self.data / "queues.sqlite"

    @property
    def hands(self) -> Path:
        """A lock for each job that a worker has in hand."""
        return self.data / "hands"

    @property
    def images(self) -> Path:
        """What is remembered of images that Podman has loaded."""
        return self.data / "images"

    @property
    def roots(self) -> Path:
        """Images as they are unpacked for runc."""
        return self.data / "roots"

    @property
    def selftest(self) -> Path:
        """Where the image of the self-test's guest stays."""
        return self.data / "selftest"


class Workspaces(Struct, frozen=True, kw_only=True):
    """Where tasks run. `root` must lie in memory (tmpfs): dataset plaintext lies there."""

    root: Path


class RuntimeSection(Struct, frozen=True, kw_only=True):
    """The container engine, the folder of the seccomp profiles, and how many containers may run at once on this host; each
    runs under user ids of its own.

    `engine`: podman, runc, or auto: Podman where its socket answers, else runc. `run_dir`: what runc's runs are known by, in
    memory. `cgroup_parent`: a cgroup that root gave to the agent's user for runc's runs, as a path below the cgroup root.
    """

    engine: Annotated[str, Meta(pattern="^(auto|podman|runc)$")] = "auto"
    podman_socket: Path
    seccomp_dir: Path
    run_dir: Path
    cgroup_parent: str = ""
    pool_size: Threads = 4


class Limits(Struct, frozen=True, kw_only=True):
    """How much it takes on.

    `skew_s`: how far clocks may differ; `lease_s`: how long a silent worker keeps its task. Loaded images leave when unused
    for `image_days`, and while they take more than `images_bytes` together. Job logs are kept `log_days` after the job ended,
    orders `order_days` after the last thing happened to them, and in any case until they expired.
    """

    queue_limit: Annotated[int, Meta(ge=1, le=1_000_000)] = 1000
    low_disk_bytes: Bytes = 1 << 30
    max_model_bytes: Bytes = 4 << 30
    max_image_bytes: Bytes = 16 << 30
    image_days: Annotated[int, Meta(ge=1, le=36500)] = 30
    images_bytes: Bytes = 64 << 30
    log_days: Annotated[int, Meta(ge=1, le=36500)] = 30
    order_days: Annotated[int, Meta(ge=1, le=36500)] = 365
    skew_s: Annotated[int, Meta(ge=0, le=300)] = 30
    lease_s: Annotated[int, Meta(ge=3, le=3600)] = 60


class Timeouts(Struct, frozen=True, kw_only=True):
    """Of calls to storage, orchestrators and peers. `total_s` bounds a whole call, `transfer_s` one with a big body."""

    connect_s: Seconds = 10.0
    read_s: Seconds = 30.0
    total_s: Seconds = 120.0
    transfer_s: Seconds = 6 * 3600.0


class Workers(Struct, frozen=True, kw_only=True):
    """Threads by queue in one `dc-compute work`, and how long it waits for them when told to stop."""

    learnuplets: Threads = 1
    learn_tasks: Threads = 1
    test_tasks: Threads = 1
    preduplets: Threads = 1
    deliveries: Threads = 2
    grace_s: Seconds = 5.0


class Reconcile(Struct, frozen=True, kw_only=True):
    """When others are asked what a lost message hid: about `first_s` after a start, then about every `every_s`."""

    first_s: Seconds = 60.0
    every_s: Seconds = 900.0


class LogSection(Struct, frozen=True, kw_only=True):
    """How it speaks. `level`: debug, info, warning, error; `format`: auto, json, console."""

    level: Annotated[str, Meta(pattern="^(debug|info|warning|error)$")] = "info"
    format: Annotated[str, Meta(pattern="^(auto|json|console)$")] = "auto"


class Settings(Struct, frozen=True, kw_only=True):
    """All settings of one agent. `home` is the folder they came from."""

    home: Path
    identity: Identity
    listen: Listen
    trust: Trust
    paths: Paths
    workspace: Workspaces
    runtime: RuntimeSection
    limits: Limits
    timeouts: Timeouts
    workers: Workers
    reconcile: Reconcile
    log: LogSection


SECTIONS: Mapping[str, type[Struct]] = {
    name: kind for name, kind in get_type_hints(Settings).items() if name != "home"
}


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


def credentials(environment: Mapping[str, str]) -> Mapping[tuple[str, str], Path]:
    """Files that systemd handed to this service by LoadCredential=, by the setting after which they are named.

    `LoadCredential=identity.key:/somewhere/identity.pem` in a unit stands for the default of `key` of [identity]. What
    agent.toml or the environment say of that key still wins: a credential that nobody meant is never used in its place.
    """
    folder = environment.get(CREDENTIALS_VARIABLE)
    if not folder:
        return {}
    named = {
        (section, key): Path(folder) / f"{section}.{key}"
        for section, kind in SECTIONS.items()
        for key, type_ in get_type_hints(kind).items()
        if type_ is Path
    }
    return {setting: path for setting, path in named.items() if path.exists()}


def _seccomp_dir() -> Path:
    """Beside the program when it is installed, in the clone when it is not."""
    installed = Path(sys.prefix) / "share" / NAME / "seccomp"
    return installed if installed.is_dir() else Path(__file__).resolve().parent.parent / "seccomp"


# ------------------------------------------------------------------ reading


def load_settings(home: Path, environment: Mapping[str, str]) -> Settings:
    """The settings in force: defaults, `agent.toml` of `home` when there is one, then the environment.

    Raises: BadSettings, which names the file or variable and the key.
    """
    file = home / SETTINGS_FILE
    told = _read_file(file)
    overrides = _read_environment(environment)
    defaults = _defaults(home, environment)
    for (section, key), path in credentials(environment).items():
        defaults.setdefault(section, {})[key] = path
    sections: dict[str, Any] = {
        name: _section(
            name, kind, home, defaults.get(name, {}), (file, told.get(name, {})), overrides.get(name, {})
        )
        for name, kind in SECTIONS.items()
    }
    return Settings(home=home, **sections)


def _read_file(file: Path) -> dict[str, dict[str, Any]]:
    try:
        told = tomllib.loads(file.read_bytes().decode())
    except FileNotFoundError:
        return {}
    except OSError as cause:
        raise BadSettings(f"{file} cannot be read: {cause.strerror}") from cause
    except ValueError as cause:  # TOMLDecodeError, UnicodeDecodeError
        raise BadSettings(f"{file} is not TOML: {cause}") from cause
    for section, values in told.items():
        _check_name(section, SECTIONS, f"{file}: there is no section [{section}]")
        if not isinstance(values, dict):
            raise BadSettings(f"{file}: {section} is a section: write [{section}] and its keys below")
        for key in values:
            known = SECTIONS[section].__struct_fields__
            _check_name(key, known, f"{file}: [{section}] has no key {key!r}")
    return told


def _read_environment(environment: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Values by section and key. What names no section of ours belongs to somebody else, a test perhaps."""
    found: dict[str, dict[str, str]] = {}
    for variable, value in environment.items():
        section, _, key = variable.removeprefix(PREFIX).lower().partition("_")
        if not variable.startswith(PREFIX) or section not in SECTIONS:
            continue
        known = SECTIONS[section].__struct_fields__
        _check_name(key, known, f"{variable}: [{section}] has no key {key!r}")
        found.setdefault(section, {})[key] = value
    return found


def _check_name(name: str, known: Mapping[str, Any] | tuple[str, ...], complaint: str) -> None:
    if name in known:
        return
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"there are: {', '.join(known)}"
    raise BadSettings(f"{complaint}; {hint}")


def _section(
    name: str,
    kind: type[S],
    home: Path,
    defaults: Mapping[str, Any],
    told: tuple[Path, Mapping[str, Any]],
    overrides: Mapping[str, str],
) -> S:
    """One section's value, each key converted alone so that an error can name it."""
    file, from_file = told
    values = dict(defaults)
    for field in msgspec.structs.fields(kind):
        key = field.name
        if key in overrides:
            source = f"{PREFIX}{name}_{key}".upper()
            values[key] = _value(overrides[key], field.type, home, source, is_text=True)
        elif key in from_file:
            values[key] = _value(from_file[key], field.type, home, f"{file}: [{name}] {key}", is_text=False)
    return kind(**values)


def _value(value: Any, kind: Any, home: Path, source: str, *, is_text: bool) -> Any:
    """The value as its field's type. Text of the environment becomes numbers by itself, lists by commas."""
    if is_text and kind == tuple[str, ...]:
        value = [part.strip() for part in value.split(",") if part.strip()]
    try:
        return msgspec.convert(
            value, kind, strict=not is_text, dec_hook=lambda wanted, text: _path(wanted, text, home)
        )
    except msgspec.ValidationError as cause:
        raise BadSettings(f"{source}: {cause}") from cause


def _path(wanted: type, text: Any, home: Path) -> Path:
    if wanted is not Path:
        raise NotImplementedError(f"settings know no {wanted}")
    if not isinstance(text, str) or not text or "\0" in text:
        raise ValueError("Expected a path as text")
    return home / Path(text).expanduser()
