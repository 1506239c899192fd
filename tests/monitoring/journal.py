"""Whether a real journal takes what the log sends, and finds it again: `python -m tests.monitoring.journal`, on a booted host.

Sends one line as a task would and one that is too large for a datagram, and asks journalctl for both by their trace.
Exit code 0: both are there with their fields; 1: what is missing, on standard error.
"""

import json
import secrets
import subprocess
import sys
import time

from agent.log import LogFormat, LogLevel, bound, configure, get_logger

WITHIN_S = 20.0
LARGE = 2000

log = get_logger(__name__)


def entries(trace: str) -> list[dict[str, str]]:
    """What the journal has of this trace."""
    command = ["journalctl", "--no-pager", "--all", "-o", "json", f"TRACE_ID={trace}"]
    told = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return [json.loads(line) for line in told.splitlines() if line.startswith("{")]


def check() -> str:
    """What is wrong; empty: nothing."""
    trace = secrets.token_hex(16)
    configure(LogLevel.INFO, LogFormat.JOURNAL)
    with bound(order="an-order", position=2, attempt=1, trace=trace):
        log.warning("journal.tried", code="trial", detail="two\nlines")
        log.info("journal.tried_large", names=["x" * 1900] * LARGE)
    until = time.monotonic() + WITHIN_S
    while len(found := entries(trace)) < 2 and time.monotonic() < until:
        time.sleep(0.2)
    if [entry["DC_EVENT"] for entry in found] != ["journal.tried", "journal.tried_large"]:
        return f"the journal has {[entry.get('DC_EVENT') for entry in found]} of the two lines"
    small, large = found
    wanted = {"PRIORITY": "4", "SYSLOG_IDENTIFIER": "dc-compute", "DC_ORDER": "an-order", "DC_POSITION": "2"}
    wanted |= {"DC_ATTEMPT": "1", "DC_CODE": "trial", "DC_DETAIL": "two\nlines"}
    missing = [name for name, value in wanted.items() if small.get(name) != value]
    if missing:
        return f"fields that are missing or other: {missing}"
    if len(large["MESSAGE"]) < LARGE * 1900:
        return f"the large line has {len(large['MESSAGE'])} characters"
    return ""


if __name__ == "__main__":
    wrong = check()
    sys.stderr.write(f"{wrong}\n" if wrong else "")
    sys.exit(1 if wrong else 0)
