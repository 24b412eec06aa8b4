"""From probabilities to what a sample is answered with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from adapters.losses import softmax_entropy
from service.batches.base import rows_of
from service.errors import UnusableSample
from service.messages import (
    Adaptation,
    ClassifyJob,
    ClassifyJobAnswer,
    Completeness,
    LabelScore,
    Part,
    SampleAnswer,
    Timings,
)


@dataclass(frozen=True)
class BatchCompletion:
    """What every sample of a batch lacked, and what a completion knows of it.

    by       what made up for it
    parts    None: there is no completion
    novelty  of each sample, 0..1
    """

    missing: tuple[str, ...] = ()
    by: Literal["", "model", "imputation"] = ""
    parts: Mapping[str, Part] | None = None
    novelty: Sequence[float] | None = None

    def of(self, row: int) -> Completeness | None:
        """What is told of the batch's sample `row`."""
        if self.parts is None:
            return None
        return Completeness(self.parts, None if self.novelty is None else self.novelty[row])


@torch.no_grad()
def classified(
    jobs: Sequence[ClassifyJob],
    logits: Tensor,
    labels: Sequence[str],
    completion: BatchCompletion,
    adaptation: Adaptation,
    timings: Sequence[Timings],
) -> list[ClassifyJobAnswer | UnusableSample]:
    """One answer a job. logits [B, C] of all labels; equally probable labels stand in the list's order.

    A job with a sample of which the model makes no numbers fails, the others of its batch do not.
    """
    exact = logits.detach().double().cpu()
    probabilities = exact.softmax(-1)  # [B, C]
    entropies = softmax_entropy(exact).tolist()
    most = min(max(job.top for job in jobs), len(labels))
    order = torch.sort(probabilities, dim=-1, descending=True, stable=True).indices[:, :most]
    shown = probabilities.gather(1, order).tolist()
    answers: list[ClassifyJobAnswer | UnusableSample] = []
    for job, rows, times in zip(jobs, rows_of(jobs), timings, strict=True):
        if not all(map(math.isfinite, entropies[rows])):
            answers.append(UnusableSample("the model makes no numbers of a sample: its values are too large"))
            continue
        samples = tuple(
            SampleAnswer(
                tuple(
                    LabelScore(labels[index], index, probability)
                    for index, probability in zip(indices[: job.top], best[: job.top], strict=True)
                ),
                entropy,
                completion.missing,
                completion.by,
                completion.of(row),
            )
            for row, indices, best, entropy in zip(
                range(rows.start, rows.stop),
                order[rows].tolist(),
                shown[rows],
                entropies[rows],
                strict=True,
            )
        )
        answers.append(ClassifyJobAnswer(samples, adaptation, times))
    return answers
