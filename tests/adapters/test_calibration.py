from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor

from adapters.calibration import (
    BadCalibration,
    Calibration,
    digest_of_calibration,
    for_classifier,
    for_encoder,
    load_calibration,
    load_encoder_calibration,
    pack_calibration,
    save_calibration,
    unpack_calibration,
)
from adapters.completion import Completion, fit_completion, tensors_of_completion
from encoders.cav_mae import CavMae
from tests.adapters.classifier import CONFIG, classifier, run_to_end, small_weights


def encoder_completion(size: int = 8) -> Completion:
    random = torch.Generator().manual_seed(0)
    shared = torch.randn(60, 3, generator=random)
    parts = {
        name: F.normalize(
            shared @ torch.randn(3, size, generator=random) + 0.3 * torch.randn(60, size, generator=random)
        )
        for name in ("image", "text")
    }
    return run_to_end(fit_completion(parts, unit=True, latent=3, about={"gallery": "shoes"}))


def of_encoder() -> Calibration:
    return Calibration("abc", completion=encoder_completion(), about={"seed": 0})


def of_classifier() -> Calibration:
    calibration = classifier().calibration
    assert isinstance(calibration, Calibration)
    return calibration


def taken_apart(data: bytes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from safetensors.torch import load

    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["attune"]), load(data)


def put_together(document: Any, tensors: dict[str, Tensor]) -> bytes:
    return save(tensors, metadata={"attune": json.dumps(document)})


@pytest.mark.parametrize("make", [of_encoder, of_classifier])
def test_file_and_back_is_the_same_and_so_are_its_bytes(make: Callable[[], Calibration]) -> None:
    calibration = make()
    data = pack_calibration(calibration)
    back = unpack_calibration(data)
    assert back.holds == calibration.holds
    assert back.about == calibration.about
    assert pack_calibration(back) == data
    assert digest_of_calibration(data) == digest_of_calibration(pack_calibration(make()))
    assert len(digest_of_calibration(data)) == 16
    assert back.completion is not None
    assert calibration.completion is not None
    mine = tensors_of_completion(calibration.completion)
    for name, value in tensors_of_completion(back.completion).items():
        assert torch.equal(value, mine[name]), name
    assert back.completion.about == calibration.completion.about


def test_classifiers_file_loads_for_its_model_in_the_models_type(tmp_path: Path) -> None:
    save_calibration(of_classifier(), tmp_path / "c.safetensors")
    model = CavMae(CONFIG, small_weights(), dtype=torch.float32)
    loaded = load_calibration(tmp_path / "c.safetensors", model)
    assert loaded.holds == {"statistics", "fisher", "completion"}
    assert loaded.statistics is not None
    assert loaded.statistics.audio.mean.dtype == torch.float32
    assert loaded.completion is not None
    assert loaded.completion.model.loadings[0].mean.dtype == torch.float64
    assert not list(tmp_path.glob("*.part"))


def test_file_from_before_completions_still_loads() -> None:
    document, tensors = taken_apart(pack_calibration(of_classifier()))
    del document["completion"]
    old = {name: value for name, value in tensors.items() if not name.startswith("latent/")}
    loaded = for_classifier(unpack_calibration(put_together(document, old)), classifier())
    assert loaded.holds == {"statistics", "fisher"}


