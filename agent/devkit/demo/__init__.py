"""`make demo`: three hospitals, one order, real data, real containers; and what is refused.

`story.py` is the walk, `data.py` the patients, `attacks.py` what must be refused, `show.py` how it looks on a terminal.
"""
