"""The one place that imports FAISS.

FAISS has two exact kernels: one product at a time, and blocks through BLAS. It takes BLAS from
`distance_compute_blas_threshold` queries on, by default so many that a batch of 64 stays on the slow one
(410 ms instead of 41 ms for 100k rows of 512 on two cores). Measured there, in ms, one at a time / BLAS:
1 query 18 / 18, 2 queries 13 / 17, 3 queries 25 / 18, 8 queries 51 / 23; hence 3.
"""

from __future__ import annotations

import warnings
from typing import Any

with warnings.catch_warnings():
    # SWIG's types have no __module__, which Python 3.12 and later report at import.
    warnings.simplefilter("ignore", DeprecationWarning)
    import faiss as _faiss

# Its type stubs describe the C++ signatures and lack what its Python layer adds.
faiss: Any = _faiss

BLAS_FROM_QUERIES = 3

# Settings of the whole process. FAISS offers no arguments for them.
faiss.cvar.distance_compute_blas_threshold = BLAS_FROM_QUERIES

# BLAS works on blocks of the scores [B, G], and all threads meet after each. By default a block spans 1,024
# rows, and when other processes want the same cores, those meetings cost more than the products: 64 queries
# took 820 ms with two threads on two busy cores, against 280 ms with these blocks and 150 ms with one
# thread and either. 32 MiB at most.
faiss.cvar.distance_compute_blas_database_bs = 16_384
faiss.cvar.distance_compute_blas_query_bs = 512

__all__ = ["BLAS_FROM_QUERIES", "faiss"]
