from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import numpy as np
import pytest

from service.errors import DeadlineExceeded, QueueFull
from service.http.app import create_app
from service.settings import Settings
from tests.service.http.fake_engine import DIMENSION, FakeEngine, kinds
from tests.service.http.pictures import bomb, encoded, png
from tests.service.http.shape import failure

pytestmark = pytest.mark.anyio


async def post(http: httpx.AsyncClient, body: Any) -> httpx.Response:
    return await http.post("/retrieve", json=body)


async def test_text_is_answered_with_hits_and_what_was_done(http: httpx.AsyncClient) -> None:
    response = await post(http, {"queries": [{"text": "a red circle"}], "k": 2})
    assert response.status_code == 200
    assert response.json() == {
        "results": [
            {
                "hits": [
                    {
                        "id": "scene-0",
                        "score": 1.0,
                        "payload": {"colour": "red", "n": 0},
                        "preview": "/galleries/demo/previews/scene-0?v=b52481e787e2",
                    },
                    {"id": "scene-1", "score": 0.9, "payload": {"colour": "red", "n": 1}},
                ]
            }
        ],
        "adaptation": {
            "method": "tcr",
            "mode": "async",
            "direction": "text->text",
            "state_version": 3,
            "status": "queued",
            "reason": "",
            "batch_size": 1,
        },
        "timings_ms": {"wait": 0.1, "encode": 0.2, "search": 0.3, "adapt": 0.4, "total": 1.0},
        "gallery": "demo",
        "stream": "default",
    }


