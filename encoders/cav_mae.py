"""CAV-MAE fine-tuned: the two-stream audio-video transformer, functional in its weights.

11 blocks for audio, 11 for video, one for both together, a mean over all tokens and a linear head
(Gong et al., "Contrastive Audio-Visual Masked Autoencoder", ICLR 2023; methods.md 3.1). Sizes come from a
configuration. Weights carry the names of the released checkpoints, of which `encoders/convert_cav_mae.py`
makes the folders that are loaded here.

Nothing is ever written into the model: adapted values and prompts are arguments, so that one model serves any
number of streams. Letters: B samples, N tokens, D width, L tower blocks, C classes, P prompts.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from encoders.audio import AudioSpec, normalised
from encoders.audiovisual import (
    AV_MODALITIES,
    AVInputs,
    AVModality,
    AVOutput,
    Norms,
    TowerOutput,
    at_least_fp32,
)
from encoders.base import EncoderError, UnsupportedEncoder
from encoders.preprocessing import ImageSpec
from encoders.towers import pixel_scaling

if TYPE_CHECKING:
    from collections.abc import Iterator

MODEL_TYPE = "cav-mae-ft"
EPS = 1e-5
_LETTER: Mapping[str, str] = {"audio": "a", "video": "v"}
_SUFFIX: Mapping[Norms, str] = {"plain": "", "audio": "_a", "video": "_v"}
_LATE_BLOCKS = 2
"""Blocks at the end of each tower that SAR and DeYO leave alone (9 and 10 of 11)."""

Values = Mapping[str, Tensor]


@dataclass(frozen=True)
class CavMaeConfig:
    """Sizes of a model, what it takes and what it tells apart. Defaults: the released models."""

    labels: tuple[str, ...]
    width: int = 768
    heads: int = 12
    depth: int = 11
    joint_depth: int = 1
    mlp_ratio: int = 4
    patch: int = 16
    audio: AudioSpec = field(default_factory=AudioSpec)
    image: ImageSpec = field(
        default_factory=lambda: ImageSpec(
            height=224,
            width=224,
            resize="shortest_edge",
            shortest_edge=224,
            center_crop=True,
            resample=3,
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            rescale=1 / 255,
        )
    )

    def __post_init__(self) -> None:
        sizes = (self.width, self.heads, self.depth, self.joint_depth, self.mlp_ratio, self.patch)
        if min(sizes) < 1 or self.width % self.heads or self.width % 4:
            raise EncoderError("the model's sizes are no natural numbers that divide each other")
        measures = (self.audio.frames, self.audio.mel_bins, self.image.height, self.image.width)
        if any(measure % self.patch for measure in measures):
            raise EncoderError(f"spectrogram and frame have to be multiples of the patch size {self.patch}")
        if len(self.labels) < 2 or len(set(self.labels)) != len(self.labels):
            raise EncoderError("a classifier needs two labels at least, all different")

    def grid(self, modality: AVModality) -> tuple[int, int]:
        """Rows and columns of patches. A spectrogram lies on its side: mel bins are rows, frames columns."""
        if modality == "audio":
            return self.audio.mel_bins // self.patch, self.audio.frames // self.patch
        return self.image.height // self.patch, self.image.width // self.patch

    def tokens(self, modality: AVModality) -> int:
        rows, columns = self.grid(modality)
        return rows * columns

    def to_dict(self) -> dict[str, Any]:
        sizes = ("width", "heads", "depth", "joint_depth", "mlp_ratio", "patch")
        return {
            "model_type": MODEL_TYPE,
            "labels": list(self.labels),
            **{name: getattr(self, name) for name in sizes},
            "audio": self.audio.to_dict(),
            "image": self.image.to_dict(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CavMaeConfig:
        """Raises EncoderError for anything that is not what `to_dict` makes."""
        try:
            plain = {name: value for name, value in values.items() if name != "model_type"}
            labels = plain.pop("labels")
            if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
                raise EncoderError("config.json: labels is no list of texts")
            audio, image = AudioSpec.from_dict(plain.pop("audio")), ImageSpec.from_dict(plain.pop("image"))
            return cls(labels=tuple(labels), audio=audio, image=image, **plain)
        except (KeyError, TypeError, ValueError) as error:
            raise EncoderError(f"config.json is not that of a {MODEL_TYPE} model: {error}") from error


def weight_shapes(config: CavMaeConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight, in module order."""
    width, hidden = config.width, config.width * config.mlp_ratio
    shapes: dict[str, tuple[int, ...]] = {}
    for modality in AV_MODALITIES:
        letter = _LETTER[modality]
        shapes[f"modality_{letter}"] = (1, 1, width)
        shapes[f"pos_embed_{letter}"] = (1, config.tokens(modality), width)
        channels = 1 if modality == "audio" else 3
        shapes[f"patch_embed_{letter}.proj.weight"] = (width, channels, config.patch, config.patch)
        shapes[f"patch_embed_{letter}.proj.bias"] = (width,)
    for block in _block_names(config):
        for norm in ("norm1", "norm2"):
            for suffix in _SUFFIX.values():
                shapes |= {f"{block}.{norm}{suffix}.{part}": (width,) for part in ("weight", "bias")}
        linears = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
        linears |= {"mlp.fc1": (hidden, width), "mlp.fc2": (width, hidden)}
        for name, shape in linears.items():
            shapes |= {f"{block}.{name}.weight": shape, f"{block}.{name}.bias": shape[:1]}
    for norm in ("norm_a", "norm_v", "norm", "mlp_head.0"):
        shapes |= {f"{norm}.{part}": (width,) for part in ("weight", "bias")}
    count = len(config.labels)
    return shapes | {"mlp_head.1.weight": (count, width), "mlp_head.1.bias": (count,)}


