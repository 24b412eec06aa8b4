"""Which golden is replayed how. A replayer is a test by content and a run; a new kind is one more entry."""

from __future__ import annotations

import re

import numpy as np
import torch
from torch import Tensor

from adapters.losses import modality_gap, noise_robust_entropy, uniformity
from adapters.memory import read_memory, remember
from adapters.state import AdaptationState
from benchmarks.metrics import both_directions, relevant_ranks
from benchmarks.replay import brimpr, calmrl, classification
from benchmarks.replay.compare import Comparison
from benchmarks.replay.golden import Golden
from benchmarks.replay.replayer import Replayer
from benchmarks.replay.stream import NotReplayableError, check_stream, method_of, padded, run_stream
from benchmarks.replay.toy import ToyTower


def _is_toy_retrieval(golden: Golden) -> bool:
    return {"init.fc1.weight", "gallery", "queries", "outputs"} <= set(golden.arrays)


def _toy_tower(comparison: Comparison) -> ToyTower:
    golden = comparison.golden
    weights = {
        name.removeprefix("init."): torch.from_numpy(comparison.take(name)).double()
        for name in golden.arrays
        if name.startswith("init.")
    }
    return ToyTower(
        weights,
        trainable=golden.constant("trainable"),
        epsilon=float(golden.constant("ln_eps")),
        shape=golden.constants.get("image_shape"),
    )


def _replay_toy(comparison: Comparison) -> None:
    method, replay = method_of(comparison.golden)
    tower = _toy_tower(comparison)
    gallery = torch.from_numpy(comparison.take("gallery")).double()
    queries = comparison.take("queries")
    record = run_stream(
        tower=tower,
        gallery=gallery,
        items=list(queries),
        batch_size=int(comparison.golden.constant("batch_size")),
        method=method,
    )
    check_stream(comparison, record, replay)


def _is_clip(golden: Golden) -> bool:
    return "direction" in golden.constants and "config" in golden.constants and "outputs" in golden.arrays


def _replay_clip(comparison: Comparison) -> None:
    method, replay = method_of(comparison.golden)
    from benchmarks.replay.tiny_clip import clip_items, clip_tower

    tower = clip_tower(comparison.golden)
    record = run_stream(
        tower=tower,
        gallery=torch.from_numpy(comparison.take("gallery")),
        items=clip_items(comparison),
        batch_size=int(comparison.golden.constant("batch_size")),
        method=method,
    )
    check_stream(comparison, record, replay)


def _is_losses(golden: Golden) -> bool:
    return {"rem.logits", "gap.value", "queue.query"} <= set(golden.arrays)


def _replay_losses(comparison: Comparison) -> None:
    _check_rem(comparison)
    _check_uniformity(comparison)
    _check_gap(comparison)
    _check_memory_rule(comparison)


def _leaf(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(values, dtype=np.float64)).requires_grad_(True)


def _check_with_gradient(comparison: Comparison, prefix: str, loss: Tensor, leaf: Tensor, value: str) -> None:
    (gradient,) = torch.autograd.grad(loss, leaf)
    comparison.check(f"{prefix}.{value}", float(loss.detach()))
    comparison.check(f"{prefix}.grad", gradient.numpy())


def _check_rem(comparison: Comparison) -> None:
    constants = comparison.golden.constants
    for array in comparison.golden.arrays:
        if not array.endswith(".queue_entropy"):
            continue
        logits = _leaf(comparison.take("rem.logits"))
        ceiling = torch.from_numpy(comparison.take(array)).max()
        loss, _ = noise_robust_entropy(logits, ceiling_nats=ceiling, epsilon=constants["em_eps"])
        _check_with_gradient(comparison, array.removesuffix(".queue_entropy"), loss, logits, "loss")


def _check_uniformity(comparison: Comparison) -> None:
    for array in comparison.golden.arrays:
        name = re.fullmatch(r"uni\.t([0-9.]+)\.loss", array)
        if name:
            features = _leaf(2 * comparison.take("query"))
            loss = uniformity(features, temperature=float(name[1]))
            _check_with_gradient(comparison, array.removesuffix(".loss"), loss, features, "loss")


def _check_gap(comparison: Comparison) -> None:
    features = _leaf(3 * comparison.take("query"))
    gap = modality_gap(features, torch.from_numpy(comparison.take("candidate")))
    _check_with_gradient(comparison, "gap", gap, features, "value")


def _memory_capacity(golden: Golden) -> int:
    """Of the constants, else of the array's description, else the length at which it stopped growing."""
    if "queue_capacity" in golden.constants:
        return int(golden.constants["queue_capacity"])
    said = re.search(r"capacity (\d+)", str(golden.described.get("queue.len", {}).get("doc", "")))
    return int(said[1]) if said else int(golden.array("queue.len").max())


def _check_memory_rule(comparison: Comparison) -> None:
    golden = comparison.golden
    state = AdaptationState(method="tcr", fingerprint="golden", parameters={})
    memories = []
    batches = zip(comparison.take("queue.query"), comparison.take("queue.candidate"), strict=True)
    for queries, candidates in batches:
        remember(
            state,
            torch.from_numpy(queries),
            torch.from_numpy(candidates),
            fraction=golden.constants["con_ratio"],
            capacity=_memory_capacity(golden),
            temperature=golden.constants["temperature"],
        )
        memory = read_memory(state)
        assert memory is not None
        memories.append(memory)
    comparison.check("queue.len", [len(memory) for memory in memories])
    comparison.check("queue.SI", padded([m.likeness for m in memories], comparison, "queue.SI"))
    comparison.check("queue.entropy", padded([m.entropy for m in memories], comparison, "queue.entropy"))
    comparison.check("queue.margin", float(memories[-1].gap()))
    comparison.check("queue.Em", float(memories[-1].entropy_ceiling_nats()))


def _is_metrics(golden: Golden) -> bool:
    return "scores_i2t" in golden.arrays and "keys" in golden.constants


def _replay_metrics(comparison: Comparison) -> None:
    golden = comparison.golden
    keys, per_image = golden.constant("keys"), int(golden.constant("captions_per_image"))
    scores = comparison.take("scores_i2t")
    images = np.arange(len(scores))
    captions = [range(per_image * image, per_image * (image + 1)) for image in images]
    text_ranks = relevant_ranks(scores.T, [[caption // per_image] for caption in range(scores.shape[1])])
    for array, order in (("both", images), ("i2t_perm", comparison.take("perm"))):
        image_ranks = relevant_ranks(scores[order], [captions[image] for image in order])
        figures = both_directions(image_ranks, text_ranks)
        comparison.check(array, [figures[key] for key in keys])


REPLAYERS: tuple[Replayer, ...] = (
    Replayer("toy retrieval stream", _is_toy_retrieval, _replay_toy),
    Replayer("tiny CLIP stream", _is_clip, _replay_clip),
    Replayer("TCR losses", _is_losses, _replay_losses),
    Replayer("retrieval metrics", _is_metrics, _replay_metrics),
    *classification.REPLAYERS,
    *brimpr.REPLAYERS,
    *calmrl.REPLAYERS,
)
"""The first that matches replays a golden. Other files hold tables of their own, which are added here."""


def replayer_of(golden: Golden) -> Replayer:
    """Raises NotReplayableError where no replayer knows the golden."""
    for replayer in REPLAYERS:
        if replayer.matches(golden):
            return replayer
    method = golden.constants.get("method")
    raise NotReplayableError(f"method {method}" if method else "no replayer knows it")