def test_encoders_file_is_for_its_encoder_only(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    save_calibration(of_encoder(), path)
    assert load_encoder_calibration(path, fingerprint="abc", dimension=8).completion is not None
    with pytest.raises(BadCalibration, match="measured of model abc, this one is xyz"):
        load_encoder_calibration(path, fingerprint="xyz", dimension=8)
    with pytest.raises(BadCalibration, match="of 8 features, the model has 16"):
        load_encoder_calibration(path, fingerprint="abc", dimension=16)
    with pytest.raises(BadCalibration, match="could not be read"):
        load_encoder_calibration(tmp_path / "none", fingerprint="abc", dimension=8)


def test_one_models_calibration_is_not_the_others() -> None:
    model = classifier()
    mistaken = replace(of_encoder(), fingerprint=model.fingerprint)
    with pytest.raises(BadCalibration, match="its completion is one of image, text"):
        for_classifier(mistaken, model)
    with pytest.raises(BadCalibration, match="a completion and nothing else"):
        for_encoder(of_classifier(), fingerprint=model.fingerprint, dimension=16)
    own = replace(of_classifier(), statistics=None, fisher=None)
    with pytest.raises(BadCalibration, match="its completion is one of audio, video, fused"):
        for_encoder(own, fingerprint=model.fingerprint, dimension=16)
    with pytest.raises(BadCalibration, match="measure again"):
        for_classifier(replace(of_classifier(), fingerprint="other"), model)


def test_statistics_and_fisher_values_have_to_fit_the_model() -> None:
    document, tensors = taken_apart(pack_calibration(of_classifier()))
    short = {
        name: value[:, :-1] if name.startswith("statistics/") else value for name, value in tensors.items()
    }
    strange = tensors | {"fisher/nothing": torch.zeros(3)}
    for changed, words in ((short, "statistics of audio"), (strange, "Fisher values of nothing")):
        loaded = unpack_calibration(put_together(document, {n: v.contiguous() for n, v in changed.items()}))
        with pytest.raises(BadCalibration, match=words):
            for_classifier(loaded, classifier())


WHOLE = pack_calibration(of_encoder())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        WHOLE[:7],
        WHOLE[:100],
        WHOLE[:-1],
        struct.pack("<Q", 1 << 62) + WHOLE[8:],
        struct.pack("<Q", 40) + b'{"__metadata__": {"attune": ' + b"[" * 20,
        save({"a": torch.zeros(1)}, metadata={"attune": "[" * 100_000}),
        save({"a": torch.zeros(1)}, metadata={"attune": "[]"}),
        save({"a": torch.zeros(1)}, metadata={"other": "{}"}),
        save({"a": torch.zeros(1)}),
    ],
    ids=range(11),
)
def test_bytes_that_are_no_calibration_are_refused(data: bytes) -> None:
    with pytest.raises(BadCalibration):
        unpack_calibration(data)


CHANGES: dict[str, Callable[[dict[str, Any], dict[str, Tensor]], object]] = {
    "format": lambda d, t: d.update(format_version=2),
    "no fingerprint": lambda d, t: d.pop("fingerprint"),
    "fingerprint is a number": lambda d, t: d.update(fingerprint=7),
    "facts are a list": lambda d, t: d.update(about=[]),
    "facts are not finite": lambda d, t: d.update(about={"a": float("inf")}),
    "facts without end": lambda d, t: d.update(about={"a": "x" * 200_000}),
    "unknown tensor": lambda d, t: t.update(other=torch.zeros(1)),
    "whole numbers": lambda d, t: t.update({"fisher/a": torch.zeros(1, dtype=torch.int64)}),
    "not finite": lambda d, t: t.update({"fisher/a": torch.tensor([torch.nan])}),
    "no description": lambda d, t: d.pop("completion"),
    "description is a text": lambda d, t: d.update(completion="x"),
    "unit is a number": lambda d, t: d["completion"].update(unit=1),
    "one modality": lambda d, t: d["completion"].update(modalities=["image"]),
    "a modality twice": lambda d, t: d["completion"].update(modalities=["image", "image"]),
    "modality is a path": lambda d, t: d["completion"].update(modalities=["image", "../text"]),
    "modality is a number": lambda d, t: d["completion"].update(modalities=["image", 1]),
    "another modality": lambda d, t: d["completion"].update(modalities=["image", "audio"]),
    "part is missing": lambda d, t: t.pop("latent/text/mean"),
    "loading is misshapen": lambda d, t: t.update(
        {"latent/text/weight": t["latent/text/weight"][:, :2].clone()}
    ),
    "loading is not finite": lambda d, t: t["latent/text/weight"].fill_(torch.nan),
    "loading is huge": lambda d, t: t["latent/text/weight"].fill_(1e300),
    "noise is negative": lambda d, t: t["latent/text/noise"].fill_(-1),
    "sums are no covariance": lambda d, t: t["latent/text/sum.bb"].fill_(0).sub_(torch.eye(3)),
    "latent is too large": lambda d, t: t.update(
        {f"latent/{name}/weight": torch.zeros(8, 1025, dtype=torch.float64) for name in ("image", "text")}
    ),
    "too many tensors": lambda d, t: t.update({f"fisher/{i}": torch.zeros(1) for i in range(10_001)}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_calibration_that_somebody_changed_is_refused(change: str) -> None:
    document, tensors = taken_apart(WHOLE)
    CHANGES[change](document, tensors)
    with pytest.raises(BadCalibration):
        unpack_calibration(put_together(document, tensors))


def test_a_file_beyond_the_limit_is_not_even_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapters.calibration._MOST_BYTES", len(WHOLE) - 1)
    with pytest.raises(BadCalibration, match="at most"):
        unpack_calibration(WHOLE)


def test_a_count_of_batches_that_no_number_holds_is_cut() -> None:
    document, tensors = taken_apart(WHOLE)
    document["completion"]["batches"] = 10**400
    completion = unpack_calibration(put_together(document, tensors)).completion
    assert completion is not None
    assert float(completion.batches) == 2**53
