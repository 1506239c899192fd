"""The table of the self-test: every probe, in the order of the suite's scenes."""

from agent.selftest.probe import Probe
from agent.selftest.probes_inside import INSIDE
from agent.selftest.probes_left import LEFT
from agent.selftest.probes_runs import RUNS

PROBES: tuple[Probe, ...] = (*INSIDE, *RUNS, *LEFT)
