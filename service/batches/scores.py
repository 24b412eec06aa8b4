"""From probabilities to what a sample is answered with."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from adapters.losses import softmax_entropy
from service.batches.base import rows_of
from service.errors import UnusableSample
from service.messages import Adaptation, ClassifyJob, ClassifyJobAnswer, LabelScore, SampleAnswer, Timings


@torch.no_grad()
def classified(
    jobs: Sequence[ClassifyJob],
    logits: Tensor,
    labels: Sequence[str],
    missing: Sequence[str],
    adaptation: Adaptation,
    timings: Sequence[Timings],
) -> list[ClassifyJobAnswer | UnusableSample]:
    """One answer a job. logits [B, C] of all labels; equally probable labels stand in the list's order.

    missing: modalities that every sample of the batch lacks. A job with a sample of which the model makes
    no numbers fails, the others of its batch do not.
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
                tuple(missing),
            )
            for indices, best, entropy in zip(order[rows].tolist(), shown[rows], entropies[rows], strict=True)
        )
        answers.append(ClassifyJobAnswer(samples, adaptation, times))
    return answers
