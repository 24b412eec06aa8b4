"""Load a dual encoder from a local folder or the Hugging Face hub, with its own tokeniser and preprocessing.

Transformers and torch are imported on the first call. Weights come from safetensors, or from older files
through torch's weights-only reader; code of a repository is never run.
"""

from __future__ import annotations

import json
import os
import pickle
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from encoders.base import EncoderError, UnsupportedEncoder
from encoders.preprocessing import ImageSpec

if TYPE_CHECKING:
    import torch

    from encoders.base import Encoder
    from encoders.towers import Tokenize, Tokens

# Text lengths that the published models were trained with, where the tokeniser or the positions would allow
# more.
_BLIP_TEXT_LENGTH = 35
_MODEL_CLASSES = {
    "clip": "CLIPModel",
    "blip": "BlipForImageTextRetrieval",
    "siglip": "SiglipModel",
    "vision-text-dual-encoder": "VisionTextDualEncoderModel",
}
_REMEDIES = {
    "siglip2": (
        "SigLIP 2 with flexible resolution (NaFlex) takes patches, not pictures of one size; use one of its "
        "fixed-resolution models, for example google/siglip2-base-patch16-224"
    ),
}
# Image processors that resize, crop and normalise as `preprocessing.pixels` does.
_IMAGE_PROCESSORS = ("CLIP", "Blip", "Siglip", "ViT", "DeiT", "MobileNetV2")


def load_encoder(name_or_folder: str, *, device: str = "auto", dtype: str = "fp32") -> Encoder:
    """Load `name_or_folder`, a folder made by `save_pretrained` or a hub name such as
    openai/clip-vit-base-patch32.

    device: "auto" (cuda where present), "cpu", "cuda", "cuda:1". dtype: "fp32" or "bf16".

    Raises:
        UnsupportedEncoder: the model is no dual encoder that Attune can adapt; the message names it.
        EncoderError: missing folder, hub not reachable, incomplete weights, no tokeniser.
    """
    from encoders.dual import encoder_from_model

    local = _is_folder(name_or_folder)
    with _quiet():
        config = _config(name_or_folder, local=local)
        model_class = _model_class(name_or_folder, config)
        image_spec = _image_spec(name_or_folder, local=local)
        tokenizer = _tokenizer(name_or_folder, local=local)
        model = _model(name_or_folder, model_class, local=local)
        _check_size(name_or_folder, config, image_spec)
        return encoder_from_model(
            model,
            image_spec=image_spec,
            tokenize=_tokenize_for(tokenizer, config),
            tokenizer_content=_tokenizer_content(tokenizer),
            name=Path(name_or_folder).resolve().name if local else name_or_folder,
            device=pick_device(device),
            dtype=dtype,
        )


def pick_device(device: str) -> torch.device:
    """ "auto" to cuda where present, else cpu."""
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        where = torch.device(device)
    except RuntimeError as error:
        raise EncoderError(f"unknown device {device!r}; use auto, cpu or cuda") from error
    if where.type == "cuda" and not torch.cuda.is_available():
        raise EncoderError("device cuda was asked for, but torch sees no GPU; use device cpu or auto")
    return where


def _is_folder(name: str) -> bool:
    path = Path(name).expanduser()
    if name and path.is_dir():
        return True
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name
    if looks_local or not name:
        raise EncoderError(
            f"there is no folder {name!r}; give a folder made by save_pretrained, or a hub name"
        )
    return False


def _source(name: str, *, local: bool) -> str:
    return str(Path(name).expanduser()) if local else name


def _config(name: str, *, local: bool) -> Any:
    from transformers import AutoConfig

    if local and not (Path(name).expanduser() / "config.json").is_file():
        raise EncoderError(f"the folder {name!r} has no config.json; it was not made by save_pretrained")
    try:
        return AutoConfig.from_pretrained(
            _source(name, local=local), local_files_only=local, trust_remote_code=False
        )
    except OSError as error:
        raise EncoderError(_unreachable(name)) from error
    except ValueError as error:  # unknown model_type, or one that needs its own code
        raise UnsupportedEncoder(f"{name}: {_first_line(error)}") from error


