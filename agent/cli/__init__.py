"""The command `dc-compute`: what operators, owners of data, orchestrators' authors and auditors type.

app.py       the root: global options, exit codes, errors as two lines
services.py  serve, work, run                        setup.py   init
doctor.py    doctor
orders.py    submit, orders, log, receipts           watch.py   watch
audit.py     verify                                  keys.py, peers.py, policy.py, data.py, image.py
here.py      which agent is meant: its settings      out.py     tables, JSON, text from outside made harmless
"""

import sys

from agent.cli.app import run
from agent.process import keep_memory_private

__all__ = ["main", "run"]


def main() -> None:
    """The entry point. Most commands hold a key for a moment, `serve` and `work` for weeks."""
    keep_memory_private()
    sys.exit(run(sys.argv[1:]))
