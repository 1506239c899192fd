"""The services as systemd has them, and whether the user's own systemd stays without a login."""

from collections.abc import Mapping

from msgspec import Struct

from agent.doctor.lines import Check, Group, Unknown

GROUP = Group("units")

SERVICES = ("dc-compute-api.service", "dc-compute-worker.service")


class Units(Struct, frozen=True, kw_only=True):
    """What is there. `services`: by name what `systemctl show` tells; `lingers`: whether the user's systemd stays."""

    is_running: bool
    user: str
    services: Mapping[str, Mapping[str, str] | Unknown]
    lingers: bool | Unknown


def judge(facts: Units) -> list[Check]:
    """A line for each service and for lingering; one note where systemd does not run."""
    if not facts.is_running:
        return [GROUP.note("systemd", "does not run here: whoever starts the agent looks after it")]
    lines = [_service(name, told) for name, told in facts.services.items()]
    return [*lines, _lingering(facts)]


def _service(name: str, told: Mapping[str, str] | Unknown) -> Check:
    if isinstance(told, Unknown):
        return GROUP.unknown(name, told)
    if told.get("LoadState") == "not-found":
        return GROUP.note(name, "not installed")
    state = told.get("ActiveState", "unknown")
    if told.get("NeedDaemonReload") == "yes":
        return GROUP.warn(
            name, f"{state}; its file changed since", f"systemctl daemon-reload && systemctl restart {name}"
        )
    match state:
        case "active":
            if told.get("UnitFileState") not in {"enabled", "static", "enabled-runtime", None}:
                return GROUP.warn(name, "active, and not started at boot", f"systemctl enable {name}")
            return GROUP.ok(name, f"active, restarted {told.get('NRestarts', '0')} times")
        case "failed" | "activating":
            seen = f"{state} ({told.get('Result', 'no result')})"
            return GROUP.fail(name, seen, f"journalctl -n 50 -u {name} && systemctl restart {name}")
        case _:
            return GROUP.warn(name, state, f"systemctl enable --now {name}")


def _lingering(facts: Units) -> Check:
    name = "lingering"
    if isinstance(facts.lingers, Unknown):
        return GROUP.unknown(name, facts.lingers)
    if facts.lingers:
        return GROUP.ok(name, f"the systemd of {facts.user} runs without a login")
    seen = f"the systemd of {facts.user} ends with its last login, and Podman and every job with it"
    return GROUP.fail(name, seen, f"loginctl enable-linger {facts.user}")
