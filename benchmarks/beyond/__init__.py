"""Query streams that the papers do not have: changing, mixed, long, ordered, tiny, repeated, in real time.

A `Plan` (plans.py) says which queries come in which batches; it is made from numbers alone. `bench.py`
prepares them and runs methods over them, `figures.py` compares two runs of a plan query by query.
"""
