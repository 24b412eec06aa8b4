"""Whether a state that came from outside fits the encoder and the method that would use it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from adapters.base import StateMismatch
from adapters.calibration import PARTS
from adapters.classification import ClassifyMethod, TwoStream
from adapters.completion import BadCompletion, Completion, completion_of_tensors
from adapters.state import AdaptationState

_LARGEST_MEMORY = 65536
_LONGEST_HISTORY = 1000
_MOST_PROMPTS = 100
_MOST_SUPPORTS_PER_CLASS = 1000
_MOST_NUMBERS = 32
_LARGEST_COUNT = 1 << 53
_ROWS = {"memory.likeness": 1, "memory.entropy": 1, "memory.queries": 2, "memory.candidates": 2}
_CLASSIFIER_TENSORS = {
    "history.audio": "H",
    "history.video": "H",
    "probability_average": "C",
    "supports.features": "MD",
    "supports.labels": "M",
    "supports.entropies": "M",
}
"""What classification methods remember, with a letter for each dimension; H: distances of past batches."""
_COUNTS = frozenset({"seed", "draws", "latent.batches"})
_LATENT = "latent/"
_ENCODED = ("image", "text")
_AVERAGE = {"probability_average": 1}
_LARGEST_GALLERY = 10_000_000
_CENTRES = {"centre.queries": 1, "centre.candidates": 1, "centre.gap": 0}


def check_state(
    state: AdaptationState, *, fingerprint: str, parameters: Mapping[str, Tensor], dimension: int
) -> None:
    """Raises StateMismatch unless `state` can be used with an encoder of these parameters (D = dimension)."""
    _check_fingerprint(state, fingerprint, "encoder")
    if state.parameters and set(state.parameters) != set(parameters):
        raise StateMismatch("the state's parameters are not those of the encoder's tower")
    for name, value in state.parameters.items():
        if value.shape != parameters[name].shape or value.dtype != parameters[name].dtype:
            raise StateMismatch(f"parameter {name} has another shape or type than the encoder's")
    _check_moments(state)
    _check_method_tensors(_own(state), dimension)
    _check_completion(state, _ENCODED, dimension, unit=True)
    _check_numbers(state)
    _check_counters(state)


def check_classifier_state(state: AdaptationState, model: TwoStream, method: ClassifyMethod) -> None:
    """Raises StateMismatch unless `state` can be used by `method` with this classifier.

    Letters: D width, L tower blocks, Lp blocks with prompts, P prompts, C classes, M supports.
    """
    _check_fingerprint(state, model.fingerprint, "classifier")
    fresh = method.initial_state(model)
    if set(state.parameters) != set(fresh.parameters):
        raise StateMismatch(f"the state's parameters are not those that {method.name} adapts")
    for name, value in state.parameters.items():
        wanted = fresh.parameters[name]
        shape = wanted.shape if name in model.weights else _prompt_shape(value, model)
        if value.shape != shape or value.dtype != wanted.dtype:
            raise StateMismatch(f"parameter {name} has another shape or type than {method.name}'s")
    _check_moments(state)
    _check_classifier_tensors(_own(state), fresh, model)
    _check_completion(state, PARTS, model.width, unit=False)
    if not set(fresh.numbers) <= set(state.numbers):
        raise StateMismatch(f"the state lacks a number that {method.name} begins with")
    _check_numbers(state)
    _check_counters(state)


def _check_fingerprint(state: AdaptationState, fingerprint: str, made_with: str) -> None:
    if state.fingerprint != fingerprint:
        made = str(state.fingerprint)[:12]
        raise StateMismatch(f"the state was made with {made_with} {made}, this one is {fingerprint[:12]}")


def _prompt_shape(value: Tensor, model: TwoStream) -> tuple[int, ...]:
    """[Lp, P, D]; how many prompts a state holds is its own affair, settings may have changed since."""
    layers, prompts = (*value.shape, 0, 0)[:2]
    return (min(max(layers, 1), model.depth), min(max(prompts, 1), _MOST_PROMPTS), model.width)


def _check_moments(state: AdaptationState) -> None:
    optimizer = state.optimizer
    names = set(optimizer.steps)
    if names != set(optimizer.exp_avg) or names != set(optimizer.exp_avg_sq) or names - set(state.parameters):
        raise StateMismatch("the optimiser's moments do not belong to the state's parameters")
    for name in names:
        shape = state.parameters[name].shape
        if optimizer.exp_avg[name].shape != shape or optimizer.exp_avg_sq[name].shape != shape:
            raise StateMismatch(f"the moments of {name} have another shape than the parameter")
        if optimizer.steps[name].numel() != 1:
            raise StateMismatch(f"the step count of {name} is no number")
    everything = [*state.parameters.values(), *optimizer.exp_avg.values(), *optimizer.exp_avg_sq.values()]
    if not all(bool(torch.isfinite(value).all()) for value in everything):
        raise StateMismatch("a parameter or moment is not finite")


def _own(state: AdaptationState) -> Mapping[str, Tensor]:
    """The method's tensors, without those of the completion that the state carries."""
    return {name: value for name, value in state.tensors.items() if not str(name).startswith(_LATENT)}


