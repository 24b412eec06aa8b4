"""The demo gallery's vectors and previews, made ahead so that a fresh server starts at once.

`python -m demo.gallery` renders the scenes of split "gallery", encodes pictures and captions with the
demo encoder, and writes `gallery.safetensors` beside the weights. The file names the encoder's
fingerprint; with any other encoder it is of no use, and `load_vectors` says so by returning None.

The previews, `previews.safetensors`, are the pictures as WebP, one behind the other: `content` uint8
[bytes] and `ends` int64 [N], where each ends. They are of use with any encoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from demo import demo_encoder_path
from demo.scenes import Scene, render, scenes

if TYPE_CHECKING:
    from encoders.base import Encoder

COUNT = 500
_BATCH = 64
_QUALITY = 85
"""Of previews: the file stays below a megabyte."""


@dataclass(frozen=True)
class SceneVectors:
    """Unit rows float32 [N, D] of the first N gallery scenes: of their pictures and of their captions."""

    image: NDArray[np.float32]
    text: NDArray[np.float32]


def vectors_path() -> Path:
    return demo_encoder_path() / "gallery.safetensors"


def load_vectors(count: int, fingerprint: str) -> SceneVectors | None:
    """The first `count` scenes' vectors; None if the file has fewer or was made by another encoder."""
    from safetensors import safe_open

    if not vectors_path().is_file():
        return None
    with safe_open(vectors_path(), framework="numpy") as file:
        if (file.metadata() or {}).get("fingerprint") != fingerprint:
            return None
        image, text = file.get_tensor("image"), file.get_tensor("text")
    return SceneVectors(image[:count], text[:count]) if len(image) >= count else None


def previews_path() -> Path:
    return demo_encoder_path() / "previews.safetensors"


def load_previews(count: int) -> list[bytes] | None:
    """A WebP of each of the first `count` scenes; None if the file has fewer."""
    from safetensors import safe_open

    if not previews_path().is_file():
        return None
    with safe_open(previews_path(), framework="numpy") as file:
        ends = file.get_tensor("ends")[:count].tolist()
        content = file.get_tensor("content").tobytes()
    if len(ends) < count:
        return None
    return [content[start:end] for start, end in pairwise([0, *ends])]


def make_previews(made: list[Scene]) -> list[bytes]:
    """Render, and keep as a gallery does."""
    from encoders.previews import make_preview

    pictures = map(render, made)
    return [make_preview(picture, max(picture.size), quality=_QUALITY) for picture in pictures]


def make_vectors(encoder: Encoder, made: list[Scene]) -> SceneVectors:
    """Render and encode."""
    from encoders.preprocessing import pixels

    images, texts = encoder.towers["image"], encoder.towers["text"]
    rows: dict[str, list[NDArray[np.float32]]] = {"image": [], "text": []}
    for start in range(0, len(made), _BATCH):
        part = made[start : start + _BATCH]
        pictures = [pixels(render(scene), encoder.image_spec) for scene in part]
        rows["image"].append(images.encode(images.prepare(pictures)).numpy())
        rows["text"].append(texts.encode(texts.prepare([scene.caption for scene in part])).numpy())
    return SceneVectors(np.concatenate(rows["image"]), np.concatenate(rows["text"]))


def save_previews(previews: list[bytes]) -> None:
    from safetensors.numpy import save_file

    content = np.frombuffer(b"".join(previews), dtype=np.uint8)
    ends = np.cumsum([len(preview) for preview in previews], dtype=np.int64)
    save_file({"content": content, "ends": ends}, previews_path())


def main() -> None:
    from safetensors.numpy import save_file

    from encoders.load import load_encoder

    encoder = load_encoder(str(demo_encoder_path()), device="cpu")
    shown = scenes("gallery", COUNT)
    made = make_vectors(encoder, shown)
    save_file(
        {"image": made.image, "text": made.text},
        vectors_path(),
        metadata={"fingerprint": encoder.fingerprint},
    )
    print(f"{vectors_path()}: {COUNT} scenes, encoder {encoder.fingerprint[:12]}")
    save_previews(make_previews(shown))
    print(f"{previews_path()}: {previews_path().stat().st_size} bytes")


if __name__ == "__main__":
    main()
