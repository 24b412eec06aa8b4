"""The two tasks, retrieval and classification: which model each has, its methods, where its tracks begin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from adapters.base import BadSettings, StateMismatch, UnknownMethod
from adapters.classification import Inputs, TwoStream
from adapters.registry import METHODS_OF, Task, make_classify_method, make_method
from adapters.state import AdaptationState
from adapters.validation import check_classifier_state, check_state
from encoders.audio import AudioSpec
from encoders.base import MODALITIES, Encoder
from encoders.preprocessing import ImageSpec
from service.composed import composed_parameters
from service.errors import NotFound
from service.messages import CLASSES, COMPOSED, LABELS

CLASSIFIER_DIRECTION = "audio+video->label"
_PLAIN = tuple(f"{query}->{target}" for query in MODALITIES for target in MODALITIES)
_COMPOSED = tuple(f"{COMPOSED}->{target}" for target in (*MODALITIES, "anchor"))
DIRECTIONS = (*_PLAIN, *_COMPOSED)
"""Of the dual encoder's tracks. Queries that are embeddings have none: nothing encodes them."""


class Classifier(TwoStream, Protocol):
    """The audio-video classifier, as the service sees it: encoders.cav_mae.CavMae."""

    name: str
    dtype_name: str
    labels: tuple[str, ...]

    @property
    def audio_spec(self) -> AudioSpec: ...
    @property
    def image_spec(self) -> ImageSpec: ...

    def prepare(self, fbanks: Sequence[np.ndarray] | None, pictures: Sequence[np.ndarray] | None) -> Inputs:
        """Log mel energies [n, mel bins] and frames [3, H, W] to a batch on the model's device."""


@dataclass(frozen=True)
class Chosen:
    """A task's method in one stream. `method` is None where this process has no model for the task."""

    name: str
    settings: dict[str, Any]
    method: Any

    def describe(self) -> dict[str, Any]:
        return {"method": self.name, "settings": self.settings}


def task_of(direction: str) -> Task:
    """The task whose method learns on tracks of this direction. Labels given as texts are retrieved."""
    return "classify" if direction == CLASSIFIER_DIRECTION else "retrieve"


def is_track(gallery: str, direction: str) -> bool:
    """Whether there can be such a track."""
    if task_of(direction) == "classify":
        return gallery == CLASSES
    if gallery.startswith(LABELS):
        return direction.endswith("->text") and direction in _PLAIN
    return direction in DIRECTIONS


def adapted_in(encoder: Encoder, direction: str) -> Mapping[str, Tensor]:
    """The parameters that a dual encoder's track adapts, with their source values."""
    if direction in _COMPOSED:
        return composed_parameters(encoder)
    return encoder.towers["image" if direction.startswith("image->") else "text"].parameters


class Tasks:
    """The models of one process, and what depends on which of them a track belongs to.

    defaults  each task's method and settings in new streams
    """

    def __init__(
        self,
        encoder: Encoder,
        classifier: Classifier | None = None,
        *,
        defaults: Mapping[Task, tuple[str, Mapping[str, Any]]] | None = None,
    ) -> None:
        self.encoder = encoder
        self.classifier = classifier
        wanted: Mapping[Task, tuple[str, Mapping[str, Any]]] = defaults or {}
        self.served: tuple[Task, ...] = ("retrieve",) if classifier is None else ("retrieve", "classify")
        self.defaults: dict[Task, Chosen] = {
            task: self.choose(task, *wanted[task]) for task in self.served if task in wanted
        }

    def choose(self, task: Task, name: str, settings: Mapping[str, Any]) -> Chosen:
        """Raises UnknownMethod, BadSettings, NotFound (no model), and what the method needs and lacks."""
        if task == "retrieve":
            method = make_method(name, settings, model_temperature=self.encoder.temperature)
            return Chosen(name, dict(settings), method)
        if self.classifier is None:
            raise NotFound("this server has no classifier", code="no_classifier")
        classify_method = make_classify_method(name, settings)
        classify_method.check(self.classifier)
        return Chosen(name, dict(settings), classify_method)

    def default(self, task: Task) -> Chosen:
        """Of a new stream. Raises NotFound (no model)."""
        if task not in self.defaults:
            raise NotFound("this server has no classifier", code="no_classifier")
        return self.defaults[task]

    def task_with(self, method: str) -> Task:
        """The only task that has a method of this name. Raises UnknownMethod, BadSettings."""
        found = [task for task in self.served if method in METHODS_OF[task]]
        if len(found) > 1:
            raise BadSettings(f"{method!r} is a method of {' and '.join(found)}; say which with `task`")
        if not found:
            names = list(dict.fromkeys(name for task in self.served for name in METHODS_OF[task]))
            close = get_close_matches(method, names, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise UnknownMethod(f"unknown method {method!r}; there are {', '.join(names)}{hint}")
        return found[0]

    def source_state(self, method: Any, direction: str) -> AdaptationState:
        """Where a track of this direction begins."""
        if task_of(direction) == "classify":
            state: AdaptationState = method.initial_state(self.classifier)
        else:
            parameters = adapted_in(self.encoder, direction)
            state = method.initial_state(fingerprint=self.encoder.fingerprint, parameters=parameters)
        return state

    def check(self, state: AdaptationState, direction: str, chosen: Chosen) -> None:
        """Raises StateMismatch unless a state from outside can be used on such a track."""
        if state.method != chosen.name:
            raise StateMismatch(f"a state of {direction} was made by {state.method!r}, not {chosen.name!r}")
        if task_of(direction) == "retrieve":
            check_state(
                state,
                fingerprint=self.encoder.fingerprint,
                parameters=adapted_in(self.encoder, direction),
                dimension=self.encoder.dimension,
            )
            return
        if self.classifier is None:
            raise StateMismatch("the file holds a classifier's state, and this server has no classifier")
        check_classifier_state(state, self.classifier, chosen.method)
