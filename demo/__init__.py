"""Small real models and the procedural data they were trained on: everything runs without downloads."""

from __future__ import annotations

from pathlib import Path

__all__ = ["CLASSIFIER", "WEIGHTS", "demo_classifier_path", "demo_encoder_path"]

WEIGHTS: Path = Path(__file__).resolve().parent / "weights" / "scenes-clip"
CLASSIFIER: Path = Path(__file__).resolve().parent / "weights" / "clips-cavmae"


def demo_encoder_path() -> Path:
    """Folder of the demo encoder in Hugging Face format.

    Raises: FileNotFoundError when the weights are missing from the installation.
    """
    if not (WEIGHTS / "model.safetensors").is_file():
        raise FileNotFoundError(
            f"no demo weights in {WEIGHTS}; train them with: python -m demo.train_scenes --out {WEIGHTS}"
        )
    return WEIGHTS


def demo_classifier_path() -> Path:
    """Folder of the demo's audio-video classifier, as `encoders.cav_mae.load_cav_mae` reads it.

    Raises: FileNotFoundError when the weights are missing from the installation.
    """
    if not (CLASSIFIER / "model.safetensors").is_file():
        raise FileNotFoundError(
            f"no demo weights in {CLASSIFIER}; train them with: python -m demo.train_clips --out {CLASSIFIER}"
        )
    return CLASSIFIER
