"""What the services run with, against what the files say: a reload that was refused, one that nobody asked for yet."""

from collections.abc import Mapping, Sequence

from msgspec import Struct

from agent.doctor.lines import Check, Group, Unknown
from agent.pipeline.services import Service

GROUP = Group("services")


class Services(Struct, frozen=True, kw_only=True):
    """What is there. `files`: the digest of each file as it lies here, by the name of what a service keeps of it.

    `command`: how this agent's own is called; `restart`: what restarts its services.
    """

    command: str
    restart: str
    running: Sequence[Service] | Unknown
    files: Mapping[str, str | Unknown]


def judge(facts: Services) -> list[Check]:
    """The lines of each service that runs; one note where none does."""
    if isinstance(facts.running, Unknown):
        return [GROUP.unknown("services", facts.running)]
    if not facts.running:
        return [GROUP.note("services", "none runs")]
    kinds = [one.service for one in facts.running]
    return [
        line
        for one in facts.running
        for line in _judge(
            one.service if kinds.count(one.service) == 1 else f"{one.service} {one.pid}", one, facts
        )
    ]


def _judge(name: str, one: Service, facts: Services) -> list[Check]:
    lines, last = [], one.last
    if last is not None and not last.is_taken:
        mend = f"{facts.command} config check && {facts.command} reload"
        seen = f"goes on with what it had, since a reload was refused [{last.code}]: {last.detail}"
        lines.append(GROUP.warn(name, seen, mend))
    elif unread := _unread(one, facts):
        seen = f"runs with another {', '.join(unread)} than the file has"
        lines.append(GROUP.warn(name, seen, f"{facts.command} reload"))
    if last is not None and last.waits:
        lines.append(GROUP.warn(f"{name} settings", f"new ones wait: {', '.join(last.waits)}", facts.restart))
    return lines or [GROUP.ok(name, f"process {one.pid} runs with what the files say")]


def _unread(one: Service, facts: Services) -> list[str]:
    in_force = {"roster": one.roster, "policy": one.policy, "certificate": one.certificate}
    return [
        name
        for name, now in facts.files.items()
        if not isinstance(now, Unknown) and in_force.get(name) not in (None, now)
    ]