def _block_names(config: CavMaeConfig) -> Iterator[str]:
    for letter in _LETTER.values():
        yield from (f"blocks_{letter}.{number}" for number in range(config.depth))
    yield from (f"blocks_u.{number}" for number in range(config.joint_depth))


def sincos_positions(width: int, rows: int, columns: int) -> Tensor:
    """Fixed 2-D positions [rows * columns, width], row-major: sine and cosine of the column, then the row."""
    rate = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    row = torch.arange(rows, dtype=torch.float64).repeat_interleave(columns)[:, None] * rate
    column = torch.arange(columns, dtype=torch.float64).repeat(rows)[:, None] * rate
    return torch.cat([column.sin(), column.cos(), row.sin(), row.cos()], dim=1)


def fresh_weights(config: CavMaeConfig, seed: int = 0) -> dict[str, Tensor]:
    """Untrained weights (fp32): sine-cosine positions, Xavier uniform products, plain norms."""
    generator = torch.Generator().manual_seed(seed)
    weights: dict[str, Tensor] = {}
    for name, shape in weight_shapes(config).items():
        if name.startswith("pos_embed"):
            modality: AVModality = "audio" if name.endswith("_a") else "video"
            weights[name] = sincos_positions(config.width, *config.grid(modality)).float()[None]
        elif name.startswith("modality"):
            weights[name] = torch.randn(shape, generator=generator) * 0.02
        elif "norm" in name or name.startswith("mlp_head.0"):
            weights[name] = torch.ones(shape) if name.endswith("weight") else torch.zeros(shape)
        elif name.endswith("bias"):
            weights[name] = torch.zeros(shape)
        else:
            fan_out, fan_in = shape[0], math.prod(shape[1:])
            bound = math.sqrt(6 / (fan_in + fan_out))
            weights[name] = (torch.rand(shape, generator=generator) * 2 - 1) * bound
    return weights


