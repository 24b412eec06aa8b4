"""What travels between processes comes back as it went."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from index.base import GalleryNotFound
from service.codec import (
    BadMessage,
    RemoteFailure,
    pack_canaries,
    pack_job,
    pack_reply,
    unpack_canaries,
    unpack_job,
    unpack_reply,
)
from service.errors import BadRequest, QueueFull
from service.messages import (
    Adaptation,
    Canary,
    ClassifyJob,
    ClassifyJobAnswer,
    Completeness,
    ControlJob,
    JobAnswer,
    LabelScore,
    NewItem,
    Part,
    Query,
    RankedHit,
    RetrieveJob,
    Sample,
    SampleAnswer,
    Timings,
    TrackKey,
)

KEY = TrackKey("shop", "demo", "image", "text")


def sent(job: RetrieveJob | ControlJob) -> RetrieveJob | ControlJob:
    return unpack_job(pack_job(job, reply_to="api-1", shift_s=1e9)).job(shift_s=1e9)


def test_a_retrieve_job_comes_back_with_its_pixels_and_its_times() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8), dtype=np.uint8)
    now = time.monotonic()
    job = RetrieveJob(
        KEY, "sync", (Query(pixels=pixels), Query(pixels=pixels[:, ::-1])), 5,
        filter={"price": {"lt": 3}}, accepted_at=now, deadline_at=now + 7, trace={"request_id": "r"},
    )  # fmt: skip
    back = sent(job)
    assert isinstance(back, RetrieveJob)
    for mine, theirs in zip(job.queries, back.queries, strict=True):
        np.testing.assert_array_equal(mine.pixels, theirs.pixels)
        assert theirs.pixels is not None
        assert theirs.pixels.dtype == np.uint8
    assert (back.id, back.key, back.mode, back.k, back.filter, back.trace) == (
        job.id, KEY, "sync", 5, {"price": {"lt": 3}}, {"request_id": "r"},
    )  # fmt: skip
    assert back.accepted_at == pytest.approx(now, abs=0.05)
    assert back.deadline_at == pytest.approx(now + 7, abs=0.05)


def test_texts_and_embeddings_come_back() -> None:
    vector = np.arange(4, dtype=np.float32)
    back = sent(RetrieveJob(KEY, "off", (Query(text="ein Böötchen"),), 1))
    assert isinstance(back, RetrieveJob)
    assert back.queries[0].text == "ein Böötchen"
    back = sent(RetrieveJob(KEY, "off", (Query(embedding=vector),), 1))
    assert isinstance(back, RetrieveJob)
    np.testing.assert_array_equal(back.queries[0].embedding, vector)


def test_composed_queries_of_an_anchor_track_come_back() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8), dtype=np.uint8)
    key = TrackKey("shop", "demo", "image+text", "anchor")
    back = sent(RetrieveJob(key, "async", (Query(text="in blue", pixels=pixels),), 1))
    assert isinstance(back, RetrieveJob)
    assert (back.key, back.kind, back.queries[0].text) == (key, "image+text", "in blue")
    np.testing.assert_array_equal(back.queries[0].pixels, pixels)
    back = sent(RetrieveJob(key, "async", (Query(text="in blue"),), 1))
    assert isinstance(back, RetrieveJob)
    assert (back.key, back.kind) == (key, "text")


def test_composed_canaries_come_back() -> None:
    pixels = np.zeros((3, 8, 8), np.uint8)
    canaries = (Canary(Query(text="in blue", pixels=pixels), "a"),)
    (found,) = unpack_canaries(pack_canaries(canaries))
    assert (found.query.kind, found.query.text, found.answer) == ("image+text", "in blue", "a")
    np.testing.assert_array_equal(found.query.pixels, pixels)


def test_what_was_observed_and_imputed_comes_back() -> None:
    parts = {"image": Part(False, 0.74), "text": Part(True, 1.0)}
    answer = JobAnswer(
        ((RankedHit("a", 0.5, {}, parts), RankedHit("b", 0.25, {})),),
        Adaptation("calmrl", "sync", "image+text->anchor", 3, "applying", "", 1),
        Timings(1, 2, 3, 4, 10),
        (Completeness(parts, 0.43),),
    )
    assert unpack_reply(pack_reply(answer)) == answer
    unknown = replace(answer, completeness=(Completeness(parts),))
    assert unpack_reply(pack_reply(unknown)) == unknown


def test_gallery_items_and_files_come_back() -> None:
    item = NewItem(
        "a", {"n": [1, None, 2.5]}, "text", None, {"image": np.ones(3, np.float32)}, preview=b"RIFF\x00\xff"
    )
    back = sent(ControlJob("upsert_items", {"name": "g", "items": (item,)}, gallery="g", items=1))
    assert isinstance(back, ControlJob)
    (found,) = back.arguments["items"]
    assert isinstance(found, NewItem)
    assert (found.id, found.payload, found.text, found.pixels) == ("a", {"n": [1, None, 2.5]}, "text", None)
    np.testing.assert_array_equal(found.embeddings["image"], np.ones(3))
    assert found.preview == b"RIFF\x00\xff"
    back = sent(ControlJob("import_snapshot", {"stream": "s", "data": b"\x00\xff"}, stream="s"))
    assert isinstance(back, ControlJob)
    assert back.arguments["data"] == b"\x00\xff"


def test_an_answer_comes_back() -> None:
    answer = JobAnswer(
        ((RankedHit("a", 0.5, {"x": 1}, preview_version="0123456789ab"),), ()),
        Adaptation("tcr", "sync", "image->text", 3, "applying", "", 2),
        Timings(1, 2, 3, 4, 10),
    )
    assert unpack_reply(pack_reply(answer)) == answer
    assert unpack_reply(pack_reply({"name": "g", "items": 3})) == {"name": "g", "items": 3}
    assert unpack_reply(pack_reply(None)) is None
    preview = {"version": "0123456789ab", "content": b"RIFF\x00\xff"}
    assert unpack_reply(pack_reply(preview)) == preview


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (BadRequest("no", code="odd", details={"field": "k"}), 400, "odd"),
        (QueueFull("full", retry_after_s=2.5), 429, "queue_full"),
        (GalleryNotFound("none"), 404, "unknown_gallery"),
        (KeyError("/etc/secret"), 500, "internal"),
    ],
)
def test_a_failure_is_told_as_it_was(error: Exception, status: int, code: str) -> None:
    with pytest.raises(RemoteFailure) as refusal:
        unpack_reply(pack_reply(error))
    assert (refusal.value.status, refusal.value.code) == (status, code)
    assert "secret" not in str(refusal.value)
    assert refusal.value.retry_after_s == getattr(error, "retry_after_s", None)


def test_a_sample_travels_bit_for_bit() -> None:
    fbank = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
    sample = Sample(fbank=fbank, pixels=np.arange(12, dtype=np.uint8).reshape(3, 2, 2))
    key = TrackKey("s", "classes", "audio+video", "label")
    back = sent(ClassifyJob(key, "async", (sample,), 3, again=True))
    assert isinstance(back, ClassifyJob)
    assert np.array_equal(back.samples[0].fbank, fbank)
    assert np.array_equal(back.samples[0].pixels, sample.pixels)
    assert (back.key, back.top, back.labels, back.again, back.kind) == (key, 3, None, True, "audio+video")


def test_labels_travel_with_their_template() -> None:
    key = TrackKey("s", "labels:0123456789ab", "text", "text")
    back = sent(ClassifyJob(key, "sync", (Sample(text="x"),), 1, ("a", "ü"), "a {}"))
    assert isinstance(back, ClassifyJob)
    assert (back.labels, back.template, back.kind) == (("a", "ü"), "a {}", "text")


def test_a_classified_sample_comes_back_as_it_was() -> None:
    adaptation = Adaptation("tent", "sync", "audio+video->label", 3, "applied", "", 1)
    sample = SampleAnswer((LabelScore("dog", 1, 0.75),), 0.5, ("video",))
    parts = {"audio": Part(True, 1.0), "video": Part(False, 0.25)}
    completed = replace(sample, completed_by="imputation", completeness=Completeness(parts, 0.5))
    unknown = replace(sample, completed_by="model", completeness=Completeness(parts))
    answer = ClassifyJobAnswer((sample, completed, unknown), adaptation, Timings(1.0))
    assert unpack_reply(pack_reply(answer)) == answer


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x02" + pack_job(RetrieveJob(KEY, "off", (), 1), reply_to="x", shift_s=0)[1:],
        pack_job(RetrieveJob(KEY, "off", (), 1), reply_to="x", shift_s=0)[:-3],
        b"\x01" + msgspec.msgpack.encode({"reply_to": "x", "accepted_unix": 1.0, "deadline_unix": None}),
        b"\x01" + msgspec.msgpack.encode({"reply_to": 3}),
        pack_job(ClassifyJob(KEY, "off", (), 1), reply_to="x", shift_s=0),
        b"\x01" + msgspec.msgpack.encode(msgspec.msgpack.Ext(9, b"x")),
        b"\x01" + msgspec.msgpack.encode({"reply_to": msgspec.msgpack.Ext(1, b"|O8;xxxxxxxx")}),
    ],
)
def test_bytes_that_are_no_message_are_refused(data: bytes) -> None:
    with pytest.raises(BadMessage):
        unpack_job(data)


def test_reading_and_writing_messages_needs_no_torch() -> None:
    program = "import sys, service.codec; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
