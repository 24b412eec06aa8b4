"""A small real encoder and the procedural scenes it was trained on: everything runs without downloads."""

from __future__ import annotations

from pathlib import Path

__all__ = ["WEIGHTS", "demo_encoder_path"]

WEIGHTS: Path = Path(__file__).resolve().parent / "weights" / "scenes-clip"


def demo_encoder_path() -> Path:
    """Folder of the demo encoder in Hugging Face format.

    Raises: FileNotFoundError when the weights are missing from the installation.
    """
    if not (WEIGHTS / "model.safetensors").is_file():
        raise FileNotFoundError(
            f"no demo weights in {WEIGHTS}; train them with: python -m demo.train_scenes --out {WEIGHTS}"
        )
    return WEIGHTS