class CavMae:
    """A frozen classifier of `labels`; see the module's head.

    weights      every weight by its checkpoint name, on the device; norms and head never in half precision
    groups       names of the weights that methods may adapt:
                 norms            every LayerNorm on the way of a complete sample
                 early_norms      those of all but the last two blocks of both towers
                 joint_attention  queries, keys and values of the joint blocks, one matrix
    packs        whether token sets of one call go through as one (on a GPU), see `joint_packed`
    calibration  what was measured of this model on clean samples (adapters/calibration.py), or None
    """

    def __init__(
        self,
        config: CavMaeConfig,
        weights: Mapping[str, Tensor],
        *,
        name: str = "cav-mae",
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """`dtype` bf16 computes in half precision, fp64 in double. Raises EncoderError: wrong weights."""
        check_weights(config, weights)
        self.config = config
        self.name = name
        self.labels = config.labels
        self.audio_spec, self.image_spec = config.audio, config.image
        self.depth, self.width, self.label_count = config.depth, config.width, len(config.labels)
        self.device = torch.device(device)
        self.dtype_name = {torch.bfloat16: "bf16", torch.float64: "fp64"}.get(dtype, "fp32")
        self.fingerprint = fingerprint_of(config, weights)
        self.calibration: Any = None
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        self.weights: dict[str, Tensor] = {
            name: value.detach().to(self.device, exact if _stays_exact(name) else dtype)
            for name, value in weights.items()
        }
        self.groups: Mapping[str, tuple[str, ...]] = _groups(config)
        self.packs = self.device.type != "cpu"
        scale, shift = pixel_scaling(config.image, exact)
        self._pixel_scale, self._pixel_shift = scale.to(self.device), shift.to(self.device)

    # -- in -----------------------------------------------------------------------------------------

    def prepare(self, fbanks: Sequence[np.ndarray] | None, pictures: Sequence[np.ndarray] | None) -> AVInputs:
        """Raw log mel spectrograms float32 [n, F] and frames uint8 [3, H, W], of the same samples in order.

        None: these samples have none. Raises EncoderError where a shape is not the model's.
        """
        audio = video = None
        if fbanks is not None:
            batch = torch.from_numpy(normalised(fbanks, self.audio_spec))
            audio = batch.to(self.device, self._pixel_scale.dtype)
        if pictures is not None:
            expected = (3, self.image_spec.height, self.image_spec.width)
            for number, picture in enumerate(pictures):
                if picture.shape != expected or picture.dtype != np.uint8:
                    raise EncoderError(f"frame {number} is {picture.dtype} {picture.shape}, not {expected}")
            raw = torch.from_numpy(np.stack(pictures)).to(self.device)
            video = raw.to(self._pixel_scale.dtype).mul_(self._pixel_scale).add_(self._pixel_shift)
        return AVInputs(audio, video)

    # -- forward ------------------------------------------------------------------------------------

    def forward(
        self,
        inputs: AVInputs,
        values: Values | None = None,
        prompts: Mapping[AVModality, Tensor] | None = None,
    ) -> AVOutput:
        """Logits of a batch, differentiable in `values` (any weights by name) and `prompts`.

        prompts: of each modality [Lp, P, D]; row i goes before the tokens that enter block i.
        """
        tokens = {
            modality: self.tower(
                modality, embedded, values=values, prompts=None if prompts is None else prompts[modality]
            ).tokens
            for modality, embedded in self.embed(inputs, values).items()
        }
        pooled = self.fuse(tokens, values)
        logits, features = self.head(pooled, values)
        return AVOutput(logits, features, pooled)

    def fuse(self, tokens: Mapping[AVModality, Tensor], values: Values | None = None) -> Tensor:
        """Tokens [B, N, D] of the towers -> [B, D], what the head reads.

        Where a modality is missing the model takes its own path for that: the other one passes through the
        joint blocks with the plain norms and with its own, and the mean of both is classified.
        """
        if len(tokens) == len(AV_MODALITIES):
            return self.joint(torch.cat([tokens["audio"], tokens["video"]], dim=1), values=values)
        ((modality, alone),) = tokens.items()
        return torch.stack(self.joint_packed([(alone, "plain"), (alone, modality)], values=values)).mean(0)

    def embed(self, inputs: AVInputs, values: Values | None = None) -> dict[AVModality, Tensor]:
        """Patches with their positions and modality: [B, N, D] of each modality that is there."""
        weights = self._with(values)
        tokens: dict[AVModality, Tensor] = {}
        if inputs.audio is not None:
            tokens["audio"] = self._patches("a", inputs.audio.transpose(1, 2).unsqueeze(1), weights)
        if inputs.video is not None:
            tokens["video"] = self._patches("v", inputs.video, weights)
        return tokens

    def _patches(self, letter: str, picture: Tensor, weights: Values) -> Tensor:
        kernel, bias = (weights[f"patch_embed_{letter}.proj.{part}"] for part in ("weight", "bias"))
        patches = F.conv2d(picture.to(kernel.dtype), kernel, bias, stride=self.config.patch)
        tokens = patches.flatten(2).transpose(1, 2)
        return tokens + weights[f"pos_embed_{letter}"] + weights[f"modality_{letter}"]

    def tower(
        self,
        modality: AVModality,
        tokens: Tensor,
        *,
        values: Values | None = None,
        prompts: Tensor | None = None,
        features: bool = False,
    ) -> TowerOutput:
        """The blocks of one modality. tokens [B, N, D], prompts [Lp, P, D] with Lp <= L."""
        (output,) = self.tower_packed(modality, [tokens], values=values, prompts=prompts, features=features)
        return output

    def tower_packed(
        self,
        modality: AVModality,
        token_sets: Sequence[Tensor],
        *,
        values: Values | None = None,
        prompts: Tensor | None = None,
        features: bool = False,
    ) -> list[TowerOutput]:
        """`tower` for several token sets (of different lengths), packed as in `joint_packed`; features of the
        first only.

        The feature of block i is the mean over the patch tokens of what the norm before the next block's
        attention makes of its output, so it costs that mean only (methods.md 3.8).
        """
        if not self.packs and len(token_sets) > 1:
            return [
                self.tower(modality, tokens, values=values, prompts=prompts, features=features and not number)
                for number, tokens in enumerate(token_sets)
            ]
        weights = self._with(values)
        prefix = f"blocks_{_LETTER[modality]}"
        count = 0 if prompts is None else prompts.shape[1]
        hidden = [_with_prompts(tokens, prompts, 0) for tokens in token_sets]
        found: list[Tensor] = []
        for number in range(self.depth):
            if number and prompts is not None and number < len(prompts):
                hidden = [_with_prompts(part[:, count:], prompts, number) for part in hidden]
            hidden, normed = _block(hidden, f"{prefix}.{number}", weights, self.config.heads)
            if features and number:
                found.append(normed[0][:, count:].mean(1))
        hidden = [part[:, count:] for part in hidden]
        if features:
            found.append(_norm(hidden[0], "blocks_u.0.norm1", weights).mean(1))
        first = torch.stack(found, dim=1) if features else None
        return [TowerOutput(part, first if i == 0 else None) for i, part in enumerate(hidden)]

    def joint(self, tokens: Tensor, *, values: Values | None = None, norms: Norms = "plain") -> Tensor:
        """tokens [B, N, D] of any modalities -> [B, D], the mean over the tokens behind the final norm."""
        (pooled,) = self.joint_packed([(tokens, norms)], values=values)
        return pooled

    def joint_packed(
        self, segments: Sequence[tuple[Tensor, Norms]], values: Values | None = None
    ) -> list[Tensor]:
        """`joint` for several token sets: on a GPU in one pass, whose products are one and attention is not.

        On a CPU one after the other: there packing copies more than it saves (1.01 to 1.15 times the time).
        """
        if not self.packs and len(segments) > 1:
            return [self.joint_packed([segment], values)[0] for segment in segments]
        weights = self._with(values)
        hidden = [tokens for tokens, _ in segments]
        suffixes = [_SUFFIX[norms] for _, norms in segments]
        for number in range(self.config.joint_depth):
            hidden, _ = _block(hidden, f"blocks_u.{number}", weights, self.config.heads, suffixes)
        return [
            _norm(part, f"norm{suffix}", weights).mean(1)
            for part, suffix in zip(hidden, suffixes, strict=True)
        ]

    def head(self, pooled: Tensor, values: Values | None = None) -> tuple[Tensor, Tensor]:
        """[B, D] -> logits [B, C] and features [B, D] behind the head's norm."""
        weights = self._with(values)
        features = _norm(at_least_fp32(pooled), "mlp_head.0", weights)
        return F.linear(features, weights["mlp_head.1.weight"], weights["mlp_head.1.bias"]), features

    def _with(self, values: Values | None) -> Values:
        return self.weights if not values else {**self.weights, **values}


def _with_prompts(tokens: Tensor, prompts: Tensor | None, number: int) -> Tensor:
    if prompts is None:
        return tokens
    before = prompts[number].to(tokens.dtype).expand(len(tokens), -1, -1)
    return torch.cat([before, tokens], dim=1)


def _block(
    hidden: list[Tensor], name: str, weights: Values, heads: int, suffixes: Sequence[str] | None = None
) -> tuple[list[Tensor], list[Tensor]]:
    """One pre-norm block over several token sets [B, N, D]; also what its first norm made of them."""
    suffixes = suffixes or [""] * len(hidden)
    normed = [_norm(part, f"{name}.norm1{s}", weights) for part, s in zip(hidden, suffixes, strict=True)]
    mixed = [_attend(part, heads) for part in _linear_each(normed, f"{name}.attn.qkv", weights)]
    attended = _linear_each(mixed, f"{name}.attn.proj", weights)
    hidden = [part + change for part, change in zip(hidden, attended, strict=True)]
    again = [_norm(part, f"{name}.norm2{s}", weights) for part, s in zip(hidden, suffixes, strict=True)]
    inner = [F.gelu(part) for part in _linear_each(again, f"{name}.mlp.fc1", weights)]
    changes = _linear_each(inner, f"{name}.mlp.fc2", weights)
    return [part + change for part, change in zip(hidden, changes, strict=True)], normed


def _linear_each(parts: Sequence[Tensor], name: str, weights: Values) -> list[Tensor]:
    """A linear layer over token sets [B, N, D], as one product."""
    if len(parts) == 1:
        return [_linear(parts[0], name, weights)]
    packed = _linear(torch.cat([part.flatten(0, 1) for part in parts]), name, weights)
    pieces = torch.split(packed, [part.shape[0] * part.shape[1] for part in parts])
    return [piece.reshape(*part.shape[:2], -1) for piece, part in zip(pieces, parts, strict=True)]


def _attend(projected: Tensor, heads: int) -> Tensor:
    """[B, N, 3 D] -> [B, N, D]"""
    parts = projected.reshape(*projected.shape[:2], 3, heads, -1)
    query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


def _norm(hidden: Tensor, name: str, weights: Values) -> Tensor:
    weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    if hidden.dtype == weight.dtype or hidden.device.type == "cpu":
        return F.layer_norm(hidden, weight.shape, weight, bias, EPS)
    return F.layer_norm(hidden.to(weight.dtype), weight.shape, weight, bias, EPS).to(hidden.dtype)


def _linear(hidden: Tensor, name: str, weights: Values) -> Tensor:
    weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    return F.linear(hidden, weight.to(hidden.dtype), bias.to(hidden.dtype))


def _stays_exact(name: str) -> bool:
    """Norms adapt in steps that half precision would swallow, and the head decides between labels."""
    return "norm" in name or name.startswith("mlp_head")


def _groups(config: CavMaeConfig) -> dict[str, tuple[str, ...]]:
    def norms(block: str) -> list[str]:
        return [f"{block}.{norm}.{part}" for norm in ("norm1", "norm2") for part in ("weight", "bias")]

    blocks = list(_block_names(config))
    ends = [f"{name}.{part}" for name in ("norm", "mlp_head.0") for part in ("weight", "bias")]
    early = [b for b in blocks if b[7] != "u" and int(b.split(".")[1]) < config.depth - _LATE_BLOCKS]
    joint = [b for b in blocks if b[7] == "u"]
    return {
        "norms": tuple(name for block in blocks for name in norms(block)) + tuple(ends),
        "early_norms": tuple(name for block in early for name in norms(block)),
        "joint_attention": tuple(f"{b}.attn.qkv.{part}" for b in joint for part in ("weight", "bias")),
    }


# -- files ----------------------------------------------------------------------------------------------


def check_weights(config: CavMaeConfig, weights: Mapping[str, Tensor]) -> None:
    """Raises EncoderError unless these are exactly the weights of such a model, all finite."""
    shapes = weight_shapes(config)
    missing, unknown = sorted(shapes.keys() - weights.keys()), sorted(weights.keys() - shapes.keys())
    if missing or unknown:
        raise EncoderError(
            f"the weights do not fit the configuration; missing {missing[:3]}, unknown {unknown[:3]}"
        )
    for name, shape in shapes.items():
        if tuple(weights[name].shape) != shape:
            raise EncoderError(f"{name} has the shape {tuple(weights[name].shape)}, expected {shape}")
        if not weights[name].is_floating_point() or not bool(torch.isfinite(weights[name]).all()):
            raise EncoderError(f"{name} holds values that are no finite numbers")


def fingerprint_of(config: CavMaeConfig, weights: Mapping[str, Tensor]) -> str:
    """sha256 over weights, sizes, labels and preprocessing, as hex; the same for every inference dtype."""
    digest = hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode())
    for name in sorted(weights):
        value = weights[name].detach().cpu().float().contiguous()
        digest.update(f"{name} {tuple(value.shape)}\n".encode())
        digest.update(memoryview(value.view(-1).view(torch.uint8).numpy()))  # type: ignore[arg-type]
    return digest.hexdigest()


