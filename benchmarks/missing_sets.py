"""What benchmarks.missing measures on: embeddings of training and test samples, and what is asked of them.

scenes           pictures and captions of demo/scenes.py in the demo encoder's space
flickr8k         photographs and their first captions
flickr8k-views   photographs and three captions each, as four modalities of one space
clips, digits    sound, picture and their fused feature inside an audio-video classifier

A query is never the item itself. Its text is another caption of the item (of scenes: the same said in other
words), its picture is the scene drawn anew, or the middle of the photograph mirrored.

Letters: N training samples, n test samples, d features, C classes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor

from adapters.two_stream_completion import representations
from benchmarks.av_data import AVData, check_labels, load_av_data, pair_digits
from benchmarks.av_digits import as_samples
from benchmarks.datasets import CaptionedImages, load_split
from benchmarks.embedding import Progress, gallery_embeddings
from benchmarks.missing_imputers import Embeddings
from demo import demo_classifier_path, demo_encoder_path
from demo.measure_clips import Samples, prepared
from demo.scenes import BACKGROUNDS, RELATIONS, SIZES, TEXTURES, Scene, Thing, render, scenes
from encoders.audiovisual import AVInputs
from encoders.base import Encoder, Modality
from encoders.cav_mae import CavMae, load_cav_mae
from encoders.load import load_encoder

RETRIEVAL_SETS = ("scenes", "flickr8k", "flickr8k-views")
CLASSIFIER_SETS = ("clips", "digits")
SETS = (*RETRIEVAL_SETS, *CLASSIFIER_SETS)

VIEWS = 3
_QUERY_CAPTION = 4
_KEPT_SIDE = 0.75
_SCENE_PIXELS = 128

Bar = Callable[[str, int], Progress]
"""Begins a line of progress with this many steps; what it returns advances it."""


@dataclass(frozen=True)
class RetrievalSet:
    """Unit embeddings, fp64. train [N, d] and test [n, d] of each modality.

    queries  "text", "image", "image+text": what is asked, by modality [n, d]; query i wants test sample i
    target   of each query: the modality that is searched where galleries know nothing of completion
    """

    name: str
    train: Embeddings
    test: Embeddings
    queries: Mapping[str, Embeddings]
    target: Mapping[str, str]
    encoder: Encoder
    note: str
    unit: bool = True


@dataclass(frozen=True)
class Answers:
    """Pooled features of complete samples, and what the model's own path says of them.

    features  audio, video and fused, fp64 [n, d]
    logits    [n, C] by what is there: "audio", "video", "audio+video"
    labels    int64 [n]
    """

    features: Embeddings
    logits: Mapping[str, Tensor]
    labels: Tensor


@dataclass(frozen=True)
class ClassifierSet:
    """train to fit to, held_out to choose by, asked to measure on."""

    name: str
    train: Embeddings
    held_out: Answers
    asked: Answers
    model: CavMae
    note: str
    unit: bool = False

    @property
    def test(self) -> Embeddings:
        return self.asked.features


@dataclass(frozen=True)
class Sizes:
    """Samples to fit to and to measure on; fewer where there are fewer."""

    train: int
    test: int


# -- retrieval ------------------------------------------------------------------------------------------


def load_retrieval_set(
    name: str, model: str, data: Path | None, sizes: Sizes, *, cache: Path | None, bar: Bar
) -> RetrievalSet:
    """Raises DatasetError, EncoderError."""
    encoder = load_encoder(str(demo_encoder_path()) if model == "demo" else model, device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        if name == "scenes":
            train, test, queries = _scenes(Path(folder), sizes)
        else:
            assert data is not None
            train = _first(load_split(data, "train"), sizes.train)
            test = _first(load_split(data, "dev"), sizes.test)
            queries = _mirrored(Path(folder), test)
        parts: list[Embeddings] = []
        for label, part in (("training", train), ("test", test), ("queries", queries)):
            parts.append(
                {kind: _embedded(encoder, part, kind, label, cache, bar) for kind in ("image", "text")}
            )
    made = _as_views if name == "flickr8k-views" else _as_pairs
    return made(name, train, test, parts, encoder)


def _embedded(
    encoder: Encoder, data: CaptionedImages, kind: Modality, label: str, cache: Path | None, bar: Bar
) -> Tensor:
    count = len(data.images if kind == "image" else data.captions)
    done = bar(f"{label}: {kind}", count)
    return gallery_embeddings(encoder, data, kind, cache=cache, done=done).double()


def _as_pairs(
    name: str, train: CaptionedImages, test: CaptionedImages, parts: Sequence[Embeddings], encoder: Encoder
) -> RetrievalSet:
    """The picture and its first caption."""
    fit, gallery, asked = parts
    texts = [captions[0] for captions in train.captions_of_image]
    shown = [captions[0] for captions in test.captions_of_image]
    queries = {
        "text": {"text": asked["text"]},
        "image": {"image": asked["image"]},
        "image+text": dict(asked),
    }
    return RetrievalSet(
        name,
        {"image": fit["image"], "text": fit["text"][texts]},
        {"image": gallery["image"], "text": gallery["text"][shown]},
        queries,
        {"text": "image", "image": "text", "image+text": "image"},
        encoder,
        _note(train, test),
    )


def _as_views(
    name: str, train: CaptionedImages, test: CaptionedImages, parts: Sequence[Embeddings], encoder: Encoder
) -> RetrievalSet:
    """The picture and `VIEWS` captions, each a modality. A text query stands in the first caption's place."""
    fit, gallery, asked = parts
    found: list[dict[str, Tensor]] = []
    for data, part in ((train, fit), (test, gallery)):
        found.append({"image": part["image"]})
        for view in range(VIEWS):
            places = [list(captions)[view] for captions in data.captions_of_image]
            found[-1][f"caption{view + 1}"] = part["text"][places]
    queries = {
        "text": {"caption1": asked["text"]},
        "image": {"image": asked["image"]},
        "image+text": {"image": asked["image"], "caption1": asked["text"]},
    }
    target = {"text": "image", "image": "caption1", "image+text": "image"}
    return RetrievalSet(name, found[0], found[1], queries, target, encoder, _note(train, test))


