"""What one stream takes in memory and in Redis, by encoder: `python -m benchmarks.streams --part memory`.

The states are made up, but complete: every parameter adapted, with both moments, a full memory, all the ids
of applied batches that are kept, and a last good state as large as the state itself. They are packed
by the service's own code and weighed by a Redis of the benchmark's own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import redis
import torch
from torch import Tensor

from adapters.registry import make_method
from adapters.state import APPLIED_BATCHES_KEPT, AdaptationState, pack_states
from benchmarks.redis_server import redis_server
from service.codec import pack_job
from service.messages import Query, RetrieveJob, TrackKey
from service.stream_files import pack_stream
from service.tasks import Chosen
from service.tracks import Stream, Track

FULL_MEMORY = 64
"""Entries that TCR's memory holds by default."""


def layer_norms(count: int, width: int) -> dict[str, Tensor]:
    """Weights and biases of that many layer norms, named as long as CLIP's are."""
    return {
        f"vision_model.encoder.layers.{n}.layer_norm.{part}": torch.zeros(width)
        for n in range(count)
        for part in ("weight", "bias")
    }


def towers() -> dict[str, tuple[Mapping[str, Tensor], int, Query]]:
    """Kind of track -> adaptable parameters, features, and one query as it travels."""
    from demo import demo_encoder_path
    from encoders.load import load_encoder

    demo = load_encoder(str(demo_encoder_path()), device="cpu")
    spec = demo.image_spec
    text = Query(text="a large red circle above a small green square")
    return {
        "demo, texts": (demo.towers["text"].parameters, demo.dimension, text),
        "demo, pictures": (demo.towers["image"].parameters, demo.dimension, _picture(spec.height)),
        "CLIP B/32 or B/16, texts": (layer_norms(25, 512), 512, text),
        "CLIP B/32 or B/16, pictures": (layer_norms(26, 768), 512, _picture(224)),
    }


def _picture(side: int) -> Query:
    return Query(pixels=np.zeros((3, side, side), np.uint8))


def full_state(parameters: Mapping[str, Tensor], features: int) -> AdaptationState:
    """Random numbers wherever a state can hold some."""
    state = make_method("tcr").initial_state(fingerprint="f" * 64, parameters=dict(parameters))
    for group in (state.parameters, state.optimizer.exp_avg, state.optimizer.exp_avg_sq):
        group.update({name: torch.rand_like(value) for name, value in parameters.items()})
    state.optimizer.steps.update({name: torch.tensor(1.0) for name in parameters})
    pairs = {"likeness": (), "queries": (features,), "candidates": (features,), "entropy": ()}
    state.tensors.update({f"memory.{k}": torch.rand(FULL_MEMORY, *shape) for k, shape in pairs.items()})
    state.applied_batches = tuple(f"{n:032x}+0" for n in range(APPLIED_BATCHES_KEPT))
    return state


def weigh_all() -> list[dict[str, Any]]:
    with redis_server() as server, server.client() as client:
        return [weigh(client, name, *tower) for name, tower in towers().items()]


def weigh(
    client: redis.Redis, name: str, parameters: Mapping[str, Tensor], features: int, query: Query
) -> dict[str, Any]:
    """Bytes of a stream with one track."""
    state = full_state(parameters, features)
    track = Track("gallery", "text->image", state)
    stream = Stream(
        "stream", {"retrieve": Chosen("tcr", {}, make_method("tcr"))}, 0.0, 0.0, tracks={track.name: track}
    )
    key = TrackKey("stream", "gallery", query.kind, "image")
    job = pack_job(RetrieveJob(key, "async", (query,), 10), reply_to="api", shift_s=0.0)
    client.delete("gathering")
    client.rpush("gathering", *[job] * 64)
    before_good = _weigh_stream(client, stream)
    track.guard = replace(track.guard, good=full_state(parameters, features))
    return {
        "track": name,
        "parameters": sum(value.numel() for value in parameters.values()),
        "state_bytes": state.byte_size(),
        "packed_bytes": len(pack_states({track.name: state}, header={})),
        "redis_bytes": before_good,
        "redis_bytes_with_good": _weigh_stream(client, stream),
        "gathered_query_bytes": _weight(client, "gathering") / 64,
    }


def _weigh_stream(client: redis.Redis, stream: Stream) -> int:
    client.hset(
        "s", mapping={"state": pack_stream(stream, kind="stream"), "card": json.dumps(stream.describe())}
    )
    return _weight(client, "s")


def _weight(client: redis.Redis, key: str) -> int:
    return client.memory_usage(key, samples=0) or 0
