"""What watches the adaptation of a stream and takes it back when it harms. See docs/guard.md.

settings.py   what can be set
look.py       what is measured of a batch (torch)
reference.py  what the stream's queries look like to the source model, and whether a batch still does
guard.py      from figures to a ruling: learn, skip, roll back, reset
canaries.py   known query-answer pairs
"""
