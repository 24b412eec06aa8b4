"""What some text corruptions need from outside: a WordNet, models that rewrite sentences, a similarity.

SR, RI                                      a WordNet (`wordnet.py`)
Formal, Casual, Passive, Active, Backtrans  models that the user names (`sentence_models.py`)
any but characters and Backtrans            optionally a similarity: redrawn until it is at least 0.9
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from benchmarks.corruptions.wordnet import WHERE_TO_GET_IT, WordNet, find_wordnet

Rewrite = Callable[[str, np.random.Generator], str]
Similarity = Callable[[str, str], float]
"""Of the original and the corrupted text, at most 1."""

KNOWN_MODELS: Mapping[str, str] = {
    "Formal": "prithivida/informal_to_formal_styletransfer",
    "Casual": "prithivida/formal_to_informal_styletransfer",
    "Passive": "prithivida/active_to_passive_styletransfer",
    "Active": "prithivida/passive_to_active_styletransfer",
    "Backtrans": "facebook/wmt19-en-de,facebook/wmt19-de-en",
}
"""What the released captions were made with. Nothing is loaded unless the user names it."""
KNOWN_SIMILARITY = "sentence-transformers/paraphrase-mpnet-base-v2"


class MissingTool(ValueError):
    """A corruption needs a WordNet or a model that was not named, is not there or cannot be loaded."""


@dataclass(frozen=True)
class TextTools:
    """rewriters: by the name of the corruption."""

    wordnet: WordNet | None = None
    rewriters: Mapping[str, Rewrite] = field(default_factory=dict)
    similarity: Similarity | None = None

    def need_wordnet(self, corruption: str) -> WordNet:
        if self.wordnet is None:
            raise MissingTool(
                f"{corruption} takes its words from WordNet, and none was found. {WHERE_TO_GET_IT}"
            )
        return self.wordnet

    def need_rewriter(self, corruption: str) -> Rewrite:
        if corruption not in self.rewriters:
            raise MissingTool(
                f"{corruption} needs a model that rewrites sentences: name a Transformers folder or hub "
                f"name, for example {corruption}={KNOWN_MODELS[corruption]}"
            )
        return self.rewriters[corruption]


@cache
def usual_tools() -> TextTools:
    """A WordNet if there is one in its usual places, and nothing else."""
    return TextTools(wordnet=find_wordnet())