def _unreachable(name: str) -> str:
    return (
        f"{name!r} is neither a folder here nor can it be fetched from the Hugging Face hub (unknown name, "
        "no network, or HF_HUB_OFFLINE is set); download it elsewhere and give the folder"
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _model_class(name: str, config: Any) -> Any:
    import transformers

    kind = str(config.model_type)
    class_name = _MODEL_CLASSES.get(kind)
    if class_name is None:
        remedy = _REMEDIES.get(kind, f"Attune can adapt {', '.join(_MODEL_CLASSES.values())}")
        raise UnsupportedEncoder(f"{name} is a {kind!r} model, which is not supported: {remedy}")
    made_by = getattr(config, "architectures", None) or [class_name]
    if kind == "blip" and class_name not in made_by:
        raise UnsupportedEncoder(
            f"{name} holds {made_by[0]}, which has no projections for retrieval; "
            "use a BlipForImageTextRetrieval model, for example Salesforce/blip-itm-base-coco"
        )
    return getattr(transformers, class_name)


def _model(name: str, model_class: Any, *, local: bool) -> Any:
    import torch
    from safetensors import SafetensorError

    # For older weights on the hub Transformers would ask a public service, from a thread, to convert them.
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
    try:
        model, report = model_class.from_pretrained(
            _source(name, local=local),
            local_files_only=local,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except (OSError, SafetensorError, pickle.UnpicklingError) as error:
        raise EncoderError(f"the weights of {name} could not be read: {_first_line(error)}") from error
    except (RuntimeError, ValueError) as error:
        raise EncoderError(
            f"the weights of {name} do not fit its configuration: {_first_line(error)}"
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise EncoderError(f"the weights of {name} are incomplete; missing {', '.join(missing[:3])}")
    return model


# --- preprocessing ---


def _image_spec(name: str, *, local: bool) -> ImageSpec:
    values = _processor_values(name, local=local)
    kind = str(values.get("image_processor_type") or values.get("feature_extractor_type") or "")
    family = (
        kind.removesuffix("Fast")
        .removesuffix("Pil")
        .removesuffix("ImageProcessor")
        .removesuffix("FeatureExtractor")
    )
    if family not in _IMAGE_PROCESSORS:
        known = ", ".join(f"{family}ImageProcessor" for family in _IMAGE_PROCESSORS)
        raise UnsupportedEncoder(
            f"{name} prepares pictures with {kind or 'an unnamed processor'}; known are {known}"
        )
    import transformers

    processor_class = getattr(transformers, f"{family}ImageProcessorPil")
    return image_spec_of(processor_class.from_dict(values))


def image_spec_of(processor: Any) -> ImageSpec:
    """The settings of a Hugging Face PIL image processor as an ImageSpec.

    Raises UnsupportedEncoder where its pictures would not all get one size.
    """
    if not processor.do_resize:
        raise UnsupportedEncoder("the image processor does not resize, so pictures would differ in size")
    values: dict[str, Any] = {
        "resample": int(processor.resample),
        "mean": _three(processor.image_mean) if processor.do_normalize else (0.0, 0.0, 0.0),
        "std": _three(processor.image_std) if processor.do_normalize else (1.0, 1.0, 1.0),
        "rescale": float(processor.rescale_factor) if processor.do_rescale else 1.0,
    }
    size, crop = processor.size, processor.crop_size if processor.do_center_crop else None
    if crop:
        values.update(height=crop.height, width=crop.width, center_crop=True)
    if size.shortest_edge and not size.longest_edge and crop:
        return ImageSpec(resize="shortest_edge", shortest_edge=size.shortest_edge, **values)
    if size.height and size.width and crop:
        return ImageSpec(resize_height=size.height, resize_width=size.width, **values)
    if size.height and size.width:
        return ImageSpec(height=size.height, width=size.width, **values)
    raise UnsupportedEncoder(f"the image processor's size {size} leaves pictures of different sizes")


def _three(values: Any) -> tuple[float, float, float]:
    listed = [float(value) for value in values] if isinstance(values, Sequence) else [float(values)] * 3
    return listed[0], listed[1], listed[2]


def _processor_values(name: str, *, local: bool) -> dict[str, Any]:
    """The image processor's JSON: inside processor_config.json, or preprocessor_config.json (older)."""
    for file, key in (("processor_config.json", "image_processor"), ("preprocessor_config.json", None)):
        path = _file(name, file, local=local)
        if path is None:
            continue
        values = json.loads(path.read_text(encoding="utf-8"))
        found = values.get(key) if key else values
        if isinstance(found, dict):
            return found
    raise EncoderError(
        f"{name} has no preprocessor_config.json; save its image processor into the same folder"
    )


def _file(name: str, file: str, *, local: bool) -> Path | None:
    if local:
        path = Path(name).expanduser() / file
        return path if path.is_file() else None
    from transformers.utils import cached_file

    found = cached_file(
        name, file, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
    )
    return Path(found) if found else None


def _check_size(name: str, config: Any, spec: ImageSpec) -> None:
    """A vision transformer has positions for one size only."""
    size = getattr(config.vision_config, "image_size", None)
    if config.vision_config.model_type == "mobilenet_v2" or size is None:
        return
    expected = (size, size) if isinstance(size, int) else tuple(size)
    if expected != (spec.height, spec.width):
        raise EncoderError(
            f"{name} expects pictures of {expected}, its image processor makes {(spec.height, spec.width)}"
        )


# --- texts ---


def _tokenizer(name: str, *, local: bool) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            _source(name, local=local), local_files_only=local, trust_remote_code=False
        )
    except (OSError, ValueError, ImportError, KeyError, TypeError) as error:
        remedy = "save its tokeniser into the same folder (tokenizer.save_pretrained)"
        raise EncoderError(
            f"{name} has no tokeniser that can be loaded: {_first_line(error)}; {remedy}"
        ) from error
    if tokenizer.pad_token is None:
        raise EncoderError(f"the tokeniser of {name} has no padding token")
    return tokenizer


def _tokenize_for(tokenizer: Any, config: Any) -> Tokenize:
    """Texts to ids, padded on the right to the longest text of the batch.

    SigLIP was trained with texts filled up to the full length and sees the filling, so it gets just that.
    """
    import torch

    from encoders.towers import Tokens

    length = _text_length(tokenizer, config)
    padding = "max_length" if config.model_type == "siglip" else "longest"
    tokenizer.padding_side = "right"

    def tokenize(texts: Sequence[str]) -> Tokens:
        made = tokenizer(
            list(texts),
            padding=padding,
            truncation=True,
            max_length=length,
            return_attention_mask=True,
            return_tensors="np",
        )
        ids = torch.from_numpy(made["input_ids"]).long()
        mask = torch.ones_like(ids) if padding == "max_length" else torch.from_numpy(made["attention_mask"])
        return Tokens(ids, mask.long())

    return tokenize


def _text_length(tokenizer: Any, config: Any) -> int:
    """Tokens of the longest text, special tokens included."""
    positions = int(getattr(config.text_config, "max_position_embeddings", 512))
    if config.text_config.model_type in ("roberta", "xlm-roberta", "camembert"):
        positions -= 2  # these count their positions from the padding id on
    limit = min(positions, int(tokenizer.model_max_length))
    return min(limit, _BLIP_TEXT_LENGTH) if config.model_type == "blip" else limit


def _tokenizer_content(tokenizer: Any) -> str:
    """What a tokeniser does with a text, as text: its rules where it is a fast one, else its vocabulary."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return json.dumps(sorted(tokenizer.get_vocab().items()))
    rules = json.loads(backend.to_str())
    # Padding and truncation are set anew by each call and are no property of the tokeniser.
    return json.dumps({**rules, "padding": None, "truncation": None}, sort_keys=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Transformers without progress bars, hints and deprecation warnings; its settings come back
    afterwards.
    """
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
