"""What an API process knows of the workers' encoder and galleries: told by Redis, about once a second."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import redis.asyncio

from index.base import GalleryNotFound
from service.catalogue import EncoderCard, GalleryCard
from service.codec import Failure, RemoteFailure
from service.errors import NotReady, QueueUnreachable
from service.redis.connection import GONE
from service.redis.keys import Keys


class RedisCatalogue:
    def __init__(self, client: redis.asyncio.Redis, keys: Keys) -> None:
        self._client = client
        self._keys = keys
        self._encoder: EncoderCard | None = None
        self._packed = b""
        self._galleries: Mapping[str, Mapping[str, Any]] = {}

    @property
    def known(self) -> bool:
        return self._encoder is not None

    @property
    def encoder(self) -> EncoderCard:
        if self._encoder is None:
            raise NotReady("no worker has started yet")
        return self._encoder

    def update(self, encoder: bytes, galleries: Mapping[str, Mapping[str, Any]]) -> None:
        if encoder and encoder != self._packed:
            self._encoder = EncoderCard(**json.loads(encoder))
            self._packed = encoder
        self._galleries = galleries

    async def gallery(self, name: str) -> GalleryCard:
        card = self._galleries.get(name)
        if card is None or not card.get("targets"):  # maybe it is newer than the last news
            card = await self._ask(name)
        if card is None:
            raise GalleryNotFound(f"there is no gallery {name!r}")
        if card["status"] != "ready":
            raise RemoteFailure(Failure(409, "gallery_refused", card["why"], {}))
        return GalleryCard(name, card["targets"], card.get("calibration"))

    async def _ask(self, name: str) -> Mapping[str, Any] | None:
        try:
            card: Any = await self._client.hget(self._keys.galleries, name)
        except GONE as error:
            if name in self._galleries:
                return self._galleries[name]
            raise QueueUnreachable("Redis does not answer; try again") from error
        return None if card is None else json.loads(card)


def packed(card: EncoderCard) -> str:
    return json.dumps(asdict(card))
