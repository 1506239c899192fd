"""What all tests share: how hypothesis draws, and the closing list of what was skipped and what it lacked.

Nothing else lives here; a fixture stands beside the tests that use it.
"""

import os
from collections import defaultdict

import hypothesis
import pytest

hypothesis.settings.register_profile("dev", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, database=None, print_blob=True)
hypothesis.settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev")
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The chain tests go first: they run one after the other, and mostly wait, so the other workers have the rest meanwhile."""
    items.sort(key=lambda item: item.get_closest_marker("chain") is None)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what did not run, grouped by what was missing, so that a green line cannot hide it."""
    missing: defaultdict[str, list[str]] = defaultdict(list)
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        missing[reason.removeprefix("Skipped: ")].append(report.nodeid)
    if not missing:
        return
    terminalreporter.section("not run, and what was missing")
    for reason, tests in sorted(missing.items()):
        terminalreporter.line(f"{reason}: {len(tests)}")
        for test in tests:
            terminalreporter.line(f"    {test}")
