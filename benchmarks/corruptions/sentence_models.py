"""Models that rewrite or compare sentences, loaded with Transformers from a folder or by hub name.

Styles as Styleformer asks its T5 models: a task prefix, then sampling (top-k 50, top-p 0.95). Backtrans
chains two translators without sampling. Imported only when the user names a model: it needs torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from benchmarks.corruptions.text_tools import KNOWN_MODELS, MissingTool, Rewrite

PREFIXES: Mapping[str, str] = {
    "Formal": "transfer Casual to Formal: ",
    "Casual": "transfer Formal to Casual: ",
    "Passive": "transfer Active to Passive: ",
    "Active": "transfer Passive to Active: ",
}
MAX_STYLE_TOKENS = 32
"""Styleformer's limit."""
MAX_TRANSLATED_TOKENS = 200
SAMPLING: Mapping[str, Any] = {"do_sample": True, "top_k": 50, "top_p": 0.95}


class Seq2Seq:
    """One text-to-text model."""

    def __init__(self, name: str, device: str) -> None:
        """Raises MissingTool: it is not there or no such model."""
        self._tokenizer = _loaded(transformers.AutoTokenizer, name)
        self._model = _loaded(transformers.AutoModelForSeq2SeqLM, name).to(device).eval()
        self._device = device

    @torch.no_grad()
    def __call__(self, text: str, **options: Any) -> str:
        inputs = self._tokenizer(text, return_tensors="pt", truncation=True).to(self._device)
        tokens = self._model.generate(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], **options
        )
        return str(self._tokenizer.decode(tokens[0], skip_special_tokens=True)).strip()


def load_rewriter(corruption: str, models: str, device: str = "cpu") -> Rewrite:
    """What carries out `Formal`, ..., `Backtrans`. models: one name; two, with a comma, for Backtrans.

    Raises:
        MissingTool: unknown corruption, wrong number of models, or one cannot be loaded.
    """
    names = [name.strip() for name in models.split(",") if name.strip()]
    if corruption not in KNOWN_MODELS:
        raise MissingTool(f"{corruption!r} takes no model; {', '.join(KNOWN_MODELS)} do")
    wanted = 2 if corruption == "Backtrans" else 1
    if len(names) != wanted:
        raise MissingTool(f"{corruption} takes {wanted} model{'s' * (wanted > 1)}, not {models!r}")
    chain = [Seq2Seq(name, device) for name in names]
    return _styled(chain[0], PREFIXES[corruption]) if wanted == 1 else _translated(chain)


def _styled(model: Seq2Seq, prefix: str) -> Rewrite:
    def rewrite(text: str, rng: np.random.Generator) -> str:
        # The models sample from torch's own generators; these are given back as they were.
        with torch.random.fork_rng():
            torch.manual_seed(int(rng.integers(2**31)))
            return model(prefix + text, max_length=MAX_STYLE_TOKENS, **SAMPLING) or text

    return rewrite


def _translated(chain: Sequence[Seq2Seq]) -> Rewrite:
    def rewrite(text: str, rng: np.random.Generator) -> str:
        translated = text
        for model in chain:
            translated = model(translated, max_length=MAX_TRANSLATED_TOKENS)
        return translated or text

    return rewrite


class SentenceSimilarity:
    """Cosine of two texts by a sentence encoder: the mean of its last hidden states over the tokens."""

    def __init__(self, name: str, device: str = "cpu") -> None:
        """Raises MissingTool: it is not there or no such model."""
        self._tokenizer = _loaded(transformers.AutoTokenizer, name)
        self._model = _loaded(transformers.AutoModel, name).to(device).eval()
        self._device = device
        # The original is compared with up to a hundred candidates in a row.
        self._remembered = lru_cache(maxsize=64)(self._embed)

    def __call__(self, original: str, candidate: str) -> float:
        return float(self._remembered(original) @ self._embed(candidate))

    @torch.no_grad()
    def _embed(self, text: str) -> Tensor:
        """[D], of length 1"""
        inputs = self._tokenizer(text, return_tensors="pt", truncation=True).to(self._device)
        hidden = self._model(**inputs).last_hidden_state
        mask = inputs["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
        return torch.nn.functional.normalize(mean, dim=1)[0]


def _loaded(kind: Any, name: str) -> Any:
    try:
        return kind.from_pretrained(name)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise MissingTool(
            f"cannot load the model {name!r}: {reason} Name a folder that save_pretrained wrote, "
            "or a hub name where the hub can be reached."
        ) from error
