"""TCR as its released script runs it, for comparison: a plain loop around a plain Hugging Face model.

For each batch, K times: forward of the query tower, the full [B, G] product with the gallery (kept for the
backward), losses, backward, AdamW over the tower's norm parameters. fp32, texts padded to the model's
full length, preprocessing left out of the time. Written to be read beside adapters/tcr.py; nothing of it
is used by the service.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from encoders.base import Modality
from encoders.preprocessing import ImageSpec

STEPS, TEMPERATURE, RATE, DECAY = 3, 0.02, 3e-4, 1e-4
MEMORY_FRACTION, MEMORY_CAPACITY, MEMORY_BATCHES = 0.3, 64, 10


@dataclass
class NaiveTCR:
    """`forward` maps a prepared batch to projected features; `parameters` are what AdamW moves."""

    forward: Callable[[Any], Tensor]
    parameters: Sequence[nn.Parameter]
    gallery: Tensor
    memory: list[tuple[float, Tensor, Tensor, float]] = field(default_factory=list)
    batches: int = 0

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.AdamW(self.parameters, lr=RATE, weight_decay=DECAY)

    def __call__(self, batch: Any) -> Tensor:
        """Similarities [B, G] of the last step's forward."""
        similarity = torch.empty(0)
        for step in range(STEPS):
            query = F.normalize(self.forward(batch), dim=-1)
            similarity = query @ self.gallery.T
            candidates = self.gallery[similarity.argmax(dim=1)]
            if step == 0 and self.batches < MEMORY_BATCHES:
                self._remember(query.detach(), candidates)
            loss = self._loss(query, candidates)
            self.optimizer.zero_grad()
            torch.autograd.backward(loss)
            self.optimizer.step()
        self.batches += 1
        return similarity.detach()

    def _remember(self, query: Tensor, candidates: Tensor) -> None:
        likeness = (
            2 * (query - candidates).norm(dim=1)
            - (query - query.mean(0)).norm(dim=1)
            - (candidates - candidates.mean(0)).norm(dim=1)
        )
        entropy = _entropy(query @ candidates.T / TEMPERATURE)
        for row in likeness.argsort()[: int(MEMORY_FRACTION * len(query))].tolist():
            self.memory.append((float(likeness[row]), query[row], candidates[row], float(entropy[row])))
        if len(self.memory) >= MEMORY_CAPACITY:
            self.memory = sorted(self.memory, key=lambda entry: entry[0])[:MEMORY_CAPACITY]

    def _loss(self, query: Tensor, candidates: Tensor) -> Tensor:
        kept_q = torch.stack([entry[1] for entry in self.memory])
        kept_c = torch.stack([entry[2] for entry in self.memory])
        ceiling = max(entry[3] for entry in self.memory)
        target = (kept_q.mean(0) - kept_c.mean(0)).norm()
        entropy = _entropy(query @ candidates.T / TEMPERATURE)
        reliable = entropy <= ceiling
        weight = (1 - entropy.detach() / (ceiling + 1e-3)).clamp(min=0)
        rem = (entropy * weight)[reliable].mean() if reliable.any() else query.sum() * 0
        uniformity = torch.exp(-0.1 * (query - query.mean(0)).norm(dim=1)).mean()
        gap = (query.mean(0) - candidates.mean(0)).norm()
        return rem + uniformity + (gap - target).square()


def naive_tcr(folder: Path, modality: Modality, gallery: Tensor) -> NaiveTCR:
    """The loop over the stock model of `folder`; batches are what `stock_batch` makes."""
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    model.requires_grad_(False)
    tower = model.vision_model if modality == "image" else model.text_model
    skipped = getattr(tower, "final_layer_norm", None) if modality == "text" else None
    parameters = [
        parameter
        for module in tower.modules()
        if isinstance(module, nn.LayerNorm | nn.BatchNorm2d) and module is not skipped
        for parameter in module.parameters(recurse=False)
    ]
    for parameter in parameters:
        parameter.requires_grad_(True)
    encode = model.get_image_features if modality == "image" else model.get_text_features

    def forward(batch: Any) -> Tensor:
        features: Tensor = encode(**batch).pooler_output
        return features

    return NaiveTCR(forward, parameters, gallery)


def stock_batches(
    folder: Path, modality: Modality, items: Sequence[Any], size: int, spec: ImageSpec
) -> list[Any]:
    """What the stock model takes: normalised pixels, or ids padded to the model's full length."""
    if modality == "image":
        mean = torch.tensor(spec.mean)[:, None, None]
        std = torch.tensor(spec.std)[:, None, None]
        return [
            {
                "pixel_values": (
                    torch.from_numpy(np.stack(items[at : at + size])).float() * spec.rescale - mean
                )
                / std
            }
            for at in range(0, len(items), size)
        ]
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return [
        dict(
            tokenizer(list(items[at : at + size]), padding="max_length", truncation=True, return_tensors="pt")
        )
        for at in range(0, len(items), size)
    ]


def _entropy(logits: Tensor) -> Tensor:
    return -(logits.softmax(1) * logits.log_softmax(1)).sum(1)
