"""What the cage costs over `podman run` with defaults: a table on stderr, JSON on stdout (`make bench` keeps it).

    python -m tests.bench [--rounds 7] [--trees 500] [--short]

Every round runs every side (the cage of each runtime, `podman run --rm`, a bare process) at two works: `fit`, a training of
scikit-learn, and `noop`, a start and nothing more. Rounds are interleaved, and one uncounted round goes before.
"""

import argparse
import json
import os
import platform
import sys
from typing import Any

from agent.devkit.podman_service import oci_runtime, why_not
from tests.bench.figures import document, figures, run_rounds, table
from tests.bench.sides import PLAIN, network, open_sides, own_engine, sample

REPEATS = 3  # of the data, so that a training takes seconds


def main() -> int:
    """Run the bench; the exit code."""
    parser = argparse.ArgumentParser(prog="make bench")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--trees", type=int, default=500, help="size of the training")
    parser.add_argument(
        "--short", action="store_true", help="one round that trains nothing: to see that it works"
    )
    told = parser.parse_args()
    lacking = why_not()
    if lacking:
        print(f"the bench needs {lacking}", file=sys.stderr)
        return 1
    rounds, trees = (1, 0) if told.short else (told.rounds, told.trees)
    works = {"noop": data(0), "fit": data(trees)}
    with own_engine() as engine, open_sides(engine, has_packages=trees > 0) as sides:
        pairs = [(side, work) for work in works for side in sides]
        say(f"{rounds} rounds of {len(pairs)} runs, after one that does not count")

        def run(side: str, work: str, number: int) -> Any:
            return sample(side, sides[side], work, works[work], number)

        run_rounds(1, pairs, run)
        found = figures(run_rounds(rounds, pairs, run), PLAIN)
    for line in table(found):
        say(line)
    for line in notes():
        say(line)
    print(json.dumps(document(found, rounds=rounds, baseline=PLAIN, machine=machine()), indent=1))
    return 0


def data(trees: int) -> bytes:
    """The guest's file: the digits of scikit-learn, or nothing when nothing is trained."""
    if trees == 0:
        return json.dumps({"trees": 0}).encode()
    from sklearn.datasets import load_digits

    digits = load_digits()
    rows, targets = digits.data.tolist() * REPEATS, digits.target.tolist() * REPEATS
    return json.dumps({"trees": trees, "rows": rows, "targets": targets}).encode()


def notes() -> list[str]:
    """What a reader of the table must know."""
    ratio = "a ratio is to `podman run` in the same round: median, and quartiles in brackets"
    return [
        ratio,
        *(
            ["`podman run` had --network none: this user cannot have Podman's default network"]
            if network()
            else []
        ),
    ]


def machine() -> dict[str, Any]:
    """On what it was measured."""
    return {
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "processor": platform.machine(),
        "python": platform.python_version(),
        "oci_runtime": oci_runtime(),
        "load": os.getloadavg()[0],
    }


def say(line: str) -> None:
    """A line for people."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
