"""Reload: a running service takes over what its files say now, whole or not at all.

Reread are roster, policy, certificate and its key, and of the settings what RELOADED names. All of it is read and checked
first; one bad file leaves everything as it was, and is told. What is unchanged is not judged again. Then the audit log
gets its lines, then the new is in force. Other settings wait for a restart, and are named.
"""

import dataclasses
import os
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from agent import __version__
from agent.config import RELOADED, SECTIONS, Effective, LogSection, Settings, changed_keys
from agent.domain.ids import Digest, digest_of
from agent.errors import AgentError, BadSettings
from agent.log import get_logger
from agent.pipeline.audit import digests, note_reload
from agent.pipeline.host import Host, Trusted
from agent.pipeline.services import Board, Reload, Service, Setting
from agent.trust.certificates import read_certificate
from agent.wiring import read_trusted

if TYPE_CHECKING:
    from agent.api.serving import ServedTls

log = get_logger(__name__)

# What a file that nobody foresaw makes of a reader; the old stays in force then too, and the thread hears the next signal.
STRANGE = (OSError, ValueError, LookupError, TypeError, RecursionError, msgspec.MsgspecError)


@dataclass(frozen=True, slots=True)
class Fresh:
    """What the files say, read and checked. `tls`: a new context for each door that serves the certificate."""

    settings: Settings
    waits: tuple[str, ...]
    trusted: Trusted
    tls: Sequence[ssl.SSLContext]
    certificate: Digest | None


class Reloader:
    """Reloads one service. `read` gives its settings anew, `set_log` puts a log section in force."""

    def __init__(
        self,
        host: Host,
        board: Board,
        begun_with: Settings,
        read: Callable[[], Effective],
        set_log: Callable[[LogSection], None],
        tls: "Sequence[ServedTls]" = (),
    ) -> None:
        self._host, self._board, self._tls = host, board, tls
        self._settings = begun_with
        self._read, self._set_log = read, set_log

    def reload(self) -> Reload:
        """Take over what the files say, or say why not. Raises nothing."""
        asked_ns = time.monotonic_ns()
        try:
            fresh = self._read_all()
            changed = self._changes(fresh)
            self._note(fresh, changed)
        except AgentError as error:
            done = self._refused(error.code, error.detail, error.advice)
        except STRANGE as error:
            done = self._refused(AgentError.code, f"{type(error).__name__}: {error}", AgentError.advice)
        else:
            done = self._take(fresh, changed)
        seen = self._board.seen
        self._board.tell(
            taken=seen.taken + done.is_taken,
            refused=seen.refused + (not done.is_taken),
            asked_ns=asked_ns,
            last=done,
        )
        return done

    def _read_all(self) -> Fresh:
        """Raises: BadSettings."""
        read = self._read()
        if read.settings is None:
            raise BadSettings("; ".join(str(mistake) for mistake in read.mistakes))
        settings, waits = _reloadable(self._settings, read.settings)
        trusted = read_trusted(settings, self._host.me)
        self._require_own_entry(trusted, settings)
        certificate, tls = self._read_tls(settings)
        return Fresh(settings, waits, trusted, tls, certificate)

    def _require_own_entry(self, trusted: Trusted, settings: Settings) -> None:
        """A roster that lost this agent itself was cut short, more likely than meant: an empty file is a roster too."""
        me = self._host.me
        if trusted.roster.find(me) is None and self._host.newest.roster.find(me) is not None:
            raise BadSettings(
                f"the roster {settings.trust.roster} has no entry of this agent's own key any more: was it cut short? "
                "Whoever means it restarts the service"
            )

    def _read_tls(self, settings: Settings) -> tuple[Digest | None, Sequence[ssl.SSLContext]]:
        """The certificate's digest, and for each door that serves it a context with it."""
        if not self._tls:
            return None, ()
        path = settings.listen.tls_cert
        pem = _bytes_of(path)
        tls = tuple(door.read() for door in self._tls)
        if pem != _bytes_of(path):
            raise BadSettings(f"{path} changed while it was read: reload again")
        if (digest := digest_of(pem)) == self._board.seen.certificate:
            return digest, tls
        view, now = read_certificate(pem), self._host.ports.now()
        if not view.not_before <= now < view.not_after:
            told = f"{view.not_before.isoformat()} to {view.not_after.isoformat()}"
            raise BadSettings(f"the certificate {path} holds from {told}, not now")
        return digest, tls

    def _changes(self, fresh: Fresh) -> tuple[str, ...]:
        seen, told = self._board.seen, digests(fresh.trusted.roster, fresh.trusted.policy)
        keys = changed_keys(self._settings, fresh.settings)
        return (
            *(name for name, was in (("policy", seen.policy), ("roster", seen.roster)) if told[name] != was),
            *(("certificate",) if fresh.certificate != seen.certificate else ()),
            *(f"{section}.{key}" for section, key in keys),
        )

    def _note(self, fresh: Fresh, changed: tuple[str, ...]) -> None:
        """Into the audit log, before it is in force. Raises: LedgerUnavailable."""
        if not {"policy", "roster"} & set(changed):
            return
        files = {"policy": fresh.settings.trust.policy, "roster": fresh.settings.trust.roster}
        owners = {name: os.stat(path).st_uid for name, path in files.items()}
        to_be = dataclasses.replace(self._host, roster=fresh.trusted.roster, policy=fresh.trusted.policy)
        note_reload(self._board.seen.service, to_be, owners)

    def _take(self, fresh: Fresh, changed: tuple[str, ...]) -> Reload:
        """Nothing in here can fail."""
        if self._host.in_force is not None:
            self._host.in_force.exchange(fresh.trusted)
        for door, context in zip(self._tls, fresh.tls, strict=True):
            door.exchange(context)
        if fresh.settings.log != self._settings.log:
            self._set_log(fresh.settings.log)
        before, self._settings = self._settings, fresh.settings
        now_in_force = digests(fresh.trusted.roster, fresh.trusted.policy)
        self._board.seen = replace(
            _with_settings(self._board.seen, before, fresh.settings),
            roster=now_in_force["roster"],
            policy=now_in_force["policy"],
            certificate=fresh.certificate,
        )
        service = self._board.seen.service
        log.info("service.reloaded", service=service, changed=list(changed))
        if fresh.waits:
            advice = "Restart the service: these are read at its start only."
            log.warning("settings.wait_for_restart", service=service, names=list(fresh.waits), advice=advice)
        return Reload(at=self._host.ports.now(), is_taken=True, changed=changed, waits=fresh.waits)

    def _refused(self, code: str, detail: str, advice: str) -> Reload:
        service = self._board.seen.service
        log.error("service.not_reloaded", service=service, code=code, detail=detail, advice=advice)
        return Reload(at=self._host.ports.now(), is_taken=False, code=code, detail=detail)


