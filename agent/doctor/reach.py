"""Whether everybody that this agent works with answers, asked with the agent's own TLS: each by name and address."""

from collections.abc import Sequence
from urllib.parse import urlsplit

from msgspec import Struct

from agent.doctor.clock import Answered
from agent.doctor.lines import Check, Group, Unknown

GROUP = Group("reach")


class Call(Struct, frozen=True, kw_only=True):
    """Somebody who was asked. `is_own`: this agent's own address, which need not be open now."""

    name: str
    url: str | None
    told: Answered | str | Unknown  # their time, or a word when they gave none
    is_own: bool = False


def judge(calls: Sequence[Call]) -> list[Check]:
    """A line for each."""
    if not calls:
        return [GROUP.note("others", "the roster names nobody to call")]
    return [_call(call) for call in calls]


def _call(call: Call) -> Check:
    if not isinstance(call.told, Unknown):
        return GROUP.ok(call.name, f"answers at {call.url}")
    if call.url is None:
        return GROUP.note(call.name, "the roster gives no address")
    if call.is_own:
        return GROUP.warn(call.name, call.told.reason, _try(call.url))
    return GROUP.fail(call.name, call.told.reason, _try(call.url))


def _try(url: str) -> str:
    """The command that tells whether the network, the TLS or the program behind it is what fails."""
    parts = urlsplit(url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"openssl s_client -brief -tls1_3 -connect {host}:{parts.port or 443} </dev/null"
