"""Galleries and their items. Reading needs an API key, changing the admin key, where they are set."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Path, Query
from starlette.requests import Request
from starlette.responses import Response

from encoders.previews import MEDIA_TYPE
from service.http.auth import Admin, Key
from service.http.bodies import json_body
from service.http.caching import NO_PAGE, PRIVATE_FOR_GOOD, is_current
from service.http.dependencies import DecodersDep, EngineDep, SettingsDep, note
from service.http.items import check_count, decode_canaries, decode_items
from service.http.openapi import answers, json_request
from service.http.responses import item_body, json_response, no_content
from service.http.schemas import (
    CanariesBody,
    CanariesShown,
    Deleted,
    GalleriesShown,
    GalleryPath,
    GalleryShown,
    ItemIds,
    ItemPage,
    ItemsBody,
    ItemShown,
    NewGallery,
    Upserted,
)

router = APIRouter(prefix="/galleries", tags=["galleries"])
MAX_PAGE = 1000
ItemPath = Annotated[str, Path(min_length=1, max_length=512, description="The item's id.")]

ITEMS_EXAMPLE = {
    "items": [
        {"id": "scene-17", "text": "a red circle above a blue square", "payload": {"colour": "red"}},
        {"id": "photo-3", "image": "data:image/png;base64,iVBORw0KGgo..."},
    ]
}


CANARIES_EXAMPLE = {"canaries": [{"text": "a red circle above a blue square", "answer": "scene-17"}]}


@router.get("", summary="All galleries", dependencies=[Key], responses=answers(GalleriesShown, "By name."))
async def list_galleries(engine: EngineDep) -> Response:
    return json_response({"galleries": await engine.list_galleries()})


@router.post(
    "",
    summary="Create a gallery",
    status_code=201,
    dependencies=[Admin],
    responses=answers(GalleryShown, "The new, empty gallery.", 201),
    openapi_extra=json_request(
        NewGallery, {"name": "products", "index": {"kind": "flat"}, "calibration": "encoder"}
    ),
)
async def create_gallery(
    body: Annotated[NewGallery, json_body(NewGallery)], engine: EngineDep, request: Request
) -> Response:
    note(request, gallery=body.name)
    return json_response(await engine.create_gallery(body.name, body.index, body.calibration), status=201)


@router.get(
    "/{gallery}",
    summary="One gallery",
    dependencies=[Key],
    responses=answers(GalleryShown, "The gallery."),
)
async def describe_gallery(gallery: GalleryPath, engine: EngineDep) -> Response:
    return json_response(await engine.describe_gallery(gallery))


@router.delete("/{gallery}", summary="Delete a gallery", status_code=204, dependencies=[Admin])
async def delete_gallery(gallery: GalleryPath, engine: EngineDep) -> Response:
    await engine.delete_gallery(gallery)
    return no_content()


@router.post(
    "/{gallery}/items",
    summary="Add or replace items",
    dependencies=[Admin],
    responses=answers(Upserted, "All items are in."),
    openapi_extra=json_request(ItemsBody, ITEMS_EXAMPLE),
)
async def upsert_items(
    gallery: GalleryPath,
    body: Annotated[ItemsBody, json_body(ItemsBody)],
    engine: EngineDep,
    settings: SettingsDep,
    decoders: DecodersDep,
) -> Response:
    """All or none: one bad item refuses the request."""
    items = await decode_items(body.items, settings, engine, decoders)
    return json_response(await engine.upsert_items(gallery, items))


@router.post(
    "/{gallery}/items/delete",
    summary="Remove items",
    dependencies=[Admin],
    responses=answers(Deleted, "How many there were."),
    openapi_extra=json_request(ItemIds, {"ids": ["scene-17", "photo-3"]}),
)
async def delete_items(
    gallery: GalleryPath,
    body: Annotated[ItemIds, json_body(ItemIds)],
    engine: EngineDep,
    settings: SettingsDep,
) -> Response:
    """Ids that the gallery does not hold are passed over."""
    check_count(len(body.ids), settings)
    return json_response({"deleted": await engine.delete_items(gallery, body.ids)})


@router.get(
    "/{gallery}/items",
    summary="Items, page by page",
    dependencies=[Key],
    responses=answers(ItemPage, "One page."),
)
async def list_items(
    gallery: GalleryPath,
    engine: EngineDep,
    offset: Annotated[int, Query(ge=0, le=2**53, description="Items to pass over.")] = 0,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE, description="Most items of the page.")] = 100,
) -> Response:
    page = await engine.list_items(gallery, offset, limit)
    return json_response({**page, "items": [item_body(gallery, item) for item in page["items"]]})


@router.get(
    "/{gallery}/items/{id:path}",
    summary="One item",
    dependencies=[Key],
    responses=answers(ItemShown, "The item."),
)
async def get_item(gallery: GalleryPath, id: ItemPath, engine: EngineDep) -> Response:
    return json_response(item_body(gallery, await engine.get_item(gallery, id)))


@router.get(
    "/{gallery}/previews/{id:path}",
    summary="A small picture of an item",
    dependencies=[Key],
    response_class=Response,
    responses={
        200: {
            "description": "WebP. For good with the current `v`, to be asked again without.",
            "content": {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}},
        },
        304: {"description": "As the client has it."},
    },
)
async def get_preview(
    gallery: GalleryPath,
    id: ItemPath,
    engine: EngineDep,
    v: Annotated[str, Query(max_length=64, description="Version, as hits and items have it.")] = "",
    if_none_match: Annotated[str, Header(max_length=1024)] = "",
) -> Response:
    """Only of items that were added with a picture, where the server keeps previews."""
    preview = await engine.get_preview(gallery, id)
    tag = f'"{preview["version"]}"'
    headers = {
        **NO_PAGE,
        "ETag": tag,
        "Cache-Control": PRIVATE_FOR_GOOD if v == preview["version"] else "private, no-cache",
    }
    if is_current(if_none_match, tag):
        return Response(status_code=304, headers=headers)
    return Response(preview["content"], headers=headers, media_type=MEDIA_TYPE)


@router.get(
    "/{gallery}/canaries",
    summary="The canaries of a gallery",
    dependencies=[Admin],
    responses=answers(CanariesShown, "Queries whose right answer is known."),
)
async def describe_canaries(gallery: GalleryPath, engine: EngineDep) -> Response:
    return json_response(await engine.describe_canaries(gallery))


@router.put(
    "/{gallery}/canaries",
    summary="Set the canaries of a gallery",
    dependencies=[Admin],
    responses=answers(CanariesShown, "The canaries, which replace those before."),
    openapi_extra=json_request(CanariesBody, CANARIES_EXAMPLE),
)
async def set_canaries(
    gallery: GalleryPath,
    body: Annotated[CanariesBody, json_body(CanariesBody)],
    engine: EngineDep,
    settings: SettingsDep,
    decoders: DecodersDep,
    request: Request,
) -> Response:
    """The guards of all streams ask them now and then, to see whether what was learned does harm."""
    note(request, gallery=gallery)
    canaries = await decode_canaries(body.canaries, settings, engine, decoders)
    return json_response(await engine.set_canaries(gallery, canaries))
