"""The command `dc-compute`: what operators, owners of data, orchestrators' authors and auditors type.

app.py       the root: its pages, global options       ending.py  exit codes, errors as two lines
services.py  serve, work, run; lean.py starts them   setup.py   init
doctor.py    doctor
orders.py    submit, orders, log, receipts           watch.py   watch
audit.py     verify                                  keys.py, peers.py, policy.py, data.py, image.py
here.py      which agent is meant; home.py: its API  out.py     tables, JSON, text from outside made harmless
"""

import sys
from collections.abc import Sequence

from agent.process import keep_memory_private

__all__ = ["main", "run"]


def main() -> None:
    """The entry point. Most commands hold a key for a moment, `serve` and `work` for weeks."""
    keep_memory_private()
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """The command with these arguments; its exit code. A service is started without the rest of the command."""
    from agent.cli.ending import ended
    from agent.cli.lean import service_of

    service = service_of(arguments)
    if service is not None:
        return ended(service)
    from agent.cli import app

    return app.run(arguments)