def _note(train: CaptionedImages, test: CaptionedImages) -> str:
    return f"fitted to {len(train.images)} of {train.split}, measured on {len(test.images)} of {test.split}"


def _first(data: CaptionedImages, count: int) -> CaptionedImages:
    """The first pictures, with all their captions."""
    owners = [owner for owner in data.image_of_caption if owner < count]
    return replace(
        data,
        images=list(data.images)[:count],
        captions=list(data.captions)[: len(owners)],
        image_of_caption=owners,
    )


def _mirrored(folder: Path, data: CaptionedImages) -> CaptionedImages:
    """The middle of every picture, mirrored, and every picture's last caption."""
    paths = []
    for number, path in enumerate(data.images):
        with Image.open(path) as opened:
            picture = ImageOps.mirror(opened.convert("RGB"))
        width, height = (round(side * (1 - _KEPT_SIDE) / 2) for side in picture.size)
        paths.append(folder / f"{number}.png")
        picture.crop((width, height, picture.width - width, picture.height - height)).save(
            paths[-1], compress_level=1
        )
    captions = [
        data.captions[list(found)[min(_QUERY_CAPTION, len(found) - 1)]] for found in data.captions_of_image
    ]
    return CaptionedImages(folder, "queries", paths, captions, range(len(paths)))


def _scenes(folder: Path, sizes: Sizes) -> tuple[CaptionedImages, CaptionedImages, CaptionedImages]:
    test = scenes("test", sizes.test)
    return (
        _drawn(folder, "train", scenes("train", sizes.train), lambda scene: scene.caption),
        _drawn(folder, "test", test, lambda scene: scene.caption),
        # The id seeds what a drawing may vary: places, turns, hues and light.
        _drawn(folder, "queries", [replace(scene, id=f"{scene.id} anew") for scene in test], reworded),
    )


