"""What an agent's keys mean to its doors: which keys are its own, and the name under which its containers are known."""

from agent.config import Settings
from agent.domain.ids import KeyId
from agent.errors import BadSettings

INSTANCE_DIGITS = 16  # of the key id, in the labels of containers


def own_keys(settings: Settings, me: KeyId) -> tuple[KeyId, ...]:
    """The keys of this agent up to `me`, oldest first, as its roster tells them; `me` alone where that cannot be read."""
    from agent.wiring import read_roster

    try:
        return read_roster(settings).line_of(me)
    except BadSettings:
        return (me,)


def instance_of(settings: Settings, me: KeyId) -> str:
    """What containers of this agent are labelled with. A new key finds those that run under the one before it."""
    return own_keys(settings, me)[0][:INSTANCE_DIGITS]
