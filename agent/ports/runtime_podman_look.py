"""What Podman's service tells of itself, for whoever looks after the host. No container is touched."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

from agent.errors import RuntimeUnavailable
from agent.ports.runtime_podman_api import ApiRefusal, PodmanApi


class ServiceTold(Struct, frozen=True):
    """Podman's own /info, and a process of it in its user namespace; None when none was found."""

    info: Mapping[str, Any]
    pid: int | None


def look_at_service(socket: Path) -> ServiceTold:
    """What the service at this socket tells. Raises: RuntimeUnavailable."""
    api = PodmanApi(socket)
    try:
        info = api.get("/info")
    except ApiRefusal as refusal:
        raise RuntimeUnavailable(f"Podman does not tell of itself: {refusal}") from refusal
    try:
        return ServiceTold(info, api.service_pid())
    except (RuntimeUnavailable, ApiRefusal):
        return ServiceTold(info, None)
