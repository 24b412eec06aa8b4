"""The replay, against goldens that a plain straight-line TCR writes here, and against the shared ones."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.replay.__main__ import main
from benchmarks.replay.golden import GoldenError, Tolerance, load_golden
from benchmarks.replay.run import replay_file, replay_folder

CONSTANTS: dict[str, Any] = {
    "batch_size": 8,
    "ln_eps": 1e-4,
    "dtype": "float64",
    "trainable": ["ln1.weight", "ln1.bias", "ln2.weight", "ln2.bias"],
    "method": "tcr",
    "lr": 0.004,
    "weight_decay": 0.02,
    "steps_per_batch": 2,
    "temperature": 0.15,
    "t": 0.4,
    "con_ratio": 0.4,
    "queue_capacity": 8,
    "queue_update_batches": 4,
    "em_eps": 0.01,
}
"""Far from the published ones, so that nothing can be hard-coded."""


class Plain(nn.Module):
    """The goldens' encoder, written with torch's own layers."""

    def __init__(self, *, epsilon: float) -> None:
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(5, eps=epsilon), nn.LayerNorm(9, eps=epsilon)
        self.fc1, self.fc2 = nn.Linear(5, 9), nn.Linear(9, 6, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.fc2(self.ln2(nn.functional.gelu(self.fc1(self.ln1(x)))))
        return hidden / hidden.norm(dim=1, keepdim=True)


def entropy(logits: Tensor) -> Tensor:
    return torch.distributions.Categorical(logits=logits).entropy()


def plain_encoder(c: dict[str, Any]) -> Plain:
    torch.manual_seed(3)
    encoder = Plain(epsilon=c["ln_eps"]).float().double()
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad_(name in c["trainable"])
    return encoder


def plain_inputs() -> tuple[Tensor, Tensor]:
    """Queries [45, 5] that the last batch of 8 does not fill, and a gallery [18, 6]."""
    torch.manual_seed(4)
    queries = (torch.randn(45, 5) + torch.linspace(-1, 1, 5)).float()
    gallery = nn.functional.normalize(torch.randn(18, 6, dtype=torch.float64), dim=1)
    return queries, gallery


def refresh(
    queue: list[tuple[float, Tensor, Tensor, float]], q: Tensor, c: Tensor, k: dict[str, Any]
) -> None:
    """The queue rule as lists of tuples."""
    likeness = 2 * (q - c).norm(dim=1) - (q - q.mean(0)).norm(dim=1) - (c - c.mean(0)).norm(dim=1)
    order = sorted(range(len(q)), key=lambda i: float(likeness[i]))[: int(k["con_ratio"] * len(q))]
    entropies = entropy(q @ c.T / k["temperature"])
    queue.extend((float(likeness[i]), q[i].clone(), c[i].clone(), float(entropies[i])) for i in order)
    if len(queue) >= k["queue_capacity"]:
        queue.sort(key=lambda entry: entry[0])
        del queue[k["queue_capacity"] :]


def gap(a: Tensor, b: Tensor) -> Tensor:
    return (a.mean(0) - b.mean(0)).norm()


def tcr_golden(c: dict[str, Any]) -> dict[str, np.ndarray]:
    """TCR (methods.md 2.7) without any of this project's code."""
    encoder, (queries, gallery) = plain_encoder(c), plain_inputs()
    arrays = {f"init.{name}": value.detach().float().numpy() for name, value in encoder.named_parameters()}
    arrays |= {"queries": queries.numpy(), "gallery": gallery.numpy()}
    trained = {name: value for name, value in encoder.named_parameters() if value.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=c["lr"], weight_decay=c["weight_decay"])
    queue: list[tuple[float, Tensor, Tensor, float]] = []
    rows: dict[str, list[Any]] = {}
    for number, batch in enumerate(queries.double().split(c["batch_size"])):
        steps: dict[str, list[float]] = {}
        for step in range(c["steps_per_batch"]):
            q = encoder(batch)
            scores = q @ gallery.T
            z = gallery[scores.argmax(1)].detach()
            if step == 0 and number < c["queue_update_batches"]:
                refresh(queue, q.detach(), z, c)
            margin = gap(torch.stack([e[1] for e in queue]), torch.stack([e[2] for e in queue]))
            em = max(e[3] for e in queue)
            h = entropy(q @ z.T / c["temperature"])
            keep = h.detach() <= em
            weight = (1 - h.detach() / (em + c["em_eps"])).clamp(min=0)
            rem = (h * weight)[keep].mean() if keep.any() else torch.zeros((), dtype=torch.float64)
            uni = torch.exp(-c["t"] * (q - q.mean(0)).norm(dim=1)).mean()
            emg = (gap(q, z) - margin) ** 2
            optimizer.zero_grad()
            (rem + uni + emg).backward()
            if number == step == 0:
                arrays |= {
                    f"grad0.{n}": p.grad.numpy().copy() for n, p in trained.items() if p.grad is not None
                }
            optimizer.step()
            for name, value in (("REM", rem), ("UNI", uni), ("EMG", emg)):
                steps.setdefault(f"loss_{name}", []).append(float(value.detach()))
            steps.setdefault("margin", []).append(float(margin))
            steps.setdefault("em", []).append(em)
            steps.setdefault("frac", []).append(float(keep.double().mean()))
        rows.setdefault("outputs", []).append(scores.detach())
        rows.setdefault("queue_len", []).append(len(queue))
        likeness = [e[0] for e in queue]
        rows.setdefault("queue_SI", []).append(likeness + [np.nan] * (12 - len(likeness)))
        for name, values in steps.items():
            rows.setdefault(name, []).append(values)
        for name, value in trained.items():
            rows.setdefault(f"params.{name}", []).append(value.detach().clone().numpy())
    arrays["outputs"] = torch.cat(rows.pop("outputs")).numpy()
    return arrays | {name: np.asarray(values) for name, values in rows.items()}


