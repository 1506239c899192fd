"""The parts of the bench that take long to set up, once and small: they run, and tell what they should."""

import pytest

from agent.bench.run import measure_of
from tests.bench.short import SLOW, run_short


@pytest.mark.host
@pytest.mark.parametrize("part", [part for part in sorted(SLOW) if measure_of(part) is not None])
def test_one_short_run_of_a_part_tells_its_rows_and_figures(part: str) -> None:
    run_short(part)
