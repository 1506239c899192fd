"""A small but real orchestrator and storage: the executable reference of docs/contracts/, written for reading.

`storage.py` and `orchestrator.py` are their routes and rules, `shelf.py` and `book.py` what they remember. They hold to the
contracts and to nothing else: no page, no accounts, no scheduling. Start them with `python -m agent.devkit`.
"""
