"""The status page: what this host does, what it did and what needs a person, as HTML that reads and never writes.

`facts*.py` ask the ledger and give values, `pictures.py` turns values into coordinates, `templates/` say how they look,
`site.py` answers. Everything that a template is given may come from a stranger: `words.plain` and jinja2's escaping stand
between it and the reader.
"""
