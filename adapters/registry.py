"""Methods by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

from pydantic import ValidationError

from adapters.base import BadSettings, Method, UnknownMethod
from adapters.brimpr import BriMPR, BriMPRSettings
from adapters.calmrl import CalMRL, CalMRLClassifier, CalMRLClassifierSettings, CalMRLSettings
from adapters.classification import ClassifyMethod
from adapters.deyo import DeYO, DeYOClassifier, DeYOClassifierSettings, DeYOSettings
from adapters.eata import EATA, EATAClassifier, EATAClassifierSettings, EATASettings
from adapters.read import READ, READClassifier, READClassifierSettings, READSettings
from adapters.rest_like import RESTLike, RESTLikeSettings
from adapters.sar import SAR, SARClassifier, SARClassifierSettings, SARSettings
from adapters.settings import MethodSettings
from adapters.shot import SHOT, SHOTSettings
from adapters.source import Source, SourceClassifier, SourceSettings
from adapters.t3a import T3A, T3ASettings
from adapters.tcr import TCR, TCRSettings
from adapters.tcr_untrain import TCRUntrain, TCRUntrainSettings
from adapters.tent import Tent, TentClassifier, TentClassifierSettings, TentSettings

Task = Literal["retrieve", "classify"]


@dataclass(frozen=True)
class Registered:
    settings: type[MethodSettings]
    build: Callable[[Any], Any]
    summary: str


METHODS: Mapping[str, Registered] = {
    "source": Registered(SourceSettings, Source, "The frozen model; never adapts."),
    "tcr": Registered(TCRSettings, TCR, "Norm parameters learn per batch (TCR, ICLR 2025)."),
    "tcr_untrain": Registered(
        TCRUntrainSettings, TCRUntrain, "Queries are rectified without training (TCR, Eq. 12-13)."
    ),
    "calmrl": Registered(
        CalMRLSettings, CalMRL, "Queries align with what was imputed for them (CalMRL, ICML 2026)."
    ),
    "tent": Registered(TentSettings, Tent, "Norm parameters lower the entropy (Tent, ICLR 2021)."),
    "eata": Registered(EATASettings, EATA, "Tent on sure, new queries (EATA, ICML 2022)."),
    "sar": Registered(SARSettings, SAR, "Tent on sure queries towards flat minima (SAR, ICLR 2023)."),
    "read": Registered(READSettings, READ, "Sure queries, balanced over the gallery (READ, ICLR 2024)."),
    "shot": Registered(
        SHOTSettings, SHOT, "Information maximisation and sure pseudo-labels (SHOT, ICML 2020)."
    ),
    "rest_like": Registered(
        RESTLikeSettings, RESTLike, "TCR, held where it goes against the source model (ours; not REST)."
    ),
    "deyo": Registered(DeYOSettings, DeYO, "Tent on queries that rest on shapes (DeYO, ICLR 2024)."),
}
"""Methods of retrieval."""

CLASSIFY_METHODS: Mapping[str, Registered] = {
    "source": Registered(SourceSettings, SourceClassifier, "The frozen model; never adapts."),
    "tent": Registered(
        TentClassifierSettings, TentClassifier, "Norm parameters lower the entropy (Tent, ICLR 2021)."
    ),
    "t3a": Registered(
        T3ASettings, T3A, "Class prototypes follow the samples; no gradient (T3A, NeurIPS 2021)."
    ),
    "eata": Registered(
        EATAClassifierSettings,
        EATAClassifier,
        "Tent on sure, new samples, held by Fisher values (EATA, ICML 2022).",
    ),
    "sar": Registered(
        SARClassifierSettings, SARClassifier, "Tent on sure samples towards flat minima (SAR, ICLR 2023)."
    ),
    "deyo": Registered(
        DeYOClassifierSettings, DeYOClassifier, "Tent on samples that rest on shapes (DeYO, ICLR 2024)."
    ),
    "read": Registered(
        READClassifierSettings,
        READClassifier,
        "The joint attention learns, reliably fused (READ, ICLR 2024).",
    ),
    "brimpr": Registered(
        BriMPRSettings, BriMPR, "Prompts realign each modality, then both (BriMPR, AAAI 2026)."
    ),
    "calmrl": Registered(
        CalMRLClassifierSettings,
        CalMRLClassifier,
        "Learns from samples that lack sound or picture, too (CalMRL, ICML 2026).",
    ),
}
"""Methods of classification."""

METHODS_OF: Mapping[Task, Mapping[str, Registered]] = {"retrieve": METHODS, "classify": CLASSIFY_METHODS}


PRESETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "tcr": {"attune": {"relative_temperature": 1.4, "learn_from_shift": 2.5, "shifted_learning_rate": 1e-3}},
}
"""Settings chosen by measurement (docs/methods.md), by method and name. Every method has `paper` too: its
defaults, which are the released code's."""

PAPER = "paper"


def make_method(
    name: str, settings: Mapping[str, Any] | None = None, *, model_temperature: float | None = None
) -> Method:
    """The retrieval method `name` with `settings` over its defaults, or over those of the `preset` they name.

    model_temperature: the encoder's, for settings relative to it. Raises UnknownMethod, BadSettings.
    """
    method: Method = _make(METHODS, name, settings)
    if isinstance(method, TCR):
        method = type(method)(method.settings, model_temperature=model_temperature)
    return method


def make_classify_method(name: str, settings: Mapping[str, Any] | None = None) -> ClassifyMethod:
    """The same for classification."""
    method: ClassifyMethod = _make(CLASSIFY_METHODS, name, settings)
    return method


def _make(methods: Mapping[str, Registered], name: str, settings: Mapping[str, Any] | None) -> Any:
    if name not in methods:
        raise UnknownMethod(
            f"unknown method {name!r}; there are {', '.join(methods)}{_nearest(name, methods)}"
        )
    registered = methods[name]
    settings = _over_preset(name, settings or {})
    known = registered.settings.model_fields
    for key in settings:
        if key not in known:
            raise BadSettings(
                f"{name} has no setting {key!r}; it has {', '.join(known) or 'none'}{_nearest(key, known)}"
            )
    try:
        return registered.build(registered.settings(**settings))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadSettings(f"{name}: {where}: {first['msg']}, got {first['input']!r}") from error


def _over_preset(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """`settings` without their `preset`, over what that stands for."""
    rest = dict(settings)
    preset = rest.pop("preset", PAPER)
    there = PRESETS.get(name, {})
    if preset != PAPER and preset not in there:
        raise BadSettings(f"{name} has no preset {preset!r}; it has {', '.join([PAPER, *there])}")
    return {**there.get(preset, {}), **rest}


def _nearest(name: str, names: Mapping[str, Any]) -> str:
    close = get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