def _reloadable(running: Settings, read: Settings) -> tuple[Settings, tuple[str, ...]]:
    """The settings that run with what a reload may change of them, and the names of the others that differ."""
    waits = []
    settings = running
    for section, key in changed_keys(running, read):
        if (section, key) in RELOADED:
            part = replace(getattr(settings, section), **{key: getattr(getattr(read, section), key)})
            settings = replace(settings, **{section: part})
        else:
            waits.append(f"{section}.{key}")
    return settings, tuple(waits)


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as cause:
        raise BadSettings(f"{path} cannot be read: {cause.strerror}") from cause


# ------------------------------------------------------------------ what a service tells of itself


def board_of(service: str, host: Host, read: Effective, settings: Settings) -> Board:
    """Where this service tells what it runs with."""
    told = digests(host.roster, host.policy)
    certificate = digest_of(_bytes_of(settings.listen.tls_cert)) if service == "api" else None
    seen = Service(
        service=service,
        pid=os.getpid(),
        version=__version__,
        started=datetime.now(UTC),
        settings=_settings_of(read, settings),
        roster=told["roster"],
        policy=told["policy"],
        certificate=certificate,
    )
    return Board(settings.paths.services, seen)


def plain(value: object) -> object:
    """A setting's value as JSON tells it."""
    return str(value) if isinstance(value, Path) else value


def _settings_of(read: Effective, settings: Settings) -> dict[str, dict[str, Setting]]:
    return {
        section: {
            key: Setting(
                plain(getattr(getattr(settings, section), key)),
                read.origins[section, key].source,
                read.origins[section, key].where,
            )
            for key in kind.__struct_fields__
        }
        for section, kind in SECTIONS.items()
    }


def _with_settings(seen: Service, before: Settings, after: Settings) -> Service:
    told = {section: dict(values) for section, values in seen.settings.items()}
    for section, key in changed_keys(before, after):
        told[section][key] = replace(told[section][key], value=plain(getattr(getattr(after, section), key)))
    return replace(seen, settings=told)
