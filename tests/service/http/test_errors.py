from __future__ import annotations

import importlib
import inspect
import io
import json
from typing import Any

import httpx
import pytest
import structlog
from structlog.testing import capture_logs

import service.errors
from service.errors import BY_CLASS
from service.http.errors import failure_of, field_path
from tests.service.http.fake_engine import FakeEngine
from tests.service.http.shape import assert_one_shape, failure

pytestmark = pytest.mark.anyio


def test_table_names_every_error_of_the_parts_below_and_no_other() -> None:
    defined = set()
    adapters = ("adapters.base", "adapters.state", "adapters.classification", "adapters.calibration")
    for module in (*adapters, "index.base", "encoders.base", "encoders.audio", "encoders.clips"):
        members = inspect.getmembers(importlib.import_module(module), inspect.isclass)
        defined |= {
            f"{module}.{name}"
            for name, member in members
            if issubclass(member, Exception) and member.__module__ == module
        }
    assert set(BY_CLASS) == defined


def test_every_service_error_keeps_its_status_and_code() -> None:
    for _, error in inspect.getmembers(service.errors, inspect.isclass):
        if not issubclass(error, service.errors.ServiceError):
            continue
        arguments: dict[str, Any] = {"retry_after_s": 0.1} if error is service.errors.QueueFull else {}
        found = failure_of(error("why", **arguments))
        assert found is not None
        assert (found.status, found.code, found.message) == (error.status, error.code, "why")
        assert ("Retry-After" in found.headers) == (error.status in (429, 503))


def test_subclass_of_a_known_error_is_treated_like_it() -> None:
    from encoders.base import BadImage

    class Odd(BadImage):
        """As a decoder might define."""

    found = failure_of(Odd("odd"))
    assert found is not None
    assert (found.status, found.code) == (422, "bad_image")


def test_field_path_is_readable() -> None:
    assert field_path(["queries", 3, "text"]) == "queries[3].text"
    assert field_path([]) == ""


@pytest.mark.parametrize("path", ["/nothing", "/retrieve/", "/galleries/demo/", "/admin", "/" + "a" * 5000])
async def test_unknown_route_is_404_in_the_one_shape(http: httpx.AsyncClient, path: str) -> None:
    failure(await http.get(path), 404, "unknown_route")


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/retrieve"), ("PATCH", "/galleries"), ("DELETE", "/livez")]
)
async def test_unknown_method_is_405_and_says_which_there_are(
    http: httpx.AsyncClient, method: str, path: str
) -> None:
    response = await http.request(method, path)
    assert response.headers["allow"] in failure(response, 405, "method_not_allowed")["message"]