def untrain_golden(c: dict[str, Any]) -> dict[str, np.ndarray]:
    """TCR without training (methods.md 2.8) without any of this project's code."""
    encoder, (queries, gallery) = plain_encoder(c), plain_inputs()
    arrays = {f"init.{name}": value.detach().float().numpy() for name, value in encoder.named_parameters()}
    arrays |= {"queries": queries.numpy(), "gallery": gallery.numpy()}
    queue: list[tuple[float, Tensor, Tensor, float]] = []
    outputs, raw, margins = [], [], []
    for number, batch in enumerate(queries.double().split(c["batch_size"])):
        q = encoder(batch).detach()
        z = gallery[(q @ gallery.T).argmax(1)]
        if number < c["queue_update_batches"]:
            refresh(queue, q, z, c)
        margin = gap(torch.stack([e[1] for e in queue]), torch.stack([e[2] for e in queue]))
        mu = q.mean(0)
        moved = mu + c["scale"] * (q - mu) + (1 - margin / gap(q, z)) * (z.mean(0) - mu)
        outputs.append(moved / moved.norm(dim=1, keepdim=True) @ gallery.T)
        raw.append(q)
        margins.append(float(margin))
    return arrays | {
        "outputs": torch.cat(outputs).numpy(),
        "raw_features": torch.cat(raw).numpy(),
        "margin": np.asarray(margins),
    }


def write(
    folder: Path, name: str, values: dict[str, np.ndarray], constants: dict[str, Any], **more: Any
) -> Path:
    np.savez(folder / f"{name}.npz", **values)  # type: ignore[arg-type]
    digest = hashlib.sha256((folder / f"{name}.npz").read_bytes()).hexdigest()
    sidecar = {
        "name": name,
        "purpose": "written by a test",
        "constants": constants,
        "notes": [],
        "arrays": {key: {"shape": list(value.shape)} for key, value in values.items()},
        "sha256_npz": digest,
        **more,
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(sidecar))
    return path


@pytest.fixture(scope="module")
def recorded() -> dict[str, np.ndarray]:
    return tcr_golden(CONSTANTS)


def test_a_plain_tcr_with_other_constants_is_reproduced(
    tmp_path: Path, recorded: dict[str, np.ndarray]
) -> None:
    result = replay_file(write(tmp_path, "retr_tcr_other", recorded, CONSTANTS))
    assert result.verdict == "ok", result
    assert result.worst is not None
    assert result.worst.relative < 1e-7
    compared = {error.array for error in result.arrays}
    assert compared == {name for name in recorded if not name.startswith(("init.", "queries", "gallery"))}
    assert result.not_compared == ()


def test_the_plain_stream_reaches_the_rules_it_is_meant_to_test(recorded: dict[str, np.ndarray]) -> None:
    """The memory fills, sorts and freezes; some queries are left out; the last batch is short."""
    assert recorded["queue_len"].tolist() == [3, 6, 8, 8, 8, 8]
    assert (recorded["frac"] < 1).any()
    assert (recorded["frac"] > 0).any()
    assert len(recorded["queries"]) % CONSTANTS["batch_size"] != 0


def test_plain_rectification_is_reproduced(tmp_path: Path) -> None:
    constants = {**CONSTANTS, "method": "tcr_untrain", "scale": 1.7}
    result = replay_file(write(tmp_path, "retr_tcr_untrain", untrain_golden(constants), constants))
    assert result.verdict == "ok", result
    assert {error.array for error in result.arrays} == {"outputs", "raw_features", "margin"}


@pytest.mark.parametrize(
    ("constant", "value"),
    [
        ("lr", 0.0041),
        ("weight_decay", 0.03),
        ("steps_per_batch", 1),
        ("temperature", 0.151),
        ("t", 0.41),
        ("con_ratio", 0.3),
        ("queue_capacity", 7),
        ("queue_update_batches", 3),
        ("em_eps", 0.02),
        ("ln_eps", 1e-3),
        ("batch_size", 9),
    ],
)
def test_every_constant_of_the_sidecar_matters(
    tmp_path: Path, recorded: dict[str, np.ndarray], constant: str, value: float
) -> None:
    result = replay_file(write(tmp_path, "g", recorded, {**CONSTANTS, constant: value}))
    assert result.failed


