"""The sections of `doctor`: each reads what it needs of the host and lets `agent/doctor/` judge it.

A section is a callable that takes the patient and gives its lines; SECTIONS in `doctor.py` says which there are.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from agent.cli.doctor_patient import Patient, known
from agent.config import SETTINGS_FILE, SYSTEM_HOME
from agent.doctor import (
    ceilings,
    clock,
    disk,
    files,
    kernel_settings,
    memory,
    podman,
    reach,
    services,
    trust,
    units,
    user_ids,
    versions,
)
from agent.doctor.clock import Answered
from agent.doctor.files import Kind
from agent.doctor.lines import Check, Unknown
from agent.domain.ids import digest_of
from agent.ports.runtime import RunKind, Runtime
from agent.trust.keys import SigningKey


def look_at_versions(_patient: Patient) -> Iterable[Check]:
    """Programs and libraries against known escapes."""
    from agent.doctor.look_versions import look_at_versions

    return versions.judge(look_at_versions())


def look_at_user_ids(patient: Patient) -> Iterable[Check]:
    """What keeps ids inside a container apart from those outside."""
    from agent.doctor.look_user_ids import look_at_user_ids

    return user_ids.judge(look_at_user_ids(patient.user, patient.uid), patient.settings.runtime.pool_size)


def look_at_kernel_settings(_patient: Patient) -> Iterable[Check]:
    """The kernel's settings."""
    from agent.doctor.look_user_ids import look_at_sysctls

    return kernel_settings.judge(look_at_sysctls(kernel_settings.SETTINGS))


def look_at_ceilings(patient: Patient) -> Iterable[Check]:
    """What holds each ceiling, as each engine tells."""
    from agent.doctor.look_ceilings import look_at_cgroups

    cgroups, policy = look_at_cgroups(patient.uid), patient.policy
    found = {runtime.name: known(runtime.enforcement) for runtime in _runtimes(patient)}
    accepted = () if isinstance(policy, Unknown) else policy.accept_missing
    lines = ceilings.judge_cgroups(cgroups)
    return lines + ceilings.judge_runtimes(found, accepted, cgroups, {"podman": patient.start_podman})


def look_at_podman(patient: Patient) -> Iterable[Check]:
    """Podman's service."""
    from agent.doctor.look_memory import mount_of
    from agent.doctor.look_podman import look_at_environment, look_at_socket
    from agent.wiring import look_at_podman

    told = known(lambda: look_at_podman(patient.settings))
    storage: podman.Storage | Unknown
    environment: Sequence[str] | Unknown
    if isinstance(told, Unknown):
        storage = environment = told
    else:
        info, pid = told.info, told.pid
        storage = known(lambda: podman.storage_of(info, mount_of(Path(info["store"]["graphRoot"]))[1]))
        environment = (
            Unknown("no process of the service was found") if pid is None else look_at_environment(pid)
        )
    return podman.judge(
        podman.Podman(
            uid=patient.uid,
            start=patient.start_podman,
            socket=look_at_socket(patient.settings.runtime.podman_socket),
            storage=storage,
            environment=environment,
        )
    )


def look_at_memory(patient: Patient) -> Iterable[Check]:
    """Swap, and the memory where tasks run."""
    from agent.doctor.look_memory import look_at_memory

    settings, policy = patient.settings, patient.policy
    runs = settings.runtime.run_dir if patient.engine == "runc" else None
    facts = look_at_memory(settings.workspace.root, patient.uid, patient.gid, runs=runs)
    most = None if isinstance(policy, Unknown) else policy.ceilings
    return memory.judge(facts, most, settings.limits.max_model_bytes)


