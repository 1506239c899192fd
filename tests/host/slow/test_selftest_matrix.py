"""Each line of the self-test goes red when its protection is taken away: the whole matrix, on each runtime.

`pytest -s` prints it: one line a removal, with the probes that went red and what they saw.
"""

from pathlib import Path

import pytest

from agent.ports.runtime import Runtime
from tests.host.removals import CANNOT_UNDER, REMOVALS
from tests.host.selftest import found_without

pytestmark = [pytest.mark.host, pytest.mark.timeout(180)]


@pytest.mark.parametrize("removal", REMOVALS)
def test_a_probe_goes_red_without_its_protection(
    runtime: Runtime, removal: str, workspaces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    findings = found_without(removal, runtime, workspaces, monkeypatch)

    print(f"\n{runtime.name} without {removal}:")  # noqa: T201 - the matrix
    for finding in findings:
        print(f"    {'red ' if not finding.held else 'HELD'} {finding.probe}: {finding.seen[:100]!r}")  # noqa: T201
    held = {finding.probe for finding in findings if finding.held}
    assert held == {probe for name, probe in CANNOT_UNDER if name == runtime.name} & held
    assert len(findings) == len(REMOVALS[removal].reds)