@pytest.mark.parametrize("array", ["outputs", "loss_EMG", "params.ln2.bias", "queue_SI", "grad0.ln1.weight"])
def test_a_small_error_in_any_array_is_a_miss_that_names_it(
    tmp_path: Path, recorded: dict[str, np.ndarray], array: str
) -> None:
    altered = {**recorded, array: recorded[array] + 1e-5}
    result = replay_file(write(tmp_path, "g", altered, CONSTANTS))
    assert result.verdict == "miss"
    assert result.worst is not None
    assert result.worst.array == array
    assert result.worst.absolute == pytest.approx(1e-5, rel=1e-3)


def test_a_value_where_nothing_was_recorded_is_a_miss(
    tmp_path: Path, recorded: dict[str, np.ndarray]
) -> None:
    padding = recorded["queue_SI"].copy()
    padding[0, -1] = 0.0
    result = replay_file(write(tmp_path, "g", {**recorded, "queue_SI": padding}, CONSTANTS))
    assert result.verdict == "miss"


def test_an_altered_file_is_broken(tmp_path: Path, recorded: dict[str, np.ndarray]) -> None:
    path = write(tmp_path, "g", recorded, CONSTANTS)
    np.savez(tmp_path / "g.npz", **{**recorded, "outputs": recorded["outputs"] * 2})  # type: ignore[arg-type]
    result = replay_file(path)
    assert result.verdict == "broken"
    assert "altered" in result.reason


def test_missing_files_and_arrays_are_broken(tmp_path: Path, recorded: dict[str, np.ndarray]) -> None:
    path = write(tmp_path, "g", recorded, CONSTANTS, arrays={"outputs": {}, "forgotten": {}})
    assert replay_file(path).reason == "the npz lacks forgotten"
    (tmp_path / "g.npz").unlink()
    assert replay_file(path).verdict == "broken"
    np.savez(tmp_path / "alone.npz", a=np.zeros(2))
    alone = {result.file: result for result in replay_folder(tmp_path)}["alone"]
    assert alone.verdict == "broken"


def test_an_unknown_method_is_named_and_not_failed(tmp_path: Path, recorded: dict[str, np.ndarray]) -> None:
    result = replay_file(write(tmp_path, "g", recorded, {**CONSTANTS, "method": "later"}))
    assert (result.verdict, result.failed, result.reason) == ("not implemented", False, "method later")


def test_what_no_replayer_knows_is_named(tmp_path: Path) -> None:
    result = replay_file(write(tmp_path, "g", {"a": np.zeros(3)}, {}))
    assert result.verdict == "not implemented"


def test_the_tolerance_is_the_sidecars(tmp_path: Path) -> None:
    for text, constants, expected in (
        ("(float32; compare with rtol 2e-4/atol 2e-5)", {}, Tolerance(2e-4, 2e-5)),
        ("", {"dtype": "float32"}, Tolerance(2e-4, 2e-5)),
        ("", {"dtype": "float64"}, Tolerance(1e-6, 1e-9)),
        ("", {}, Tolerance(1e-6, 1e-9)),
    ):
        path = write(tmp_path, "g", {"a": np.zeros(1)}, constants, purpose=text)
        assert load_golden(path).tolerance() == expected


def test_the_command_fails_exactly_when_a_golden_misses(
    tmp_path: Path, recorded: dict[str, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, "right", recorded, CONSTANTS)
    write(tmp_path, "later", recorded, {**CONSTANTS, "method": "later"})
    out = tmp_path / "out"
    out.mkdir()
    assert main([str(tmp_path), "--json", str(out / "r.json")]) == 0
    assert "1 of 1 replayed goldens hold" in capsys.readouterr().out
    assert {entry["file"]: entry["verdict"] for entry in json.loads((out / "r.json").read_text())} == {
        "right": "ok",
        "later": "not implemented",
    }
    write(tmp_path, "wrong", {**recorded, "outputs": recorded["outputs"] + 1}, CONSTANTS)
    assert main([str(tmp_path)]) == 1
    text = capsys.readouterr().out
    assert "miss" in text
    assert "later (method later)" in text


def test_a_folder_without_goldens_is_said_to_be_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path)]) == 2
    assert "holds no golden" in capsys.readouterr().out.replace("\n", " ")
    with pytest.raises(GoldenError, match="is no folder"):
        replay_folder(tmp_path / "nowhere")


def test_the_shared_goldens_of_what_is_implemented_hold(goldens: Path) -> None:
    results = {result.file: result for result in replay_folder(goldens)}
    assert [result for result in results.values() if result.failed] == []
    replayed = {name for name, result in results.items() if result.verdict == "ok"}
    assert replayed >= {
        "clip_tcr_i2t",
        "clip_tcr_t2i",
        "retr_metrics",
        "retr_tcr_steps1",
        "retr_tcr_steps3",
        "retr_tcr_untrain",
        "tcr_losses",
    }