def look_at_files(patient: Patient) -> Iterable[Check]:
    """Modes and owners."""
    from agent.doctor.look_files import look_above, look_at

    settings, make = patient.settings, f"{patient.command} init"
    kept = settings.paths
    found = [
        look_at("identity key", settings.identity.key, Kind.KEY, make=make),
        look_at("tls key", settings.listen.tls_key, Kind.KEY, make=f"{make} --certificate {patient.host}"),
        look_at("settings", settings.home / SETTINGS_FILE, Kind.SETTINGS),
        look_at("roster", settings.trust.roster, Kind.SETTINGS, make=make),
        look_at("policy", settings.trust.policy, Kind.SETTINGS, make=make),
        look_at("data folder", kept.data, Kind.FOLDER, make=make),
        look_at("spool", kept.spool, Kind.FOLDER),
        look_at("ledger", kept.ledger, Kind.KEY),
        look_at("queues", kept.queues, Kind.KEY),
        look_at("workspaces", settings.workspace.root, Kind.FOLDER),
        look_at("operator's folder", settings.listen.operator_socket.parent, Kind.FOLDER),
    ]
    for kind in RunKind:
        profile = settings.runtime.seccomp_dir / f"{kind}.json"
        found.append(look_at(f"seccomp {kind}", profile, Kind.SETTINGS, make="sh install.sh"))
    above = {
        one.path: one for path in (settings.identity.key, settings.trust.roster) for one in look_above(path)
    }
    return files.judge(files.Files(uid=patient.uid, user=patient.user, files=(*found, *above.values())))


def look_at_trust(patient: Patient) -> Iterable[Check]:
    """Certificate, roster, policy."""
    from agent.doctor.look_trust import look_at_tls

    settings, key = patient.settings, patient.key
    facts = trust.Trust(
        command=patient.command,
        now=datetime.now(UTC),
        me=key if isinstance(key, Unknown) else key.keyid,
        mend_key=patient.mend_key,
        tls=look_at_tls(settings.listen.tls_cert, settings.listen.tls_key),
        hosts=patient.hosts,
        roster=patient.roster,
        roster_path=str(settings.trust.roster),
        policy=patient.policy,
        policy_path=str(settings.trust.policy),
    )
    return trust.judge(facts)


def look_at_clock(patient: Patient) -> Iterable[Check]:
    """The clock."""
    from agent.doctor.look_clock import look_at_clock

    answers = [one.told for one in patient.calls if isinstance(one.told, Answered) and not one.is_own]
    return clock.judge(look_at_clock(), answers, patient.settings.limits.skew_s)


def look_at_disk(patient: Patient) -> Iterable[Check]:
    """Room, and the ledger."""
    from agent.doctor.look_disk import look_at_ledger, look_at_space

    paths = patient.settings.paths
    spaces = {
        name: look_at_space(name, path) for name, path in (("data", paths.data), ("spool", paths.spool))
    }
    return disk.judge(spaces, look_at_ledger(paths.ledger), patient.settings.limits.low_disk_bytes)


def look_at_others(patient: Patient) -> Iterable[Check]:
    """Who answers."""
    return reach.judge(patient.calls)


def look_at_units(patient: Patient) -> Iterable[Check]:
    """The services."""
    from agent.doctor.look_units import look_at_units

    return units.judge(look_at_units(patient.user))


def look_at_services(patient: Patient) -> Iterable[Check]:
    """What the services run with."""
    from agent.pipeline.audit import digests
    from agent.pipeline.services import running

    settings, roster, policy = patient.settings, patient.roster, patient.policy
    files: dict[str, str | Unknown] = {
        "certificate": known(lambda: digest_of(settings.listen.tls_cert.read_bytes()))
    }
    if not isinstance(roster, Unknown) and not isinstance(policy, Unknown):
        files |= digests(roster, policy)
    is_installed = settings.home == SYSTEM_HOME
    return services.judge(
        services.Services(
            command=patient.command,
            restart="systemctl restart dc-compute.target" if is_installed else f"{patient.command} run",
            running=known(lambda: running(settings.paths.services)),
            files=files,
        )
    )


def look_at_selftest(patient: Patient) -> Iterable[Check]:
    """Hostile code in the real cage of each engine: one line for an engine that holds, one for each attempt that succeeded."""
    from agent.cli.selftest import findings_of
    from agent.doctor import selftest

    for runtime in _runtimes(patient):
        if isinstance(why := known(runtime.enforcement), Unknown):
            yield selftest.not_tried(runtime.name, why)
        else:
            found = findings_of(runtime, patient.settings, is_quick=patient.is_quick)
            yield from selftest.judge(
                runtime.name, [selftest.Tried(one.probe, one.expected, one.seen, one.held) for one in found]
            )


def _runtimes(patient: Patient) -> "tuple[Runtime, ...]":
    """Every engine of this host, under the agent's name or, without its key, a stranger's."""
    from agent.wiring import runtimes

    key = patient.key
    return runtimes(patient.settings, SigningKey.generate().keyid if isinstance(key, Unknown) else key.keyid)
