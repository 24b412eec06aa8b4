"""Texts and pictures in one: what a query has is encoded, what it lacks is completed, one vector comes out.

Letters: B queries, D features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeAlias, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from adapters.completion import Completed, Completion, remembered
from adapters.state import AdaptationState
from encoders.base import MODALITIES, Adaptable, Encoder, EncoderError, Inputs, Modality, Tower
from service.messages import Query, Sample


@dataclass(frozen=True)
class ComposedInputs:
    """Prepared queries of one kind: what they have, by modality, all of as many rows."""

    parts: Mapping[Modality, Any]

    def __len__(self) -> int:
        return len(next(iter(self.parts.values())))

    def __getitem__(self, rows: Tensor) -> ComposedInputs:
        return ComposedInputs({modality: part[rows] for modality, part in self.parts.items()})


@dataclass(frozen=True)
class ComposedTower:
    """Both towers as one; see encoders.base.Adaptable.

    towers      of each modality
    completion  makes up for what queries lack, and their features are the anchors of the whole; None: their
                features are the normalised mean of the unit embeddings that they have
    """

    towers: Mapping[Modality, Tower]
    completion: Completion | None = None

    @cached_property
    def parameters(self) -> Mapping[str, Tensor]:
        """Of both towers: `image/NAME` and `text/NAME`."""
        return {
            f"{modality}/{name}": value
            for modality in MODALITIES
            for name, value in self.towers[modality].parameters.items()
        }

    def under(self, state: AdaptationState | None) -> ComposedTower:
        """As queries of this state meet it: completed by the state's own completion, if it has one."""
        own = None if state is None else remembered(state, MODALITIES)
        return self if own is None else replace(self, completion=own)

    def prepare(self, queries: Sequence[Query]) -> ComposedInputs:
        """Queries of one kind; no embeddings. Raises EncoderError."""
        if not queries or len({query.kind for query in queries}) > 1 or queries[0].embedding is not None:
            raise EncoderError("queries that are encoded together are of one kind, texts or pictures or both")
        parts: dict[Modality, Inputs] = {}
        pictures = [query.pixels for query in queries if query.pixels is not None]
        texts = [query.text for query in queries if query.text is not None]
        if pictures:
            parts["image"] = self.towers["image"].prepare(pictures)
        if texts:
            parts["text"] = self.towers["text"].prepare(texts)
        return ComposedInputs(parts)

    def encode(self, inputs: ComposedInputs, parameters: Mapping[str, Tensor] | None = None) -> Tensor:
        """Unit rows [B, D]; differentiable in the parameters of the modalities that `inputs` have."""
        return self.encode_completed(inputs, parameters)[0]

    def encode_completed(
        self, inputs: ComposedInputs, parameters: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, Completed | None]:
        """Likewise, and the embeddings whose anchors they are; None without a completion."""
        embeddings: dict[str, Tensor] = {
            modality: self.towers[modality].encode(part, _own(modality, parameters))
            for modality, part in inputs.parts.items()
        }
        if self.completion is None:
            return _mean(list(embeddings.values())), None
        completed = self.completion.complete(embeddings)
        return self.completion.anchors(completed), completed


QueryTower: TypeAlias = Tower | ComposedTower


def prepared(tower: QueryTower, asked: Sequence[Query | Sample]) -> Any:
    """Texts, pictures or both, all of one kind, as the tower takes them."""
    if isinstance(tower, ComposedTower):
        return tower.prepare([one for one in asked if isinstance(one, Query)])
    texts = [one.text for one in asked if one.text is not None]
    return tower.prepare(texts or [one.pixels for one in asked if one.pixels is not None])


AnyTower = TypeVar("AnyTower", bound=Adaptable)


def under(tower: AnyTower, state: AdaptationState | None) -> AnyTower | ComposedTower:
    """The tower as queries of this state meet it: what completes them may be part of the state."""
    return tower.under(state) if isinstance(tower, ComposedTower) else tower


def composed_parameters(encoder: Encoder) -> Mapping[str, Tensor]:
    """Names and source values of what tracks of composed queries adapt."""
    return ComposedTower(encoder.towers).parameters


def detached(completed: Completed | None) -> Completed | None:
    """Without the graph that made it."""
    if completed is None:
        return None
    return replace(completed, embeddings={name: part.detach() for name, part in completed.embeddings.items()})


def _own(modality: Modality, parameters: Mapping[str, Tensor] | None) -> dict[str, Tensor] | None:
    """Those of one tower, by their names there."""
    if parameters is None:
        return None
    prefix = f"{modality}/"
    return {name.removeprefix(prefix): value for name, value in parameters.items() if name.startswith(prefix)}


def _mean(embeddings: Sequence[Tensor]) -> Tensor:
    if len(embeddings) == 1:
        return embeddings[0]
    return F.normalize(torch.stack(list(embeddings)).sum(0), dim=-1)
