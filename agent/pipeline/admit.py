"""The gates of a task under way: before its key is asked for, before each of its containers.

An attempt keeps the policy with which it began: its ceilings, under which its room was reserved, and the digest that its
receipt tells. What the operator withdrew since begins nothing new. What runs already runs to its end; `dc-compute cancel`
ends it at once.
"""

from agent.pipeline.host import Context, Host
from agent.trust.signed import open_order


def require_admitted(context: Context, host: Host) -> None:
    """Return only when the roster and the policy in force now, and the operator's word, let this task run here.

    Raises: TrustError: UnknownKey or KeyNotValid of the orchestrator, PolicyRefused, ImageDenied.
    """
    newest = host.newest
    open_order(context.signed.envelope, newest.roster, None)
    newest.policy.admit(context.signed, [context.task], newest.ports.ledger.verdict_on)
