"""What the tests of fsck share: what it finds in a ledger's file, as the command would."""

from pathlib import Path

from agent.domain.ids import KeyId
from agent.fsck.findings import Finding
from agent.fsck.ledger import judge_file, judge_orders, judge_rows
from agent.ports.ledger_sqlalchemy_look import look_into
from agent.trust.roster import Roster
from tests.builders import consortium, key_of


def findings_in(path: Path, roster: Roster | None = None, me: KeyId | None = None) -> list[Finding]:
    """Everything that does not agree in the ledger at `path`, which may be at work; by default that of hospital a."""
    roster, me = roster or consortium().roster, me or key_of("agent-a").keyid
    with look_into(path) as ledger:
        return [*judge_file(ledger), *judge_orders(ledger, roster, me), *judge_rows(ledger)]


def codes_in(path: Path) -> list[str]:
    """Their codes alone."""
    return [found.code for found in findings_in(path)]
