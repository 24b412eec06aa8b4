"""/classify, one request at a time: JSON and forms, sounds, pictures and clips, good and bad."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from pydantic import SecretStr
from structlog.testing import capture_logs

from encoders.audio import AudioSpec
from service.errors import DeadlineExceeded, QueueFull
from service.messages import Sample
from service.settings import Settings
from tests.service.http.fake_engine import CLASSIFIER, FakeEngine
from tests.service.http.pictures import bomb, encoded, png
from tests.service.http.shape import failure
from tests.service.http.sounds import announcing, sound, tone, wav

pytestmark = pytest.mark.anyio
PICTURE, SOUND = encoded(png()), encoded(wav())
MEL_BINS = CLASSIFIER.audio_spec.mel_bins


async def post(http: httpx.AsyncClient, samples: Any, **options: Any) -> httpx.Response:
    return await http.post("/classify", json={"samples": samples, **options})


def samples(engine: FakeEngine) -> list[Sample]:
    return [sample for request in engine.classified for sample in request.samples]


async def test_sample_is_answered_with_labels_and_what_was_done(http: httpx.AsyncClient) -> None:
    response = await post(http, {"id": "7", "audio": SOUND, "image": PICTURE}, top=2)
    assert response.status_code == 200
    assert response.json() == {
        "results": [
            {
                "id": "7",
                "labels": [{"label": "bell", "probability": 0.5}, {"label": "bird", "probability": 0.25}],
                "entropy_nats": 0.25,
                "missing": [],
                "completed_by": "",
            }
        ],
        "adaptation": {
            "method": "brimpr",
            "mode": "async",
            "direction": "audio+video->label",
            "state_version": 3,
            "status": "queued",
            "reason": "",
            "batch_size": 1,
        },
        "timings_ms": {"wait": 0.1, "encode": 0.2, "search": 0.0, "adapt": 0.4, "total": 1.0},
        "stream": "default",
        "model": "fake-av",
    }


async def test_sample_that_was_completed_says_how_and_from_what(http: httpx.AsyncClient) -> None:
    response = await post(http, {"audio": SOUND})
    (result,) = response.json()["results"]
    assert (result["missing"], result["completed_by"], result["novelty"]) == (["video"], "imputation", 0.75)
    assert result["parts"] == {
        "audio": {"observed": True, "confidence": 1.0},
        "video": {"observed": False, "confidence": 0.4},
        "fused": {"observed": False, "confidence": 0.4},
    }


async def test_options_reach_the_engine(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    options = {"stream": "Door-2", "top": 2, "adapt": "sync", "deadline_ms": 50}
    response = await post(http, [{"audio": SOUND}, {"image": PICTURE}], **options)
    assert [answer["missing"] for answer in response.json()["results"]] == [["video"], ["audio"]]
    (asked,) = engine.classified
    assert {name: getattr(asked, name) for name in options} == options
    assert (asked.labels, asked.template) == (None, "{}")


async def test_sound_becomes_a_filter_bank_and_the_picture_has_the_classifiers_size(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    await post(http, {"audio": f"data:audio/wav;base64,{SOUND}", "image": f"data:image/png;base64,{PICTURE}"})
    (sample,) = samples(engine)
    assert sample.fbank is not None
    assert sample.pixels is not None
    assert (sample.fbank.dtype, sample.fbank.shape) == (np.float32, (8, MEL_BINS))  # 0.1 s: 8 whole frames
    assert (sample.pixels.dtype, sample.pixels.shape) == (np.uint8, (3, 4, 4))


async def test_ready_filter_bank_is_taken_and_cut(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    rows = [[float(i)] * MEL_BINS for i in range(20)]
    assert (await post(http, {"fbank": rows})).status_code == 200
    (sample,) = samples(engine)
    assert sample.fbank is not None
    assert sample.fbank.tolist() == rows[: CLASSIFIER.audio_spec.frames]


async def test_middle_one_of_frames_is_used_and_no_other_is_decoded(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    frames = ["not a picture"] * 5 + [encoded(png(colour="blue"))] + ["not a picture"] * 4
    assert (await post(http, {"frames": frames})).status_code == 200
    (sample,) = samples(engine)
    assert sample.pixels is not None
    assert sample.pixels[:, 0, 0].tolist() == [0, 0, 255]


@pytest.mark.parametrize(("format", "subtype"), [("FLAC", None), ("OGG", "VORBIS"), ("WAV", "PCM_U8")])
@pytest.mark.parametrize("rate", [8_000, 44_100, 96_000])
async def test_sound_of_any_format_and_rate_is_taken(
    http: httpx.AsyncClient, engine: FakeEngine, format: str, subtype: str | None, rate: int
) -> None:
    data = sound(np.stack([tone(rate=rate)] * 2, axis=1), rate, format, subtype)
    assert (await post(http, {"audio": encoded(data)})).status_code == 200
    (sample,) = samples(engine)
    assert sample.fbank is not None
    assert np.isfinite(sample.fbank).all()


@pytest.mark.parametrize("samples_", [np.zeros(1600), np.sign(tone())], ids=["silent", "clipped"])
async def test_silent_and_clipped_sound_is_answered(
    http: httpx.AsyncClient, engine: FakeEngine, samples_: np.ndarray
) -> None:
    assert (await post(http, {"audio": encoded(wav(samples_))})).status_code == 200
    (sample,) = samples(engine)
    assert sample.fbank is not None
    assert np.isfinite(sample.fbank).all()


NAN = wav(np.full(1600, np.nan, dtype=np.float32), subtype="FLOAT")
BAD_SOUNDS: dict[str, tuple[bytes, int, str]] = {
    "empty": (b"", 422, "bad_audio"),
    "no sound": (b"hello", 422, "bad_audio"),
    "truncated": (wav()[:400], 422, "bad_audio"),
    "of zero samples": (wav(np.zeros(0)), 422, "bad_audio"),
    "shorter than a frame": (wav(np.zeros(100)), 422, "bad_audio"),
    "NaN": (NAN, 422, "bad_audio"),
    "announcing 10 hours": (announcing(36_000), 422, "bad_audio"),
    "61 s": (sound(np.zeros(61 * 16_000), format="FLAC"), 413, "audio_too_long"),
    "of 7 kHz": (wav(rate=7_000), 422, "bad_audio"),
}


@pytest.mark.parametrize(("data", "status", "code"), BAD_SOUNDS.values(), ids=BAD_SOUNDS)
async def test_bad_sound_is_refused_by_its_place_and_nothing_is_asked(
    http: httpx.AsyncClient, engine: FakeEngine, data: bytes, status: int, code: str
) -> None:
    response = await post(http, [{"audio": SOUND}, {"audio": encoded(data), "image": PICTURE}])
    error = failure(response, status, code)
    assert error["details"]["field"] == "samples[1].audio"
    assert engine.classified == []


async def test_sound_of_ten_hours_is_refused_before_it_is_decoded(http: httpx.AsyncClient) -> None:
    """Ten hours of silence at 8 kHz are a FLAC of some hundred kilobytes."""
    buffer = io.BytesIO()
    import soundfile

    with soundfile.SoundFile(buffer, "w", 8000, 1, format="FLAC", subtype="PCM_16") as file:
        for _ in range(600):
            file.write(np.zeros(60 * 8000, dtype=np.int16))
    assert len(buffer.getvalue()) < 2_000_000
    error = failure(await post(http, {"audio": encoded(buffer.getvalue())}), 413, "audio_too_long")
    assert "36000" in error["message"]


BAD_SAMPLES: list[tuple[str, Any, str, str]] = [
    ("nothing", {}, "invalid_request", "at least one of"),
    ("only an id", {"id": "a"}, "invalid_request", "at least one of"),
    ("nulls", {"audio": None, "image": None}, "invalid_request", "at least one of"),
    ("sound twice", {"audio": SOUND, "fbank": [[0.0] * 8]}, "invalid_request", "not both"),
    ("picture twice", {"image": PICTURE, "frames": [PICTURE]}, "invalid_request", "not both"),
    ("clip and picture", {"clip": "AAAA", "image": PICTURE}, "invalid_request", "nothing else"),
    ("video without frames", {"audio": SOUND, "frames": []}, "invalid_request", "at least one picture"),
    ("many frames", {"frames": [PICTURE] * 257}, "invalid_request", "256"),
    ("no base64", {"audio": "/etc/passwd"}, "bad_audio", "not base64"),
    ("a URL", {"audio": "http://localhost/a.wav"}, "bad_audio", "not base64"),
    ("another data URI", {"audio": f"data:image/png;base64,{PICTURE}"}, "bad_audio", "data:audio/"),
    ("no picture", {"image": encoded(b"hello")}, "bad_image", "samples[0].image"),
    ("no middle picture", {"frames": [PICTURE, "@"]}, "bad_image", "samples[0].frames[1]"),
    ("no clip", {"clip": encoded(b"hello")}, "bad_clip", "samples[0].clip"),
    ("truncated clip", {"clip": encoded(b"\x1a\x45\xdf\xa3" + bytes(40))}, "bad_clip", "samples[0].clip"),
    ("text for the classifier", {"text": "words"}, "unsupported_modality", "labels"),
    ("filter bank of other bins", {"fbank": [[0.0] * 7]}, "bad_audio", "8 mel bins"),
    ("ragged filter bank", {"fbank": [[0.0] * 8, [0.0] * 7]}, "bad_audio", "of one length"),
    ("empty filter bank", {"fbank": []}, "bad_audio", "one row"),
    ("filter bank of 1e300", {"fbank": [[1e300] * 8]}, "bad_audio", "finite"),
    ("wide filter bank", {"fbank": [[0.0] * 1025]}, "invalid_request", "1024"),
]


@pytest.mark.parametrize(
    ("sample", "code", "words"), [case[1:] for case in BAD_SAMPLES], ids=[case[0] for case in BAD_SAMPLES]
)
async def test_bad_sample_is_refused(
    http: httpx.AsyncClient, engine: FakeEngine, sample: Any, code: str, words: str
) -> None:
    error = failure(await post(http, [sample]), 422, code)
    assert words in error["message"]
    assert engine.classified == []


BAD_BODIES: list[tuple[bytes, int, str]] = [
    (b"", 400, "not_json"),
    (b'{"samples": [{"fbank": [[NaN]]}]}', 422, "invalid_request"),
    (b'{"samples": [{"fbank": [[Infinity]]}]}', 422, "invalid_request"),
    (b'{"samples": []}', 422, "invalid_request"),
    (b'{"samples": 3}', 422, "invalid_request"),
    (b"{}", 422, "invalid_request"),
    (b'{"samples": {"image": 3}}', 422, "invalid_request"),
    (b'{"samples": {"image": "", "top": 3}}', 422, "invalid_request"),
]


@pytest.mark.parametrize(("body", "status", "code"), BAD_BODIES)
async def test_bad_body_is_refused(http: httpx.AsyncClient, body: bytes, status: int, code: str) -> None:
    headers = {"Content-Type": "application/json"}
    failure(await http.post("/classify", content=body, headers=headers), status, code)


@pytest.mark.parametrize(
    "options",
    [
        {"top": 0},
        {"top": "5"},
        {"adapt": "maybe"},
        {"stream": "a/b"},
        {"labels": []},
        {"labels": ["one"]},
        {"labels": ["a", "a"]},
        {"labels": ["a", " "]},
        {"labels": ["a", "b" * 257]},
        {"labels": ["a", "b"], "template": "no place"},
        {"labels": ["a", "b"], "template": "{} {}"},
        {"labels": ["a", "b"], "template": "{0}"},
        {"labels": ["a", "b"], "template": "{.__class__}"},
        {"labels": ["a", "b"], "template": "{} {x}"},
        {"labels": ["a", "b"], "template": "{}" + "x" * 600},
        {"deadline_ms": 0},
        {"batch": 3},
        {"gallery": "demo"},
    ],
)
async def test_bad_option_is_refused(
    http: httpx.AsyncClient, engine: FakeEngine, options: dict[str, Any]
) -> None:
    failure(await post(http, {"text": "a"}, **options), 422, "invalid_request")
    assert engine.classified == []


async def test_too_many_labels_and_samples_are_refused(http: httpx.AsyncClient) -> None:
    labels = [f"label {i}" for i in range(1001)]
    assert failure(await post(http, {"text": "a"}, labels=labels), 413, "too_large")["details"] == {
        "max_labels": 1000
    }
    many = await post(http, [{"text": "a"}] * 257, labels=["a", "b"])
    assert failure(many, 413, "too_large")["details"] == {"max_samples": 256}


class TestZeroShot:
    async def test_texts_and_pictures_are_classified_by_labels(
        self, http: httpx.AsyncClient, engine: FakeEngine
    ) -> None:
        response = await post(
            http,
            [{"text": "words"}, {"image": PICTURE}, {"frames": [PICTURE]}],
            labels=["cat", "dog"],
            template="a photo of a {}",
        )
        body = response.json()
        assert [answer["labels"][0]["label"] for answer in body["results"]] == ["cat", "dog", "cat"]
        assert body["model"] == "fake"
        assert body["adaptation"]["status"] == "mixed"
        assert [part["query_indices"] for part in body["parts"]] == [[0], [1, 2]]
        (asked,) = engine.classified
        assert (asked.labels, asked.template) == (("cat", "dog"), "a photo of a {}")
        assert asked.samples[1].pixels is not None
        assert asked.samples[1].pixels.shape == (3, 6, 8), "the dual encoder's size"

    @pytest.mark.parametrize(
        "sample",
        [{"audio": SOUND}, {"audio": SOUND, "image": PICTURE}, {"fbank": [[0.0]]}, {"clip": "AAAA"}],
    )
    async def test_sound_is_no_modality_of_the_dual_encoder(
        self, http: httpx.AsyncClient, sample: dict[str, Any]
    ) -> None:
        failure(await post(http, sample, labels=["cat", "dog"]), 422, "unsupported_modality")

    async def test_needs_no_classifier(self, http: httpx.AsyncClient, engine: FakeEngine) -> None:
        engine.classifier = None
        failure(await post(http, {"image": PICTURE}), 404, "no_classifier")
        assert (await post(http, {"image": PICTURE}, labels=["a", "b"])).status_code == 200

    async def test_long_text_is_refused(self, http: httpx.AsyncClient) -> None:
        failure(await post(http, {"text": "a" * 10_001}, labels=["a", "b"]), 413, "too_large")


def file(data: bytes) -> tuple[str, bytes, str]:
    return ("file", data, "application/octet-stream")


class TestForm:
    async def test_sound_and_picture_pair_up_in_order(
        self, http: httpx.AsyncClient, engine: FakeEngine
    ) -> None:
        audio, image = ("audio", file(wav())), ("image", file(png()))
        form = [audio, image, image, audio, audio, image, ("top", (None, "1")), ("stream", (None, "s"))]
        response = await http.post("/classify", files=form)
        assert response.status_code == 200
        assert [answer["missing"] for answer in response.json()["results"]] == [[], [], []]
        assert (engine.classified[0].top, engine.classified[0].stream) == (1, "s")

    async def test_field_that_is_there_already_begins_the_next_sample(
        self, http: httpx.AsyncClient, engine: FakeEngine
    ) -> None:
        audio, image = ("audio", file(wav())), ("image", file(png()))
        response = await http.post("/classify", files=[audio, audio, image, image])
        assert [answer["missing"] for answer in response.json()["results"]] == [["video"], [], ["audio"]]

    async def test_texts_and_labels(self, http: httpx.AsyncClient, engine: FakeEngine) -> None:
        form = [
            ("labels", (None, "cat")),
            ("image", file(png())),
            ("text", (None, "words")),
            ("labels", (None, "dog")),
            ("template", (None, "a {}")),
        ]
        response = await http.post("/classify", files=form)
        assert len(response.json()["results"]) == 2
        assert engine.classified[0].labels == ("cat", "dog")

    @pytest.mark.parametrize(
        ("form", "status", "code"),
        [
            ([("top", (None, "1"))], 422, "invalid_request"),
            ([("audio", file(b""))], 422, "bad_audio"),
            ([("audio", file(wav())), ("top", (None, "many"))], 422, "invalid_request"),
            ([("audio", file(wav())), ("colour", (None, "red"))], 422, "invalid_request"),
            ([("audio", file(wav())), ("top", (None, "1")), ("top", (None, "2"))], 422, "invalid_request"),
            ([("text", ("a.txt", b"words", "text/plain"))], 422, "invalid_request"),
            ([("text", (None, " "))], 422, "invalid_request"),
            ([("text", (None, "words"))], 422, "unsupported_modality"),
            ([("image", file(bomb()))], 413, "image_too_large"),
            ([("clip", file(b"no clip"))], 422, "bad_clip"),
            ([("audio", file(wav()))] * 257, 413, "too_large"),
        ],
    )
    async def test_bad_form_is_refused(
        self, http: httpx.AsyncClient, engine: FakeEngine, form: Any, status: int, code: str
    ) -> None:
        failure(await http.post("/classify", files=form), status, code)
        assert engine.classified == []


def clip(with_sound: bool = True, with_pictures: bool = True) -> bytes:
    """Half a second: red, then blue from the middle on, and a tone."""
    av = pytest.importorskip("av")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as container:
        if with_pictures:
            video = container.add_stream("mpeg4", rate=10)
            video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
        if with_sound:
            audio = container.add_stream("pcm_s16le", rate=16_000, layout="mono")
        if with_pictures:
            for i in range(10):
                image = Image.new("RGB", (32, 32), "red" if i < 5 else "blue")
                container.mux(video.encode(av.VideoFrame.from_image(image)))
            container.mux(video.encode())
        if with_sound:
            pcm = (tone(1.0) * 32767).astype(np.int16)[None]
            frame = av.AudioFrame.from_ndarray(pcm, format="s16", layout="mono")
            frame.sample_rate = 16_000
            container.mux(audio.encode(frame))
            container.mux(audio.encode())
    return buffer.getvalue()


async def test_clip_gives_its_middle_frame_and_its_sound(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    response = await post(http, {"clip": encoded(clip())})
    assert response.json()["results"][0]["missing"] == []
    (sample,) = samples(engine)
    assert sample.pixels is not None
    assert sample.pixels[2, 2, 2] > 200, "blue"
    assert sample.fbank is not None
    form = await http.post("/classify", files=[("clip", file(clip(with_sound=False)))])
    assert form.json()["results"][0]["missing"] == ["audio"]


@pytest.mark.parametrize("settings", [Settings(max_clip_seconds=0.5)])
async def test_clip_that_is_too_long_is_refused(http: httpx.AsyncClient) -> None:
    uri = f"data:video/x-matroska;codecs=mpeg4,pcm;base64,{encoded(clip())}"
    failure(await post(http, {"clip": uri}), 413, "clip_too_large")


class TestSmallLimits:
    @pytest.fixture
    def settings(self) -> Settings:
        return Settings(max_audio_bytes=500, max_clip_bytes=500, max_image_bytes=500, max_body_bytes=4000)

    @pytest.mark.parametrize(
        ("name", "code"),
        [("audio", "audio_too_long"), ("image", "image_too_large"), ("clip", "clip_too_large")],
    )
    async def test_too_many_bytes_are_refused_before_decoding(
        self, http: httpx.AsyncClient, name: str, code: str
    ) -> None:
        failure(await post(http, {name: encoded(bytes(600))}), 413, code)
        failure(await http.post("/classify", files=[(name, file(bytes(600)))]), 413, code)

    async def test_body_is_limited(self, http: httpx.AsyncClient) -> None:
        failure(await post(http, {"audio": "A" * 5000}), 413, "too_large")


async def test_other_content_types_are_refused(http: httpx.AsyncClient) -> None:
    response = await http.post("/classify", content=b"x", headers={"Content-Type": "audio/wav"})
    assert "x-ndjson" in failure(response, 415, "unsupported_media_type")["message"]


async def test_full_queue_and_missed_deadline(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.failures = [QueueFull("full", retry_after_s=1.2), DeadlineExceeded("too late")]
    assert (await post(http, {"image": PICTURE})).headers["retry-after"] == "2"
    failure(await post(http, {"image": PICTURE}), 504, "deadline_exceeded")


async def test_client_that_leaves_drops_its_samples(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.waits = asyncio.Event()
    asking = asyncio.create_task(post(http, {"image": PICTURE}))
    while not engine.classified:
        await asyncio.sleep(0)
    asking.cancel()
    await asyncio.wait({asking})
    assert engine.cancelled == 1


@pytest.mark.parametrize(
    "settings", [Settings(rate_limit_per_key="2/hour", admin_key=SecretStr("a"), api_keys=(SecretStr("k"),))]
)
async def test_samples_count_against_the_limits_before_they_are_decoded(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    http.headers["X-Attune-Api-Key"] = "k"
    failure(await post(http, [{"image": PICTURE}] * 3), 413, "too_large")
    assert (await post(http, [{"image": PICTURE}] * 2)).status_code == 200
    failure(await post(http, [{"image": "@"}]), 429, "rate_limited")


async def test_log_line_names_stream_and_version_and_no_content(http: httpx.AsyncClient) -> None:
    with capture_logs() as logs:
        await post(http, {"id": "private", "text": "secret words"}, labels=["hidden", "b"], stream="s")
    (line,) = logs
    assert (line["route"], line["stream"], line["queries"], line["state_version"]) == ("/classify", "s", 1, 3)
    assert not [word for word in ("private", "secret", "hidden") if word in str(line)]


async def test_examples_of_the_documentation_are_accepted(http: httpx.AsyncClient) -> None:
    """All but those with shortened sounds."""
    operation = (await http.get("/openapi.json")).json()["paths"]["/classify"]["post"]
    content = operation["requestBody"]["content"]
    assert set(content) == {"application/json", "multipart/form-data", "application/x-ndjson"}
    assert all("example" in form or "examples" in form for form in content.values())
    assert {parameter["name"] for parameter in operation["parameters"]} >= {"labels", "batch", "stream"}
    for name, example in content["application/json"]["examples"].items():
        status = (await http.post("/classify", json=example["value"])).status_code
        assert status == (200 if name == "zero-shot" else 422)


async def test_stream_is_configured_for_a_task(http: httpx.AsyncClient) -> None:
    response = await http.put("/admin/streams/s", json={"method": "eata", "task": "classify"})
    assert response.json()["classify"] == {"method": "eata", "settings": {}}
    failure(await http.put("/admin/streams/s", json={"task": "guess"}), 422, "invalid_request")


def test_fake_spec_is_smaller_than_the_real_one() -> None:
    assert CLASSIFIER.audio_spec.frames < AudioSpec().frames