def _check_method_tensors(tensors: Mapping[str, Tensor], dimension: int) -> None:
    rows: int | None = None
    for name, value in tensors.items():
        ranks = _ROWS if name in _ROWS else _CENTRES | _AVERAGE
        if name not in ranks or value.ndim != ranks[name]:
            raise StateMismatch(f"unknown or misshapen tensor {name!r}")
        if not value.is_floating_point() or not bool(torch.isfinite(value).all()):
            raise StateMismatch(f"{name} is not finite")
        if name in _AVERAGE and len(value) > _LARGEST_GALLERY:
            raise StateMismatch(f"{name} is longer than a gallery may be")
        if name in _ROWS:
            rows = len(value) if rows is None else rows
            if len(value) != rows or not 1 <= rows <= _LARGEST_MEMORY:
                raise StateMismatch("the memory's parts differ in length, or it is empty or too large")
        if name.endswith(("queries", "candidates")) and value.shape[-1] != dimension:
            raise StateMismatch(f"{name} has {value.shape[-1]} features, the encoder {dimension}")
    if rows is not None and not all(name in tensors for name in _ROWS):
        raise StateMismatch("the memory lacks a part")
    centres = [name for name in _CENTRES if name in tensors]
    if centres and len(centres) != len(_CENTRES):
        raise StateMismatch("the centres lack a part")


def _check_classifier_tensors(
    tensors: Mapping[str, Tensor], fresh: AdaptationState, model: TwoStream
) -> None:
    if not set(fresh.tensors) <= set(tensors):
        raise StateMismatch("the state lacks a tensor that its method begins with")
    sizes = {"D": model.width, "C": model.label_count}
    most = {"H": _LONGEST_HISTORY, "M": _MOST_SUPPORTS_PER_CLASS * model.label_count}
    supports = tensors.get("supports.labels")
    for name, value in tensors.items():
        letters = _CLASSIFIER_TENSORS.get(name)
        if letters is None or value.ndim != len(letters):
            raise StateMismatch(f"unknown or misshapen tensor {name!r}")
        if name in fresh.tensors and value.dtype != fresh.tensors[name].dtype:
            raise StateMismatch(f"{name} has another type of numbers")
        if name not in fresh.tensors and not value.is_floating_point():
            raise StateMismatch(f"{name} has another type of numbers")
        if not bool(torch.isfinite(value).all()):
            raise StateMismatch(f"{name} is not finite")
        for letter, size in zip(letters, value.shape, strict=True):
            if (letter in sizes and size != sizes[letter]) or size > most.get(letter, size):
                raise StateMismatch(f"{name} is of another size than the model's, or too long")
        if "M" in letters and (supports is None or not 1 <= len(value) == len(supports)):
            raise StateMismatch("the supports' parts differ in length, or there are none")
    if supports is not None and not bool(((supports >= 0) & (supports < model.label_count)).all()):
        raise StateMismatch("a support is of no class")


def _check_completion(state: AdaptationState, modalities: Sequence[str], size: int, *, unit: bool) -> None:
    """Of the completion that a state may carry: whole, of this model's sizes, and of use."""
    tensors = {name: value for name, value in state.tensors.items() if str(name).startswith(_LATENT)}
    numbers = {"latent.unit", "latent.batches"} & set(state.numbers)
    if not tensors and not numbers:
        return
    if len(numbers) < 2 or state.numbers["latent.unit"] != float(unit):
        raise StateMismatch("the state's completion lacks its numbers, or is another kind of model's")
    for name in modalities:  # before anything is computed of them: sizes decide what that costs
        weight = tensors.get(f"latent/{name}/weight")
        if weight is None or weight.ndim != 2 or len(weight) != size:
            raise StateMismatch(f"the state's completion is not of the model's {size} features of {name}")
        directions = tensors.get(f"latent/{name}/spread.directions", weight[:, :0])
        if weight.shape[1] > size * len(modalities) or directions.shape[-1] > size:
            raise StateMismatch("the state's completion has a latent larger than what it is of")
    try:
        completion = completion_of_tensors(tensors, modalities=modalities, unit=unit)
    except BadCompletion as error:
        raise StateMismatch(f"the state's completion cannot be used: {error}") from error
    if not _completes(completion):
        raise StateMismatch("the state's completion makes no numbers")


def _completes(completion: Completion) -> bool:
    """Whether each modality alone leads to finite values of the others."""
    for name, size in zip(completion.modalities, completion.sizes, strict=True):
        given = {name: torch.zeros(1, size, dtype=torch.float64, device=completion.novelty.device)}
        made = completion.complete(given).embeddings.values()
        if not all(bool(torch.isfinite(part).all()) for part in made):
            return False
    return True


def _check_numbers(state: AdaptationState) -> None:
    if not isinstance(state.numbers, dict) or len(state.numbers) > _MOST_NUMBERS:
        raise StateMismatch("the state's numbers are no table, or too many")
    for name, value in state.numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise StateMismatch(f"{str(name)[:50]!r} is no finite number")
        if name in _COUNTS and not (value == int(value) and 0 <= value < _LARGEST_COUNT):
            raise StateMismatch(f"{name} is no natural number")


def _check_counters(state: AdaptationState) -> None:
    for count in (state.version, state.batches):
        if not isinstance(count, int) or count < 0:
            raise StateMismatch("a counter is no natural number")
