"""What a batch costs a method, in forwards of the source model."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from typing import Any

from adapters.base import Method
from adapters.registry import make_method
from benchmarks.exact import ExactSide
from benchmarks.online import adapt_batch
from benchmarks.protocol import HITS
from encoders.base import Encoder, Modality

_TOLERATED = 0.1
"""Forwards that a method may be late without missing a batch: no ratio is measured better than that."""
_ROUNDS = 6


def learns_every(cost: float) -> int:
    """One of how many batches a method learns from, where one comes with every forward of the source."""
    return max(1, math.ceil(cost - _TOLERATED))


def cost_over_source(
    encoder: Encoder, modality: Modality, side: ExactSide, method: Method, items: Sequence[Any]
) -> float:
    """Median ratio of a batch of `items` under the method to the same under `source`, in turns.

    Time of the processor, not of the clock, so that others at work on the machine count less; on a GPU of the
    clock. The first round only warms up.
    """
    tower = encoder.towers[modality]
    inputs = tower.prepare(items)
    clock = time.process_time if encoder.device.type == "cpu" else time.perf_counter
    ratios = []
    for number in range(_ROUNDS):
        spent = []
        for each in (method, make_method("source")):
            state = each.initial_state(fingerprint=encoder.fingerprint, parameters=tower.parameters)
            began = clock()
            adapt_batch(
                tower=tower,
                inputs=inputs,
                side=side,
                k=HITS,
                method=each,
                state=state,
                batch_id=f"cost/{number}",
            )
            spent.append(clock() - began)
        ratios.append(spent[0] / max(spent[1], 1e-9))
    return statistics.median(ratios[1:])
