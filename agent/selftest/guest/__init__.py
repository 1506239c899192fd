"""The hostile program of the self-test. It runs inside the container, has the standard library only, and tells what it saw.

    python3 -m agent.selftest.guest '[["mount", "call", "mount"], ["net-inet", "family", "2"]]'

Each attempt is `[probe, act, words...]` and gives one line on stdout: `{"probe": ..., "seen": ...}`. What must be seen stands
in `agent/selftest/probes.py`; nothing here judges. What goes on for ever ends by itself after HARD_END_S, should the cage
not end it.
"""
