"""Clips for the demo classifier: sound and picture, drawn and synthesised by number, label known."""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Depends, Path, Query
from starlette.responses import Response

from demo.clips import LABELS, SPLITS, label_of, sample_files
from service.errors import NotFound
from service.http.auth import Key
from service.http.caching import NO_PAGE, PRIVATE_FOR_GOOD
from service.http.dependencies import DecodersDep, SettingsDep
from service.http.errors import Refusal
from service.http.openapi import answers
from service.http.responses import json_response
from service.http.schemas import ClipsShown

FIRST = SPLITS["test"]
COUNT = 1_000_000
"""Clips of the split, which no model was trained on."""
MOST_AT_ONCE = 256

_HEADERS = {**NO_PAGE, "Cache-Control": PRIVATE_FOR_GOOD}

ClipNumber = Annotated[
    int, Path(ge=FIRST, lt=FIRST + COUNT, description="Number of the clip.", examples=[FIRST + 1])
]


async def _require_demo(settings: SettingsDep) -> None:
    """Raises NotFound `no_demo`: the clips are of the demo classifier's labels, and of no use to another."""
    if settings.classifier != "demo":
        raise NotFound("this server's classifier is not the demo's, so it has no clips", code="no_demo")


router = APIRouter(tags=["demo"], dependencies=[Key, Depends(_require_demo)])


@router.get(
    "/demo/clips",
    summary="List clips for the demo classifier",
    responses=answers(ClipsShown, "Clips, with where their files are; every twelve hold each label once."),
)
async def list_clips(
    start: Annotated[int, Query(ge=0, lt=COUNT, description="Place of the first in the test split.")] = 0,
    count: Annotated[int, Query(ge=1, le=MOST_AT_ONCE, description="Clips to list.")] = 8,
) -> Response:
    """404 `no_demo` where the classifier is another."""
    if start + count > COUNT:
        raise Refusal(
            422, "invalid_request", f"start + count: there are {COUNT} clips", details={"clips": COUNT}
        )
    numbers = range(FIRST + start, FIRST + start + count)
    return json_response({"labels": LABELS, "clips": [_card(number) for number in numbers]})


@router.get(
    "/demo/clips/{number}/audio.wav",
    summary="Hear a clip",
    responses={200: {"content": {"audio/wav": {}}, "description": "WAV: mono, 16 bits, 16 kHz."}},
    response_class=Response,
)
async def clip_audio(number: ClipNumber, decoders: DecodersDep) -> Response:
    audio, _ = await to_thread.run_sync(_files, number, limiter=decoders)
    return Response(audio, media_type="audio/wav", headers=_HEADERS)


@router.get(
    "/demo/clips/{number}/image.png",
    summary="See a clip",
    responses={200: {"content": {"image/png": {}}, "description": "PNG of 96 x 96 pixels."}},
    response_class=Response,
)
async def clip_image(number: ClipNumber, decoders: DecodersDep) -> Response:
    _, image = await to_thread.run_sync(_files, number, limiter=decoders)
    return Response(image, media_type="image/png", headers=_HEADERS)


def _card(number: int) -> dict[str, str]:
    place = f"/demo/clips/{number}"
    return {
        "id": f"clip-{number}",
        "label": label_of(number),
        "audio": f"{place}/audio.wav",
        "image": f"{place}/image.png",
    }


@lru_cache(maxsize=64)  # a page asks for the sound and for the picture
def _files(number: int) -> tuple[bytes, bytes]:
    audio, image, _ = sample_files(number)
    return audio, image
