"""fsck: what this agent keeps, held against itself: the ledger, the queues, folders, containers, images.

Judges only: what lies there comes in as values (`seen.py`), findings go out (`findings.py`). The doctor looks at the host, fsck
at the state. Who reads the files is a port's adapter, and who mends is `agent/cli/fsck.py` through the same ports.

findings.py   what is said: a code, where, what was seen, and what mends it
seen.py       what is looked at: rows, rings, folders and containers as they lie
ledger.py     the ledger as a whole
orders.py     one order with everything that belongs to it: envelope, receipts, deliveries
states.py     its jobs, against the table of moves
places.py     what lies outside of the ledger, against the jobs that run
"""
