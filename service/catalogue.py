"""What requests are checked against before they are queued: a card of the encoder, and one of each gallery.

Free of torch and FAISS, so that a process that only speaks HTTP can hold it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from service.messages import Target

if TYPE_CHECKING:  # it loads libraries of sound, which only /classify needs
    from encoders.audio import AudioSpec
    from encoders.preprocessing import ImageSpec


@dataclass(frozen=True)
class EncoderCard:
    """Plain values. `image_spec`: the encoder's, as ImageSpec.to_dict(); `models`: what /models shows.

    classifier  the fields of ClassifierCard, its specs as their to_dict(); None: no classifier is loaded
    """

    fingerprint: str
    dimension: int
    image_spec: Mapping[str, Any]
    models: Mapping[str, Any]
    classifier: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class ClassifierCard:
    """The classifier, as requests are checked against it."""

    name: str
    fingerprint: str
    labels: tuple[str, ...]
    audio_spec: AudioSpec
    image_spec: ImageSpec

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> ClassifierCard:
        from encoders.audio import AudioSpec
        from encoders.preprocessing import ImageSpec

        return cls(
            name=plain["name"],
            fingerprint=plain["fingerprint"],
            labels=tuple(plain["labels"]),
            audio_spec=AudioSpec.from_dict(plain["audio_spec"]),
            image_spec=ImageSpec.from_dict(plain["image_spec"]),
        )


@dataclass(frozen=True)
class GalleryCard:
    """What a request needs to know before it is queued.

    targets      vectors by modality, and anchors
    calibration  the name of the one that makes the items' anchors; None: they have none
    """

    name: str
    targets: Mapping[Target, int]
    calibration: str | None = None


class Catalogue(Protocol):
    @property
    def encoder(self) -> EncoderCard:
        """Raises NotReady while no worker has told."""

    async def gallery(self, name: str) -> GalleryCard:
        """Raises GalleryNotFound, or why the gallery is refused."""


class LocalGalleries(Protocol):
    """The part of service.galleries.Galleries that any thread may read."""

    def card(self, name: str) -> Any: ...


class LocalCatalogue:
    """The cards of this process's own worker."""

    def __init__(self, encoder: EncoderCard, galleries: LocalGalleries) -> None:
        self.encoder = encoder
        self._galleries = galleries

    async def gallery(self, name: str) -> GalleryCard:
        card = self._galleries.card(name)
        return GalleryCard(card.name, card.targets, card.calibration)