def _drawn(
    folder: Path, split: str, found: Sequence[Scene], caption: Callable[[Scene], str]
) -> CaptionedImages:
    paths = [folder / f"{split}-{number}.png" for number in range(len(found))]
    for path, scene in zip(paths, found, strict=True):
        render(scene, _SCENE_PIXELS).save(path, compress_level=1)
    return CaptionedImages(folder, split, paths, [caption(scene) for scene in found], range(len(found)))


_INVERSE = {"left": "right", "right": "left", "above": "below", "below": "above"}


def reworded(scene: Scene) -> str:
    """The same said otherwise: objects in the other order, and synonyms that the caption does not have."""

    def other(options: Sequence[str]) -> str:
        return next((option for option in options if option not in scene.caption), options[-1])

    def phrase(thing: Thing) -> str:
        words = [other(SIZES[thing.size]), other(TEXTURES[thing.texture]), thing.colour, thing.shape]
        return " ".join(["a", *(word for word in words if word)])

    first, *rest = [phrase(thing) for thing in reversed(scene.things)]
    joint = [] if scene.relation is None else [other(RELATIONS[_INVERSE[scene.relation]])]
    return " ".join([first, *joint, *rest, other(BACKGROUNDS[scene.background])])


# -- classification -------------------------------------------------------------------------------------


def load_classifier_set(name: str, model: str, data: Path | None, sizes: Sizes, *, bar: Bar) -> ClassifierSet:
    """The last fifth of the training samples is held out. Raises DatasetError, EncoderError."""
    classifier = load_cav_mae(demo_classifier_path() if model == "demo" else Path(model), device="cpu")
    if name == "clips":
        splits = [load_av_data("demo", split=split) for split in ("train", "test")]
    else:
        assert data is not None
        splits = [pair_digits(data, "train", sizes.train), pair_digits(data, "test", sizes.test)]
    train, test = _clipped(splits[0], sizes.train), _clipped(splits[1], sizes.test)
    check_labels(train, classifier.labels)
    held = len(train) // 5
    found = [
        answers(classifier, as_samples(part, classifier.config), bar(label, len(part)))
        for label, part in (
            ("training", replace(train, samples=train.samples[:-held])),
            ("held out", replace(train, samples=train.samples[-held:])),
            ("test", test),
        )
    ]
    note = f"fitted to {len(train) - held} of train ({held} held out), measured on {len(test)} of test"
    return ClassifierSet(name, found[0].features, found[1], found[2], classifier, note)


def _clipped(data: AVData, count: int) -> AVData:
    return replace(data, samples=data.samples[:count])


@torch.inference_mode()
def answers(model: CavMae, samples: Samples, done: Progress) -> Answers:
    """Features of complete samples, and the model's own answers to these and to each modality alone."""
    features: dict[str, list[Tensor]] = {}
    logits: dict[str, list[Tensor]] = {}
    labels: list[Tensor] = []
    for inputs, right in prepared(model, samples):
        for name, part in representations(model, inputs).items():
            features.setdefault(name, []).append(part.double())
        seen = {
            "audio+video": inputs,
            "audio": AVInputs(inputs.audio, None),
            "video": AVInputs(None, inputs.video),
        }
        for name, given in seen.items():
            logits.setdefault(name, []).append(model.forward(given).logits.double())
        labels.append(right)
        done(len(right))
    return Answers(
        {name: torch.cat(parts) for name, parts in features.items()},
        {name: torch.cat(parts) for name, parts in logits.items()},
        torch.cat(labels),
    )


def about_model(measured: RetrievalSet | ClassifierSet) -> dict[str, Any]:
    model = measured.encoder if isinstance(measured, RetrievalSet) else measured.model
    return {"name": model.name, "fingerprint": model.fingerprint, "dtype": model.dtype_name}