async def test_unexpected_error_is_500_without_internals_and_logged_with_them(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.failure = ZeroDivisionError("the secret inside /srv/attune")
    with capture_logs() as logs:
        response = await http.get("/galleries", headers={"X-Request-Id": "my-id.1"})
    error = failure(response, 500, "internal")
    assert error["details"] == {"request_id": "my-id.1"}
    assert "secret" not in response.text
    assert [entry["exc_info"] for entry in logs if entry["event"] == "unexpected error"] == [engine.failure]


async def test_request_id_is_kept_or_made(http: httpx.AsyncClient) -> None:
    kept = await http.get("/livez", headers={"X-Request-Id": "a-b_c.1"})
    assert kept.headers["x-request-id"] == "a-b_c.1"
    for odd in ("", "a b", "x" * 200, 'a"b'):
        made = (await http.get("/livez", headers={"X-Request-Id": odd})).headers["x-request-id"]
        assert len(made) == 32


async def test_one_log_line_a_request_without_its_content(http: httpx.AsyncClient) -> None:
    with capture_logs() as logs:
        await http.post("/retrieve", json={"queries": [{"text": "private words"}], "stream": "shop-7"})
    (line,) = logs
    assert {
        name: line[name] for name in ("event", "route", "method", "status", "stream", "state_version")
    } == {
        "event": "request",
        "route": "/retrieve",
        "method": "POST",
        "status": 200,
        "stream": "shop-7",
        "state_version": 3,
    }
    assert line["ms"] > 0
    assert "private" not in str(logs)


async def test_log_line_of_a_refusal_has_its_code(http: httpx.AsyncClient) -> None:
    with capture_logs() as logs:
        await http.get("/nothing")
        await http.get("/galleries/none")
    assert [line["code"] for line in logs] == ["unknown_route", "unknown_gallery"]


LOGGED: list[tuple[str, str, int, dict[str, Any]]] = [
    ("PUT", "/admin/streams/s", 200, {"stream": "s", "state_version": 0}),
    ("GET", "/admin/streams/s", 200, {"stream": "s", "state_version": 0}),
    ("POST", "/admin/streams/s/reset", 200, {"stream": "s", "state_version": 0}),
    ("GET", "/admin/streams/s/snapshots", 200, {"stream": "s"}),
    ("GET", "/admin/streams/none", 404, {"stream": "none", "code": "unknown_stream"}),
    ("DELETE", "/admin/streams/none", 404, {"stream": "none", "code": "unknown_stream"}),
    (
        "POST",
        "/admin/streams/s/snapshots/none/restore",
        404,
        {"stream": "s", "snapshot": "none", "code": "unknown_snapshot"},
    ),
    ("POST", "/admin/streams/s/snapshots/import", 415, {"stream": "s", "code": "unsupported_media_type"}),
    ("GET", "/galleries/demo/items/scene-0", 200, {"gallery": "demo"}),
    ("GET", "/galleries/none", 404, {"gallery": "none", "code": "unknown_gallery"}),
    ("POST", "/galleries/demo/items", 422, {"gallery": "demo", "code": "invalid_request"}),
    ("POST", "/retrieve", 422, {"code": "invalid_request"}),
]


@pytest.mark.parametrize(("method", "path", "status", "fields"), LOGGED)
async def test_log_line_says_which_stream_gallery_and_version_it_was(
    http: httpx.AsyncClient, method: str, path: str, status: int, fields: dict[str, Any]
) -> None:
    await http.put("/admin/streams/s", json={})
    body = None if path.endswith("import") or method == "GET" else {}
    with capture_logs() as logs:
        response = await http.request(method, path, json=body, headers={"X-Request-Id": "r-1"})
    assert response.status_code == status
    (line,) = logs
    expected = {"request_id": "r-1", "status": status, "method": method} | fields
    assert {name: line.get(name) for name in expected} == expected


async def test_log_line_of_a_failed_query_has_its_stream(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.failure = ZeroDivisionError("inside")
    with capture_logs() as logs:
        await http.post("/retrieve", json={"queries": [{"text": "a"}], "stream": "shop-7"})
    assert [(line["event"], line["stream"]) for line in logs] == [
        ("unexpected error", "shop-7"),
        ("request", "shop-7"),
    ]


async def test_name_that_is_none_does_not_reach_the_log(http: httpx.AsyncClient) -> None:
    with capture_logs() as logs:
        await http.get("/admin/streams/" + "a" * 129)
        await http.get("/galleries/a%0Ab")
    assert not [name for line in logs for name in ("stream", "gallery") if name in line]


async def test_log_line_of_a_mixed_request_has_the_version_of_each_part(http: httpx.AsyncClient) -> None:
    queries = [{"text": "a"}, {"embedding": [1.0, 0.0, 0.0, 0.0]}]
    with capture_logs() as logs:
        await http.post("/retrieve", json={"queries": queries})
    assert logs[0]["state_versions"] == [3, 3]


def test_configured_logs_are_json_lines_on_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    import logging
    import sys

    from service.http import logs

    stream = io.StringIO()
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    monkeypatch.setattr(sys, "stderr", stream)
    try:
        logs.configure("info")
        structlog.get_logger("attune.test").info("request", status=200)
        structlog.get_logger("attune.test").debug("too quiet")
        logging.getLogger("elsewhere").warning("of the %s library", "standard")
    finally:
        root.handlers[:], root.level = handlers, level
        structlog.reset_defaults()
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(line["event"], line["level"], line["logger"]) for line in lines] == [
        ("request", "info", "attune.test"),
        ("of the standard library", "warning", "elsewhere"),
    ]


async def test_every_route_fails_in_the_one_shape(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    """Walks the OpenAPI: each route with a bad body, a bad name, a failing and an unready engine."""
    paths = (await http.get("/openapi.json")).json()["paths"]
    del paths["/admin/events"]  # takes nothing that could be bad, and its answer has no end
    failures = 0
    for template, methods in paths.items():
        good = template.replace("{id}", "scene-0").replace("{gallery}", "demo")
        good = good.replace("{stream}", "s").replace("{snapshot}", "n")
        bad = template.replace("{gallery}", "..x").replace("{stream}", "..x").replace("{snapshot}", "..x")
        for method in methods:
            responses = [await http.request(method, bad), await http.request(method, good, content=b"{bad")]
            engine.failure = ValueError("inside")
            headers = {"Content-Type": "application/json"}
            responses.append(await http.request(method, good, content=b"{}", headers=headers))
            engine.failure, engine.ready = None, False
            responses.append(await http.request(method, good))
            engine.ready = True
            responses.append(await http.request("BREW", good))
            for response in responses:
                if response.status_code >= 400:
                    failures += 1
                    assert_one_shape(response)
    assert failures > 3 * len(paths)


async def test_documentation_shows_the_error_shape_and_all_forms_of_a_query(http: httpx.AsyncClient) -> None:
    document = (await http.get("/openapi.json")).json()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation["summary"], (method, path)
            for status in ("4XX", "5XX"):
                schema = operation["responses"][status]["content"]["application/json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/ErrorBody"}
    retrieve = document["paths"]["/retrieve"]["post"]
    content = retrieve["requestBody"]["content"]
    assert set(content) == {"application/json", "multipart/form-data", "image/*", "application/octet-stream"}
    assert all("example" in form or "examples" in form for form in content.values())
    assert {parameter["name"] for parameter in retrieve["parameters"]} >= {"k", "stream", "filter"}


async def test_documentation_refers_only_to_schemas_that_it_has(http: httpx.AsyncClient) -> None:
    text = (await http.get("/openapi.json")).text
    known = set(json.loads(text)["components"]["schemas"])
    wanted = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert wanted <= known
    assert "RetrieveBody" in wanted


async def test_examples_of_the_documentation_are_accepted(http: httpx.AsyncClient) -> None:
    """All but those with a shortened picture."""
    content = (await http.get("/openapi.json")).json()["paths"]["/retrieve"]["post"]["requestBody"]["content"]
    for name, example in content["application/json"]["examples"].items():
        status = (await http.post("/retrieve", json=example["value"])).status_code
        assert status == (422 if name in ("image", "composed") else 200)
