"""The doctor: what this host is, looked at and judged, line by line. `agent/cli/doctor.py` asks and prints.

Two kinds of files, which tests/test_layout.py holds apart:

lines.py      what a line says: ok, warn, fail or note, what was seen, and the one command that mends it
look*.py      thin readers: files, programs and system calls in, facts out; what cannot be read is `Unknown`, with its reason
the others    pure judges: facts in, lines out

A `note` is neither good nor bad: nobody can tell from here, or it is only told. Nothing secret is ever read into a fact.
"""