def save_cav_mae(config: CavMaeConfig, weights: Mapping[str, Tensor], folder: str | Path) -> None:
    """Write config.json and model.safetensors, which `load_cav_mae` reads."""
    from safetensors.torch import save

    check_weights(config, weights)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(config.to_dict(), indent=2, ensure_ascii=False)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")
    data = save({name: value.detach().contiguous().cpu() for name, value in weights.items()})
    (folder / "model.safetensors").write_bytes(data)  # readable as any other file, which `save_file` is not


def load_cav_mae(folder: str | Path, *, device: str = "auto", dtype: str = "fp32") -> CavMae:
    """Read a folder that `save_cav_mae` or the converter made. dtype: "fp32", "bf16" or "fp64".

    Raises UnsupportedEncoder (another kind of model), EncoderError (missing or damaged files).
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from encoders.load import pick_device

    folder = Path(folder).expanduser()
    try:
        described = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if not isinstance(described, dict) or described.get("model_type") != MODEL_TYPE:
            raise UnsupportedEncoder(f"{folder} holds no {MODEL_TYPE} model; see encoders.convert_cav_mae")
        weights = load_file(folder / "model.safetensors")
    except FileNotFoundError as error:
        raise EncoderError(f"the classifier's folder lacks {error.filename}") from error
    except (OSError, ValueError, SafetensorError) as error:
        raise EncoderError(f"the classifier in {folder} could not be read: {error}") from error
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}
    return CavMae(
        CavMaeConfig.from_dict(described),
        {name: value.float() for name, value in weights.items()},
        name=folder.resolve().name,
        device=pick_device(device),
        dtype=dtypes[dtype],
    )
