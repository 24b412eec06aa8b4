"""What the rest of Attune knows of an encoder.

Letters: B queries, D features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    import torch

    from encoders.preprocessing import ImageSpec

Modality = Literal["image", "text"]
MODALITIES: tuple[Modality, ...] = ("image", "text")


class EncoderError(Exception):
    """The encoder cannot be loaded or cannot take this input."""


class UnsupportedEncoder(EncoderError):
    """The folder or hub name is no dual encoder that Attune can adapt."""


class BadImage(EncoderError):
    """The bytes are no picture, or one that is refused before decoding (format, pixels)."""


class ImageTooLarge(BadImage):
    """The picture's header announces more pixels, or its bytes are more, than is allowed."""


class Inputs(Protocol):
    """A prepared batch on the encoder's device: everything up to the first adaptable parameter."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: torch.Tensor) -> Inputs:
        """The rows of these numbers (int64 [n]) as a batch of their own, not prepared again."""


class Adaptable(Protocol):
    """From a prepared batch to unit rows, with the adaptable parameters as an argument.

    `parameters` maps the name of each adaptable parameter to its frozen source value (fp32, on the
    encoder's device), in module order.
    """

    @property
    def parameters(self) -> Mapping[str, torch.Tensor]: ...

    # Inputs are made by this object's own `prepare`, hence Any here.
    def encode(self, inputs: Any, parameters: Mapping[str, torch.Tensor] | None = None) -> torch.Tensor:
        """Unit rows [B, D], fp32 (fp64 where the encoder is fp64).

        With `parameters` (all names of `self.parameters`) those values are used in place of the source
        values and the result is differentiable in them; without, the source model answers. The module
        itself is left unchanged.
        """


class Tower(Adaptable, Protocol):
    """The encoder of one modality."""

    modality: Modality

    def prepare(self, items: Sequence[str] | Sequence[np.ndarray]) -> Inputs:
        """Texts, or pictures uint8 [3, H, W] of the encoder's input size, to a batch. No gradient."""


@runtime_checkable
class PictureTower(Tower, Protocol):
    """A tower that still knows the pictures of a batch, for methods that change them."""

    def pictures(self, inputs: Any) -> torch.Tensor:
        """What `inputs` were prepared from: normalised [B, 3, H, W]."""

    def prepare_tensors(self, tensor: torch.Tensor) -> Inputs:
        """Normalised pictures [B, 3, H, W] to a batch. No gradient."""


class Encoder(Protocol):
    """A frozen dual encoder; read-only."""

    @property
    def name(self) -> str:
        """The folder's name, or the hub name."""

    @property
    def dimension(self) -> int:
        """D, the length of a feature row."""

    @property
    def fingerprint(self) -> str:
        """Hex digest over weights, configuration, tokeniser and preprocessing; the same in fp32 and bf16."""

    @property
    def temperature(self) -> float:
        """The model's own softmax temperature, 1 / exp(logit_scale)."""

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype_name(self) -> str:
        """The inference dtype, "fp32" or "bf16"."""

    @property
    def image_spec(self) -> ImageSpec: ...

    @property
    def towers(self) -> Mapping[Modality, Tower]: ...
