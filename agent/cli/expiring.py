"""What of this agent ends soon, read from its files: for commands that a person looks at."""

from datetime import datetime

from agent.cli.here import Here
from agent.cli.keys import load_key
from agent.cli.out import warn, when
from agent.errors import AgentError
from agent.trust.expiry import Expiry, due, expiries
from agent.wiring import read_roster


def due_here(here: Here, now: datetime) -> tuple[Expiry, ...]:
    """What is to be told now; nothing where the files cannot be read, which the doctor tells."""
    try:
        roster, me = read_roster(here.settings), load_key(here.settings.identity.key).keyid
    except (AgentError, OSError):
        return ()
    try:
        chain = here.settings.listen.tls_cert.read_bytes()
    except OSError:
        chain = None
    return due(expiries(roster, me, chain, now), now)


def warn_of(told: tuple[Expiry, ...], now: datetime) -> None:
    """A line on standard error for each."""
    for one in told:
        warn(f"{one.kind} {one.name} {'ended' if one.is_over(now) else 'ends'} {when(one.at)}")
