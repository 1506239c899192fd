"""The bench of a clone: a table on standard error, JSON on standard output (`make bench` keeps it in build/bench.json).

    python -m agent.bench [--parts task,hop] [--rounds 15] [--short] [--commit ID]

On an installed host the same is `dc-compute bench`.
"""

import argparse
import sys
from collections.abc import Sequence

import msgspec

from agent.bench.figures import document
from agent.bench.machine import about
from agent.bench.run import PARTS, ROUNDS, Asked, lines_of, parts_of, run_parts
from agent.devkit.podman_service import why_not


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench; the exit code."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument(
        "--short", action="store_true", help="everything once and small: to see that it works"
    )
    parser.add_argument("--commit", help="of the sources, for the document")
    told = parser.parse_args(arguments)
    lacking = why_not()
    if lacking:
        say(f"the bench needs {lacking}")
        return 1
    try:
        parts = parts_of(told.parts)
    except ValueError as cause:
        parser.error(str(cause))
    rounds = 1 if told.short else told.rounds
    asked = Asked(parts=parts, rounds=rounds, is_short=told.short, commit=told.commit)
    machine = about(asked.commit)  # before: the load is that of others
    measured = run_parts(asked, say)
    for line in lines_of(measured):
        say(line)
    found = document(measured, rounds=asked.rounds, is_short=asked.is_short, machine=machine)
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(found), indent=1).decode() + "\n")
    return 0


def say(line: str) -> None:
    """A line for people."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
