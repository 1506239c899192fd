"""Whom the doctor looks at: the agent of some settings, as its own user meets the host. `meet` gives it."""

import os
import pwd
import shlex
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from agent.cli.here import Here
from agent.config import SYSTEM_HOME, Settings, load_settings
from agent.doctor.clock import Answered
from agent.doctor.lines import Unknown
from agent.doctor.reach import Call
from agent.errors import AgentError, BadSettings
from agent.trust.keys import SigningKey
from agent.trust.policy import HostPolicy
from agent.trust.roster import Role, Roster, RosterEntry

if TYPE_CHECKING:
    from agent.wiring import AskHealth

T = TypeVar("T")

CALL_TIMEOUT_S = 5.0
CALLS_AT_ONCE = 16
PODMAN_UNIT = "dc-compute-podman.service"
# What a host that nobody foresaw makes of a reader.
STRANGE = (AgentError, OSError, ValueError, LookupError, TypeError)


@dataclass
class Patient:
    """The host and the agent that is looked at. What cannot be read is `Unknown`; nothing is read before it is needed."""

    settings: Settings
    uid: int
    gid: int
    by_root: bool  # who asks: root acts as the agent's user
    is_quick: bool = False  # only the quick part of the self-test

    @property
    def user(self) -> str:
        """The agent's user by name, or by number where it has none."""
        try:
            return pwd.getpwuid(self.uid).pw_name
        except KeyError:
            return str(self.uid)

    @property
    def command(self) -> str:
        """How this agent's own command is called."""
        home = self.settings.home
        return "dc-compute" if home == SYSTEM_HOME else f"dc-compute --home {shlex.quote(str(home))}"

    @property
    def mend_key(self) -> str:
        """The command that makes the key, or gives it to this agent alone."""
        path = self.settings.identity.key
        if not os.path.exists(path):  # unlike Path.exists, it raises nothing
            return f"{self.command} init"
        return f"chown {self.user} {path} && chmod 600 {path}"

    @property
    def start_podman(self) -> str:
        """The command that starts its Podman anew, in an empty environment."""
        if self.settings.home == SYSTEM_HOME:
            whose = f"--machine={self.user}@ " if self.by_root else ""
            return f"systemctl --user {whose}restart {PODMAN_UNIT}"
        kept = 'HOME="$HOME" XDG_RUNTIME_DIR="$XDG_RUNTIME_DIR" PATH=/usr/bin:/bin:/usr/sbin:/sbin'
        service = "podman --storage-driver overlay system service --time=0"
        return f"env -i {kept} {service} unix://{self.settings.runtime.podman_socket} &"

    @cached_property
    def key(self) -> SigningKey | Unknown:
        """The identity."""
        return known(lambda: SigningKey.load(self.settings.identity.key))

    @cached_property
    def roster(self) -> Roster | Unknown:
        """Who is who."""
        from agent.wiring import read_roster

        return known(lambda: read_roster(self.settings))

    @cached_property
    def policy(self) -> HostPolicy | Unknown:
        """What may run here."""
        from agent.wiring import read_policy

        return known(lambda: read_policy(self.settings))

    @cached_property
    def engine(self) -> str | Unknown:
        """The name of what runs jobs here."""
        from agent.wiring import make_runtime

        me = SigningKey.generate() if isinstance(self.key, Unknown) else self.key
        return known(lambda: make_runtime(self.settings, me.keyid).name)

    @property
    def entry(self) -> RosterEntry | None:
        """The own entry, when key and roster can be read and it is there."""
        if isinstance(self.key, Unknown) or isinstance(self.roster, Unknown):
            return None
        return self.roster.find(self.key.keyid)

    @property
    def hosts(self) -> tuple[str, ...]:
        """Every host name or address by which others call this agent: its roster address, and the names of its settings."""
        urls = [f"https://{name}" for name in self.settings.listen.names]
        if self.entry is not None and self.entry.agent_url is not None:
            urls.append(self.entry.agent_url)
        return tuple(dict.fromkeys(urlsplit(url).hostname or "" for url in urls))

    @property
    def host(self) -> str:
        """One of them, for a command."""
        return next(iter(self.hosts), "HOST")

    @cached_property
    def calls(self) -> tuple[Call, ...]:
        """Everybody that this agent works with, asked at the same time."""
        if isinstance(self.key, Unknown) or isinstance(self.roster, Unknown):
            return ()
        from agent.wiring import open_health

        with (
            open_health(self.settings, self.key, self.roster, CALL_TIMEOUT_S) as ask,
            ThreadPoolExecutor(CALLS_AT_ONCE) as threads,
        ):
            return tuple(threads.map(lambda who: call(ask, *who), others(self.roster, self.key)))


