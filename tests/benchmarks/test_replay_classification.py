"""The replay of recorded classification streams: it holds, and it would notice."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.replay.run import Replayed, replay_file, replay_folder

RECORDED = {
    "av_deyo",
    "av_deyo_low",
    "av_eata",
    "av_eata_wide",
    "av_forward",
    "av_read",
    "av_sar",
    "av_source",
    "av_t3a_k2",
    "av_t3a_k20",
    "av_tent",
}


def test_every_recorded_stream_of_classification_holds_with_nothing_left_out(goldens: Path) -> None:
    results = {result.file: result for result in replay_folder(goldens) if result.file.startswith("av_")}
    assert [result for result in results.values() if result.failed] == []
    assert {name for name, result in results.items() if result.verdict == "ok"} >= RECORDED
    for name in RECORDED:
        assert results[name].not_compared == (), name


def altered(
    goldens: Path,
    folder: Path,
    name: str,
    *,
    constants: dict[str, Any] | None = None,
    array: tuple[str, float] | None = None,
) -> Replayed:
    """Replay a copy with other constants, or with something added to an array."""
    for beside in ("av_weights", "av_inputs"):
        for kind in ("json", "npz"):
            shutil.copy(goldens / f"{beside}.{kind}", folder)
    document = json.loads((goldens / f"{name}.json").read_text())
    document["constants"] |= constants or {}
    with np.load(goldens / f"{name}.npz") as archive:
        arrays = dict(archive)
    if array is not None:
        arrays[array[0]] = arrays[array[0]] + array[1]
    np.savez(folder / f"{name}.npz", **arrays)
    document["sha256_npz"] = hashlib.sha256((folder / f"{name}.npz").read_bytes()).hexdigest()
    path = folder / f"{name}.json"
    path.write_text(json.dumps(document))
    return replay_file(path)


def test_an_unaltered_copy_holds(goldens: Path, tmp_path: Path) -> None:
    assert altered(goldens, tmp_path, "av_tent").verdict == "ok"


@pytest.mark.parametrize(
    ("name", "constants"),
    [
        ("av_tent", {"lr": 2e-4}),
        ("av_tent", {"batch_sizes": [8, 8, 13]}),
        ("av_tent", {"heads": 2}),
        ("av_eata", {"e_margin": 0.5}),
        ("av_eata", {"d_margin": 0.8}),
        ("av_eata_wide", {"fisher_alpha": 1.0}),
        ("av_eata_wide", {"fisher_batches": "source samples 0..7"}),
        ("av_sar", {"margin_e0": 0.5}),
        ("av_sar", {"rho": 0.1}),
        ("av_sar", {"reset_constant": 0.65}),
        ("av_deyo", {"plpd_threshold": 0.02}),
        ("av_deyo_low", {"margin_e0": 0.5}),
        ("av_deyo_low", {"deyo_margin": 0.5}),
        ("av_deyo_low", {"patch_len": 2}),
        ("av_read", {"lr": 2e-4}),
        ("av_t3a_k20", {"filter_K": 2}),
        ("av_forward", {"ln_eps": 1e-6}),
    ],
)
def test_every_constant_of_the_sidecar_matters(
    goldens: Path, tmp_path: Path, name: str, constants: dict[str, Any]
) -> None:
    assert altered(goldens, tmp_path, name, constants=constants).failed


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("av_tent", "outputs"),
        ("av_tent", "post_reset_outputs"),
        ("av_tent", "loss"),
        ("av_eata", "fisher.norm.weight"),
        ("av_eata", "n_selected2"),
        ("av_sar", "ema"),
        ("av_deyo", "n_selected1"),
        ("av_read", "params.blocks_u.0.attn.k.weight"),
        ("av_t3a_k2", "outputs"),
        ("av_forward", "joint_attention"),
        ("av_forward", "P2L4.logits_amv"),
        ("av_forward", "sincos_768_8x64"),
    ],
)
def test_a_small_error_in_any_array_is_a_miss_that_names_it(
    goldens: Path, tmp_path: Path, name: str, array: str
) -> None:
    result = altered(goldens, tmp_path, name, array=(array, 1e-4))
    assert result.verdict == "miss"
    assert array in [error.array for error in result.arrays if error.relative > 1e-6]
