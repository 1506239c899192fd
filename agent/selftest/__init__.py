"""The self-test: hostile code in the real cage of each runtime, and what must come of it.

`probes.py` is the table, `guest/` the hostile program that runs inside, `scenes*.py` run it and look at what happened from
outside, `judge.py` holds both against each other. Only the port `Runtime` is known here, no adapter.
"""
