"""Asks systemd about the services, where it runs."""

from collections.abc import Mapping
from pathlib import Path

from agent.doctor.lines import Unknown
from agent.doctor.look import ask_program
from agent.doctor.units import SERVICES, Units

SYSTEMD = Path("/run/systemd/system")  # sd_booted(3)
LINGERING = Path("/var/lib/systemd/linger")
PROPERTIES = "LoadState,ActiveState,UnitFileState,Result,NRestarts,NeedDaemonReload"


def look_at_units(user: str) -> Units:
    """The services of this host."""
    is_running = SYSTEMD.is_dir()
    services = {name: look_at_service(name) for name in SERVICES} if is_running else {}
    return Units(is_running=is_running, user=user, services=services, lingers=_lingers(user))


def look_at_service(name: str) -> Mapping[str, str] | Unknown:
    """What systemd tells of it, by property."""
    told = ask_program(["systemctl", "show", name, f"--property={PROPERTIES}"])
    if isinstance(told, Unknown):
        return told
    return dict(line.split("=", 1) for line in told.splitlines() if "=" in line)


def _lingers(user: str) -> bool | Unknown:
    try:
        return (LINGERING / user).exists()
    except OSError as cause:
        return Unknown(f"{LINGERING}: {cause.strerror}")
