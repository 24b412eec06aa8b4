"""Checkpoints as they are released -> a folder that is served."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from encoders.base import EncoderError
from encoders.cav_mae import CavMaeConfig, fresh_weights, load_cav_mae
from encoders.convert_cav_mae import main, read_labels
from tests.encoders.av import CONFIG

LABELS = ["playing cello", "dog, barking", "rain"]
TABLE = 'index,mid,display_name\n0,/m/1,playing cello\n2,/m/3,rain\n1,/m/2,"dog, barking"\n'


def weights() -> dict[str, Tensor]:
    return fresh_weights(CONFIG, seed=5)


def released(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """As data-parallel training saves it, with q, k and v beside the joint block's qkv."""
    for kind in ("weight", "bias"):
        for part, rows in zip("qkv", found[f"blocks_u.0.attn.qkv.{kind}"].chunk(3), strict=True):
            found[f"blocks_u.0.attn.{part}.{kind}"] = rows.clone()
    return {f"module.{name}": value for name, value in found.items()}


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., int]:
    (tmp_path / "labels.txt").write_text("\n".join(LABELS) + "\n")

    def convert(content: Any, *more: str) -> int:
        torch.save(content, tmp_path / "model.pth")
        given = [str(tmp_path / "model.pth"), str(tmp_path / "out"), "--labels", str(tmp_path / "labels.txt")]
        return main([*given, "--heads", "2", "--mel-bins", "32", *more])

    return convert


def assert_converted(folder: Path) -> None:
    model = load_cav_mae(folder, device="cpu")
    assert model.labels == tuple(LABELS)
    expected = weights()
    assert set(model.weights) == set(expected)
    assert all(torch.equal(value, expected[name]) for name, value in model.weights.items())
    for size in ("width", "heads", "depth", "joint_depth", "mlp_ratio", "patch", "audio", "image"):
        assert getattr(model.config, size) == getattr(CONFIG, size), size


def test_a_released_checkpoint_becomes_a_folder_that_loads(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(released(weights())) == 0
    assert_converted(tmp_path / "out")
    told = capsys.readouterr().out
    assert told.count("the same as its rows of qkv") == 6
    assert "DIFFERS" not in told
    assert "3 labels, width 16, 3 + 1 blocks, spectrograms of 64 x 32, pictures of 32 x 32" in told


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_a_state_dict_within_a_checkpoint_is_found(run: Callable[..., int], tmp_path: Path, key: str) -> None:
    assert run({key: weights(), "epoch": 3}) == 0
    assert_converted(tmp_path / "out")


def test_separate_queries_that_differ_are_left_out_and_said_so(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = released(weights())
    content["module.blocks_u.0.attn.q.weight"] += 1
    assert run(content) == 0
    assert_converted(tmp_path / "out")
    assert "left out blocks_u.0.attn.q.weight, which DIFFERS from its rows of qkv" in capsys.readouterr().out


def test_half_precision_becomes_single(run: Callable[..., int], tmp_path: Path) -> None:
    assert run({name: value.half() for name, value in weights().items()}) == 0
    model = load_cav_mae(tmp_path / "out", device="cpu")
    name = "blocks_a.0.attn.qkv.weight"
    assert torch.equal(model.weights[name], weights()[name].half().float())


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run({**weights(), "bomb": Bomb(tmp_path / "exploded")}) == 2
    assert "could run code" in capsys.readouterr().err
    assert not (tmp_path / "exploded").exists()
    assert not (tmp_path / "out").exists()


def without(name: str) -> dict[str, Tensor]:
    found = weights()
    del found[name]
    return found


def changed(name: str, value: Tensor) -> dict[str, Tensor]:
    return {**weights(), name: value}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({}, "holds no state dict"),
        ([torch.zeros(2)], "holds no state dict"),
        ({"epoch": 3}, "no weight: epoch"),
        (without("mlp_head.1.weight"), "lacks mlp_head.1.weight"),
        (without("blocks_v.1.mlp.fc1.weight"), "missing ['blocks_v.1.mlp.fc1.weight']"),
        (changed("decoder.weight", torch.zeros(2)), "unknown ['decoder.weight']"),
        (changed("module.norm.weight", torch.zeros(16)), "there twice"),
        (changed("norm.weight", torch.zeros(15)), "norm.weight has the shape (15,)"),
        (changed("norm.weight", torch.full((16,), torch.nan)), "no finite numbers"),
        (changed("patch_embed_a.proj.weight", torch.zeros(16)), "not that of a CAV-MAE"),
        (changed("pos_embed_a", torch.zeros(1, 7, 16)), "7 audio tokens"),
        (changed("pos_embed_v", torch.zeros(1, 5, 16)), "no square"),
        (changed("mlp_head.1.weight", torch.zeros(4, 16)), "3 labels, the model tells 4 classes"),
    ],
)
def test_what_is_no_whole_classifier_is_refused_with_the_reason(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], content: Any, said: str
) -> None:
    assert run(content) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_other_heads_than_the_width_allows_are_refused(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(weights(), "--heads", "3") == 2
    assert "sizes" in capsys.readouterr().err


def test_files_that_are_no_checkpoint_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "labels.txt").write_text("\n".join(LABELS))
    for content in (b"", b"no checkpoint", b"PK\x03\x04" + bytes(64)):
        (tmp_path / "model.pth").write_bytes(content)
        files = [str(tmp_path / name) for name in ("model.pth", "out")]
        assert main([*files, "--labels", str(tmp_path / "labels.txt")]) == 2
        assert capsys.readouterr().err.strip()
    assert main([str(tmp_path / "nothing"), files[1], "--labels", str(tmp_path / "labels.txt")]) == 2
    assert main([files[0], files[1], "--labels", str(tmp_path / "nothing")]) == 2


def test_labels_come_one_a_line_or_from_the_table_of_the_data_sets(tmp_path: Path) -> None:
    lines, table = tmp_path / "labels.txt", tmp_path / "class_labels_indices.csv"
    lines.write_text("playing cello\ndog, barking \n\nrain\n")
    table.write_text(TABLE)
    assert read_labels(lines) == read_labels(table) == LABELS


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no label"),
        ("index,mid,display_name\n0,/m/1,a\n2,/m/2,b\n", "indices are not 0 to 1"),
        ("index,mid,display_name\n0,/m/1,a\n0,/m/2,b\n", "indices are not 0 to 1"),
        ("index,mid,display_name\n0\n", "line 2"),
        ("index,mid,display_name\nx,/m/1,a\n", "line 2"),
    ],
)
def test_damaged_labels_are_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(EncoderError, match=said):
        read_labels(tmp_path / "labels.csv")


def test_the_defaults_are_the_released_sizes() -> None:
    """8 x 64 audio and 14 x 14 video tokens."""
    config = CavMaeConfig(labels=("a", "b"))
    assert (config.tokens("audio"), config.tokens("video")) == (512, 196)