async def test_options_reach_the_engine(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    options = {
        "gallery": "demo",
        "stream": "Shop-7",
        "k": 3,
        "target": "image",
        "adapt": "sync",
        "filter": {"colour": {"in": ["red"]}},
        "deadline_ms": 50,
    }
    assert (await post(http, {"queries": [{"text": "x"}], **options})).status_code == 200
    (asked,) = engine.requests
    assert {name: getattr(asked, name) for name in options} == options


async def test_request_of_mixed_kinds_says_so_and_lists_its_parts(http: httpx.AsyncClient) -> None:
    queries = [{"text": "a"}, {"embedding": [1.0] * DIMENSION}, {"text": "b"}]
    body = (await post(http, {"queries": queries})).json()
    assert body["adaptation"]["status"] == "mixed"
    assert body["adaptation"]["state_version"] is None
    assert [part["query_indices"] for part in body["parts"]] == [[0, 2], [1]]
    assert [part["direction"] for part in body["parts"]] == ["text->text", "embedding->text"]


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,"])
async def test_picture_as_base64_or_data_uri_reaches_the_engine_as_pixels(
    http: httpx.AsyncClient, engine: FakeEngine, prefix: str
) -> None:
    response = await post(http, {"queries": [{"image": prefix + encoded(png())}]})
    assert response.status_code == 200
    pixels = engine.requests[0].queries[0].pixels
    assert pixels is not None
    assert (pixels.shape, pixels.dtype) == ((3, 6, 8), np.uint8)
    assert pixels[:, 0, 0].tolist() == [255, 0, 0]


async def test_text_and_picture_together_are_one_query(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    queries = [{"text": "in blue", "image": encoded(png())}, {"text": "a"}, {"image": encoded(png())}]
    body = (await post(http, {"queries": queries, "target": "anchor"})).json()
    (asked,) = engine.requests
    assert kinds(asked.queries) == ["image+text", "text", "image"]
    assert asked.target == "anchor"
    assert len(body["results"]) == 3


async def test_answer_says_what_was_observed_and_what_imputed(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.completed = True
    queries = [{"text": "a"}, {"embedding": [1.0] * DIMENSION}]
    of_text, of_embedding = (await post(http, {"queries": queries})).json()["results"]
    assert of_text["query"] == {
        "parts": {
            "image": {"observed": False, "confidence": 0.4},
            "text": {"observed": True, "confidence": 1.0},
        },
        "novelty": 0.25,
    }
    assert "query" not in of_embedding
    assert of_text["hits"][0]["parts"] == {
        "image": {"observed": False, "confidence": 0.5},
        "text": {"observed": True, "confidence": 1.0},
    }


async def test_form_with_pictures_and_text_keeps_their_order(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    parts = [
        ("image", ("a.png", png(colour="blue"), "image/png")),
        ("text", (None, "a red circle")),
        ("image", ("b.png", png(colour="red"), "image/png")),
        ("k", (None, "4")),
        ("stream", (None, "camera")),
        ("filter", (None, '{"n": 1}')),
    ]
    response = await http.post("/retrieve", files=parts)
    assert response.status_code == 200, response.text
    (asked,) = engine.requests
    assert kinds(asked.queries) == ["image", "text", "image"]
    assert asked.queries[0].pixels[:, 0, 0].tolist() == [0, 0, 255]  # type: ignore[index]
    assert (asked.k, asked.stream, asked.filter) == (4, "camera", {"n": 1})


@pytest.mark.parametrize("kind", ["image/png", "application/octet-stream"])
async def test_raw_picture_takes_its_options_from_the_url(
    http: httpx.AsyncClient, engine: FakeEngine, kind: str
) -> None:
    response = await http.post(
        "/retrieve?k=2&adapt=off&filter=%7B%22n%22%3A1%7D", content=png(), headers={"Content-Type": kind}
    )
    assert response.status_code == 200, response.text
    (asked,) = engine.requests
    assert (asked.k, asked.adapt, asked.filter, kinds(asked.queries)) == (2, "off", {"n": 1}, ["image"])


BAD_BODIES: list[tuple[str, bytes, int, str, str]] = [
    ("not JSON", b"{queries", 400, "not_json", "not valid JSON"),
    ("empty body", b"", 400, "not_json", "not valid JSON"),
    ("half a character", b'{"queries": [{"text": "\xff"}]}', 400, "not_json", "not valid JSON"),
    ("half a surrogate", b'{"queries": [{"text": "\\ud800"}]}', 400, "not_json", "not valid JSON"),
    ("very deep", b'{"filter": ' + b"[" * 100_000, 400, "not_json", "recursion"),
    ("a list", b"[]", 422, "invalid_request", "object"),
    ("no queries", b"{}", 422, "invalid_request", "queries: Field required"),
    ("empty list", b'{"queries": []}', 422, "invalid_request", "queries: "),
    ("empty text", b'{"queries": [{"text": ""}]}', 422, "invalid_request", "queries[0].text: "),
    ("blank text", b'{"queries": [{"text": " \\n"}]}', 422, "invalid_request", "queries[0].text: "),
    ("nothing in a query", b'{"queries": [{}]}', 422, "invalid_request", "a text, a picture or both"),
    (
        "picture and embedding",
        b'{"queries": [{"image": "aaaa", "embedding": [1, 0, 0, 0]}]}',
        422,
        "invalid_request",
        "an embedding alone",
    ),
    ("unknown target", b'{"queries": [{"text": "a"}], "target": "both"}', 422, "invalid_request", "target: "),
    (
        "two in a query",
        b'{"queries": [{"text": "a", "embedding": [1, 0, 0, 0]}]}',
        422,
        "invalid_request",
        "an embedding alone",
    ),
    ("number as text", b'{"queries": [{"text": 5}]}', 422, "invalid_request", "queries[0].text: "),
    ("text as number", b'{"queries": [{"text": "a"}], "k": "5"}', 422, "invalid_request", "k: "),
    ("true as number", b'{"queries": [{"text": "a"}], "k": true}', 422, "invalid_request", "k: "),
    ("k 0", b'{"queries": [{"text": "a"}], "k": 0}', 422, "invalid_request", "k: "),
    ("k over", b'{"queries": [{"text": "a"}], "k": 1001}', 422, "invalid_request", "k: at most 1000"),
    ("unknown field", b'{"queries": [{"text": "a"}], "top": 3}', 422, "invalid_request", "top: "),
    (
        "unknown field of a query",
        b'{"queries": [{"text": "a", "url": "http://x"}]}',
        422,
        "invalid_request",
        "queries[0].url: ",
    ),
    (
        "gallery name",
        b'{"queries": [{"text": "a"}], "gallery": "../x"}',
        422,
        "invalid_request",
        "gallery: ",
    ),
    (
        "stream name",
        b'{"queries": [{"text": "a"}], "stream": "a/../b"}',
        422,
        "invalid_request",
        "stream: ",
    ),
    ("adapt", b'{"queries": [{"text": "a"}], "adapt": "yes"}', 422, "invalid_request", "adapt: "),
    ("target", b'{"queries": [{"text": "a"}], "target": "audio"}', 422, "invalid_request", "target: "),
    ("filter", b'{"queries": [{"text": "a"}], "filter": [1]}', 422, "invalid_request", "filter: "),
    (
        "filter with NaN",
        b'{"queries": [{"text": "a"}], "filter": {"n": NaN}}',
        422,
        "invalid_request",
        "filter: ",
    ),
    ("deadline", b'{"queries": [{"text": "a"}], "deadline_ms": 0}', 422, "invalid_request", "deadline_ms: "),
    (
        "NaN",
        b'{"queries": [{"embedding": [NaN, 1, 1, 1]}]}',
        422,
        "invalid_request",
        "queries[0].embedding[0]: ",
    ),
    (
        "infinity by size",
        b'{"queries": [{"embedding": [1e999, 1, 1, 1]}]}',
        422,
        "invalid_request",
        "queries[0].embedding[0]: ",
    ),
    (
        "too large for 32 bits",
        b'{"queries": [{"embedding": [1e300, 1, 1, 1]}]}',
        422,
        "bad_embedding",
        "queries[0].embedding: ",
    ),
    (
        "wrong size",
        b'{"queries": [{"embedding": [1, 1, 1]}]}',
        422,
        "bad_embedding",
        "has 3 numbers; the encoder's vectors have 4",
    ),
    ("zero", b'{"queries": [{"embedding": [0, 0, 0, 0]}]}', 422, "bad_embedding", "is zero"),
    (
        "zero in 32 bits",
        b'{"queries": [{"embedding": [1e-60, 0, 0, 0]}]}',
        422,
        "bad_embedding",
        "is zero",
    ),
    ("no base64", b'{"queries": [{"text": "a"}, {"image": "@@@"}]}', 422, "bad_image", "queries[1].image: "),
    (
        "a path",
        b'{"queries": [{"image": "/etc/passwd"}]}',
        422,
        "bad_image",
        "queries[0].image: ",
    ),
    (
        "a URL",
        b'{"queries": [{"image": "http://localhost/x.png"}]}',
        422,
        "bad_image",
        "queries[0].image: ",
    ),
    ("empty picture", b'{"queries": [{"image": ""}]}', 422, "bad_image", "queries[0].image: "),
    (
        "data URI of no picture",
        b'{"queries": [{"image": "data:text/plain;base64,aGk="}]}',
        422,
        "bad_image",
        "data:image/png",
    ),
]


@pytest.mark.parametrize(
    ("body", "status", "code", "words"),
    [case[1:] for case in BAD_BODIES],
    ids=[case[0] for case in BAD_BODIES],
)
async def test_bad_body_is_refused_with_the_place_of_the_mistake(
    http: httpx.AsyncClient, engine: FakeEngine, body: bytes, status: int, code: str, words: str
) -> None:
    response = await http.post("/retrieve", content=body, headers={"Content-Type": "application/json"})
    assert words in failure(response, status, code)["message"]
    assert engine.requests == []


@pytest.mark.parametrize(
    ("picture", "status", "code"),
    [
        (b"hello", 422, "bad_image"),
        (png(40, 40)[:60], 422, "bad_image"),
        (png()[:30] + bytes(20) + png()[50:], 422, "bad_image"),
        (bomb(), 413, "image_too_large"),
    ],
    ids=["no picture", "truncated", "corrupt", "bomb"],
)
async def test_bad_picture_is_refused_by_its_index(
    http: httpx.AsyncClient, picture: bytes, status: int, code: str
) -> None:
    queries = [{"image": encoded(png())}, {"image": encoded(picture)}]
    error = failure(await post(http, {"queries": queries}), status, code)
    assert error["details"]["field"] == "queries[1].image"
    assert "queries[1].image" in error["message"]


async def test_text_of_100_000_characters_is_refused_without_repeating_it(http: httpx.AsyncClient) -> None:
    response = await post(http, {"queries": [{"text": "a"}, {"text": "b" * 100_000}]})
    error = failure(response, 413, "too_large")
    assert "queries[1].text" in error["message"]
    assert "10000" in error["message"]


async def test_too_many_queries_are_refused(http: httpx.AsyncClient) -> None:
    error = failure(await post(http, {"queries": [{"text": "a"}] * 257}), 413, "too_large")
    assert error["details"] == {"max_queries": 256}


async def test_too_many_form_fields_are_refused(http: httpx.AsyncClient) -> None:
    parts = [("text", (None, "a"))] * 257
    failure(await http.post("/retrieve", files=parts), 413, "too_large")
    failure(await http.post("/retrieve", files=parts * 2), 400, "bad_request")


async def test_mistakes_are_listed_up_to_a_limit(http: httpx.AsyncClient) -> None:
    error = failure(await post(http, {"queries": [{"text": 1}] * 200}), 422, "invalid_request")
    assert len(error["details"]["errors"]) == 20
    assert "more)" in error["message"]


async def test_long_name_of_an_unknown_field_is_cut(http: httpx.AsyncClient) -> None:
    body = {"queries": [{"text": "a"}], "x" * 100_000: 1}
    failure(await post(http, body), 422, "invalid_request")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("text/plain", "'text/plain'"),
        (None, "no Content-Type"),
        ("application/x-www-form-urlencoded", "form-data"),
    ],
)
async def test_other_content_types_are_refused(http: httpx.AsyncClient, kind: str | None, words: str) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    response = await http.post("/retrieve", content=b"queries=a", headers=headers)
    assert words in failure(response, 415, "unsupported_media_type")["message"]


async def test_options_in_the_url_beside_a_json_body_are_refused(http: httpx.AsyncClient) -> None:
    response = await http.post("/retrieve?k=5", json={"queries": [{"text": "a"}]})
    failure(response, 422, "invalid_request")


@pytest.mark.parametrize(
    "parts",
    [
        [("k", (None, "4"))],
        [("text", (None, " "))],
        [("text", (None, "a")), ("k", (None, "4")), ("k", (None, "5"))],
        [("text", (None, "a")), ("k", (None, "many"))],
        [("text", (None, "a")), ("colour", (None, "red"))],
        [("text", (None, "a")), ("filter", (None, "{"))],
        [("text", (None, "a")), ("filter", (None, '{"n": NaN}'))],
        [("text", ("a.txt", b"a file", "text/plain"))],
    ],
    ids=["no query", "blank", "twice", "k", "unknown", "filter", "filter with NaN", "text as file"],
)
async def test_bad_form_is_refused(http: httpx.AsyncClient, engine: FakeEngine, parts: Any) -> None:
    failure(await http.post("/retrieve", files=parts), 422, "invalid_request")
    assert engine.requests == []


async def test_form_that_is_none_is_refused(http: httpx.AsyncClient) -> None:
    response = await http.post("/retrieve", content=b"hello", headers={"Content-Type": "multipart/form-data"})
    failure(response, 400, "bad_request")


class TestSmallLimits:
    """A server that takes bodies of at most 2000 bytes and pictures of at most 500."""

    @pytest.fixture
    def settings(self) -> Settings:
        return Settings(max_body_bytes=2000, max_image_bytes=500)

    async def test_announced_body_is_refused_before_it_is_read(self, http: httpx.AsyncClient) -> None:
        failure(await post(http, {"queries": [{"text": "a" * 3000}]}), 413, "too_large")

    async def test_chunked_body_is_refused_while_it_is_read(self, http: httpx.AsyncClient) -> None:
        sent = 0

        async def chunks() -> Any:
            nonlocal sent
            for _ in range(1000):
                sent += 1
                yield b" " * 100

        response = await http.post(
            "/retrieve", content=chunks(), headers={"Content-Type": "application/json"}
        )
        failure(response, 413, "too_large")
        assert sent < 30

    async def test_form_is_refused_while_it_is_read(self, http: httpx.AsyncClient) -> None:
        parts = [("image", ("a.png", bytes(3000), "image/png"))]
        failure(await http.post("/retrieve", files=parts), 413, "too_large")

    async def test_picture_of_too_many_bytes_is_refused_in_every_form(self, http: httpx.AsyncClient) -> None:
        large = png() + bytes(600)
        failure(await post(http, {"queries": [{"image": encoded(large)}]}), 413, "image_too_large")
        form = await http.post("/retrieve", files=[("image", ("a.png", large, "image/png"))])
        failure(form, 413, "image_too_large")
        raw = await http.post("/retrieve", content=large, headers={"Content-Type": "image/png"})
        failure(raw, 413, "too_large")


async def test_full_queue_is_429_with_the_time_to_wait(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.failure = QueueFull("1024 queries are waiting", retry_after_s=1.2)
    response = await post(http, {"queries": [{"text": "a"}]})
    assert failure(response, 429, "queue_full")["details"] == {"retry_after_s": 1.2}
    assert response.headers["retry-after"] == "2"


async def test_missed_deadline_is_504(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.failure = DeadlineExceeded("no answer within 0.1 s")
    failure(await post(http, {"queries": [{"text": "a"}]}), 504, "deadline_exceeded")


async def test_engine_that_is_not_ready_is_503(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.ready, engine.why_not_ready = False, "loading the encoder"
    response = await post(http, {"queries": [{"text": "a"}]})
    assert "loading the encoder" in failure(response, 503, "not_ready")["message"]
    assert response.headers["retry-after"] == "1"


async def test_unknown_gallery_is_404(http: httpx.AsyncClient) -> None:
    response = await post(http, {"queries": [{"text": "a"}], "gallery": "none"})
    failure(response, 404, "unknown_gallery")


async def test_client_that_leaves_drops_its_query(engine: FakeEngine, settings: Settings) -> None:
    """The ASGI messages by hand: the body, and then the disconnect while the engine still works."""
    engine.waits = asyncio.Event()
    body = json.dumps({"queries": [{"text": "a"}]}).encode()
    arrived = asyncio.Event()
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        if not arrived.is_set():
            arrived.set()
            return {"type": "http.request", "body": body, "more_body": False}
        while not engine.requests:
            await asyncio.sleep(0)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": "/retrieve",
        "raw_path": b"/retrieve",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
        "scheme": "http",
        "server": ("attune", 80),
        "client": ("client", 1),
        "root_path": "",
    }
    async with asyncio.timeout(10):
        await create_app(settings, engine)(scope, receive, send)
    assert engine.cancelled == 1
    assert sent == []
    labels = {"route": "/retrieve", "method": "POST", "status": "499"}
    assert engine.metrics.value("attune_http_requests_total", **labels) == 1


async def test_engine_that_fails_while_the_client_waits_is_heard(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.failure = RuntimeError("the secret inside")
    response = await post(http, {"queries": [{"text": "a"}]})
    assert "secret" not in json.dumps(failure(response, 500, "internal"))
