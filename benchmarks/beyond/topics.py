"""Orders in which like queries come after each other.

Letters: N queries, D features.
"""

from __future__ import annotations

import re

import numpy as np
from torch import Tensor

from benchmarks.protocol import Task

BY_TOPIC, BY_SHAPE = "by topic", "by shape"
_ITERATIONS = 25


def by_topic(features: Tensor, topics: int, rng: np.random.Generator) -> list[int]:
    """Positions of rows [N, D], cluster by cluster (spherical k-means); within one by chance."""
    import faiss

    rows = np.ascontiguousarray(features.float().cpu().numpy())
    count = min(topics, len(rows))
    means = faiss.Kmeans(
        rows.shape[1],
        count,
        niter=_ITERATIONS,
        spherical=True,
        seed=int(rng.integers(1 << 30)),
        min_points_per_centroid=1,
        max_points_per_centroid=len(rows),
    )
    means.train(rows)
    assert means.centroids is not None
    nearest = (rows @ means.centroids.T).argmax(1)
    return by_label([int(label) for label in nearest], rng)


def by_shape(task: Task, rng: np.random.Generator) -> list[int] | None:
    """Positions of the queries of drawn scenes, by the first shape that a caption names.

    None: a caption names none, so these are no drawn scenes.
    """
    from demo.scenes import SHAPES

    named = re.compile(rf"\b({'|'.join(SHAPES)})\b")
    found = [named.search(caption) for caption in _captions(task)]
    shapes = [match[1] for match in found if match is not None]
    return by_label(shapes, rng) if len(shapes) == len(found) else None


def by_label(labels: list[int] | list[str], rng: np.random.Generator) -> list[int]:
    """Positions, those of a label together; labels, and positions of one label, by chance."""
    names, group = np.unique(np.asarray(labels), return_inverse=True)
    place = rng.permutation(len(names))
    shuffled = rng.permutation(len(labels))
    return [int(position) for position in shuffled[np.argsort(place[group[shuffled]], kind="stable")]]


def _captions(task: Task) -> list[str]:
    data = task.data
    if task.query_modality == "text":
        return [data.captions[number] for number in task.numbers]
    return [data.captions[data.captions_of_image[number][0]] for number in task.numbers]
