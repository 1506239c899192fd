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

from agent.cli.lean import asked_for, run_lean
from agent.process import keep_memory_private

__all__ = ["main", "run"]


def main() -> None:
    """The entry point. Most commands hold a key for a moment, `serve` and `work` for weeks: these start without the rest."""
    keep_memory_private()
    asked = asked_for(sys.argv[1:])
    sys.exit(run(sys.argv[1:]) if asked is None else run_lean(asked))


def run(arguments: Sequence[str]) -> int:
    """The command with these arguments; its exit code. What it prints goes to the process's own streams."""
    from agent.cli import app

    return app.run(arguments)
