"""What `config check` looks at: what a start reads and needs, as the agent's user would meet it. Nothing is changed."""

import grp
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import msgspec

from agent.api.operator import MAX_SOCKET_PATH
from agent.cli.doctor_patient import Patient, known, meet, owner_file
from agent.cli.doctor_sections import look_at_files, look_at_trust
from agent.cli.files import as_owner_of
from agent.cli.here import Here
from agent.config import SETTINGS_FILE, Settings, read_settings
from agent.doctor.lines import Check, Group, State, Unknown
from agent.domain.file_systems import IN_MEMORY
from agent.pipeline.space import file_system_of
from agent.wiring import authorities

GROUP = Group("settings")
READ_BY_A_START = {"identity", "certificate", "certificate key", "roster", "policy"}


def check_all(here: Here, file: Path | None, roster: Path | None, policy: Path | None) -> list[Check]:
    """A line for everything that was looked at. These files stand in for those in place."""
    path = here.home / SETTINGS_FILE if file is None else file
    edit = f"${{EDITOR:-vi}} {path}"
    read = read_settings(here.home, here.environment, here.flags, file=file)
    if read.settings is None:
        return [
            GROUP.fail(
                "settings", str(one), edit if str(path) in one.where else f"correct {one.where.split(' ')[0]}"
            )
            for one in read.mistakes
        ]
    owned, is_root = owner_file(read.settings), os.geteuid() == 0
    with as_owner_of(owned):
        patient = meet(here, owned, by_root=is_root, is_quick=True)
        settings = with_files(read.settings if file is not None else patient.settings, roster, policy)
        patient = replace(patient, settings=settings)
        return [
            GROUP.ok("settings", f"{path} is well formed"),
            *_doors(settings, edit),
            *_names(patient, edit),
            *_folders(settings, edit),
            *look_at_files(patient),
            *(_as_a_start_takes_it(line) for line in look_at_trust(patient)),
        ]


def _as_a_start_takes_it(line: Check) -> Check:
    """A start reads key, certificate, roster and policy; what the roster says of others it takes as it is."""
    is_mild = line.state is State.FAIL and line.name not in READ_BY_A_START
    return msgspec.structs.replace(line, state=State.WARN) if is_mild else line


def with_files(settings: Settings, roster: Path | None, policy: Path | None) -> Settings:
    """The settings with these files in place of the roster and the policy."""
    trust = settings.trust
    if roster is not None:
        trust = msgspec.structs.replace(trust, roster=roster.absolute())
    if policy is not None:
        trust = msgspec.structs.replace(trust, policy=policy.absolute())
    return msgspec.structs.replace(settings, trust=trust)


def _doors(settings: Settings, edit: str) -> Iterator[Check]:
    """Where it is called: an address of this host, a socket whose path fits, a group that is there."""
    told = settings.listen
    yield _judged("[listen] host", lambda: _bind(told.host), edit)
    length = len(os.fsencode(told.operator_socket))
    if length > MAX_SOCKET_PATH:
        seen = f"{told.operator_socket} has {length} bytes, a socket's path at most {MAX_SOCKET_PATH}"
        yield GROUP.fail("[listen] operator_socket", seen, edit)
    if told.operator_group is not None:
        group = told.operator_group
        mend = f"groupadd --system {group}"
        yield _judged("[listen] operator_group", lambda: f"{group} {grp.getgrnam(group).gr_gid}", mend)


def _bind(host: str) -> str:
    """Listen there for a moment, at any port: the agent's own may be taken by the agent."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family):
        return f"{host} is of this host"


def _names(patient: Patient, edit: str) -> Iterator[Check]:
    if not isinstance(patient.roster, Unknown) and not isinstance(patient.key, Unknown):
        roster, me = patient.roster, patient.key.keyid
        yield _judged(
            "[listen] names", lambda: ", ".join(sorted(authorities(patient.settings, roster, me))), edit
        )


def _folders(settings: Settings, edit: str) -> Iterator[Check]:
    """What lies in memory, and what lasts."""
    memory = {"[workspace] root": settings.workspace.root}
    if settings.runtime.engine == "runc":
        memory["[runtime] run_dir"] = settings.runtime.run_dir
    for name, folder in memory.items():
        kind = file_system_of(_nearest(folder))
        if kind in IN_MEMORY:
            yield GROUP.ok(name, f"{folder} lies on {kind}")
        else:
            mend = f"mount -t tmpfs -o size=50%,mode=0700 tmpfs {folder}  # or: {edit}"
            yield GROUP.fail(name, f"{folder} lies on {kind}, not in memory", mend)
    for name, folder in (("[paths] data", settings.paths.data), ("[paths] spool", settings.paths.spool)):
        there = _nearest(folder)
        if (kind := file_system_of(there)) in IN_MEMORY:
            yield GROUP.warn(name, f"{folder} lies on {kind}: a boot loses it", edit)
        elif not os.access(there, os.W_OK | os.X_OK, effective_ids=True):
            yield GROUP.fail(name, f"{there} cannot be written to", f"chown $USER {there}  # or: {edit}")
        else:
            yield GROUP.ok(name, f"{folder} lies on {kind}")


def _nearest(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there: it is made on its file system."""
    return next((one for one in (folder, *folder.parents) if os.path.exists(one)), Path("/"))


def _judged(name: str, look: Callable[[], str], mend: str) -> Check:
    told = known(look)
    return GROUP.fail(name, told.reason, mend) if isinstance(told, Unknown) else GROUP.ok(name, told)