def owner_file(settings: Settings) -> Path:
    """The file whose owner is the agent's user: the key, unless it is root's, as a credential of a service is.

    Raises: BadSettings for somebody who may not even look.
    """
    try:
        for path in (settings.identity.key, settings.paths.data):
            if path.exists() and path.stat().st_uid != 0:
                return path
    except PermissionError as cause:
        raise BadSettings(
            f"{cause.filename} is closed to you: run this as root or as the agent's user"
        ) from cause
    return settings.identity.key


def meet(here: Here, owned: Path, *, by_root: bool, is_quick: bool) -> Patient:
    """The agent of these settings, as its user. Raises: BadSettings for somebody who is neither that user nor root."""
    settings, uid = here.settings, os.geteuid()
    owner = owned.stat().st_uid if owned.exists() else uid
    if owner not in (0, uid):
        raise BadSettings(f"{owned} belongs to user {owner}: run this as root or as that user")
    if by_root and uid != 0:  # root's own session is not the agent's
        settings = load_settings(here.home, {**here.environment, "XDG_RUNTIME_DIR": f"/run/user/{uid}"})
    return Patient(settings, uid, os.getegid(), by_root, is_quick)


# ------------------------------------------------------------------ asking


def known(look: Callable[[], T]) -> T | Unknown:
    """What is read, or why it is not."""
    try:
        return look()
    except AgentError as cause:
        return Unknown(cause.detail)
    except STRANGE as cause:
        return Unknown(f"{type(cause).__name__}: {cause}"[:200])


def others(roster: Roster, key: SigningKey) -> list[tuple[str, RosterEntry, str | None, bool]]:
    """(name, entry, address, whether it is this agent) of everybody whose key holds and whom this agent calls."""
    now, me = datetime.now(UTC), key.keyid
    found: list[tuple[str, RosterEntry, str | None, bool]] = []
    own = roster.find(me)
    if own is not None and own.role is Role.AGENT:
        found.append(("own address", own, own.agent_url, True))
    storage = roster.storage_of(me)
    if storage is not None:
        found.append((f"storage {storage.name}", storage, storage.storage_url, False))
    found += [
        (f"orchestrator {one.name}", one, one.orchestrator_url, False)
        for one in roster.orchestrators()
        if one.is_valid(now)
    ]
    found += [
        (f"agent {one.name}", one, one.agent_url, False)
        for one in roster.agents()
        if one.keyid != me and one.is_valid(now)
    ]
    return found


def call(ask: "AskHealth", name: str, entry: RosterEntry, url: str | None, is_own: bool) -> Call:
    """Ask one of them."""
    if url is None:
        return Call(name=name, url=url, told=Unknown("the roster gives no address"), is_own=is_own)
    began = datetime.now(UTC)
    theirs = known(lambda: ask(entry, url))
    if isinstance(theirs, Unknown):
        return Call(name=name, url=url, told=theirs, is_own=is_own)
    told = "no time" if theirs is None else Answered(name, theirs, began, datetime.now(UTC))
    return Call(name=name, url=url, told=told, is_own=is_own)
