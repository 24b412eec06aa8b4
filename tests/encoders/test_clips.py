"""Clips of every kind, made here, and broken ones; the frame's number is its brightness."""

from __future__ import annotations

import contextlib
import io
import struct
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders import clips
from encoders.audio import BadAudio
from encoders.clips import BadClip, Clip, ClipsUnavailable, ClipTooLarge, frame_index, read_clip

av = pytest.importorskip("av")

WIDTH, HEIGHT = 64, 48
ONE_KEY_FRAME = {"x264-params": "keyint=1000:scenecut=0:bframes=3"}
QUICK = {"deadline": "realtime", "cpu-used": "8"}
RATE = 16_000


def clip(
    container: str = "mp4",
    video: str | None = "libx264",
    audio: str | None = "aac",
    *,
    frames: int = 12,
    fps: int = 25,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    seconds: float | None = None,
    rate: int = 48_000,
    layout: str = "stereo",
    path: Path | None = None,
    video_options: dict[str, str] | None = None,
    **options: str,
) -> bytes:
    """Frame n of N is grey 20 + 200 n / N with a white upper left quarter; the sound is a tone of 440 Hz."""
    target: Any = io.BytesIO() if path is None else str(path)
    encoder_options = video_options or (QUICK if video and video.startswith("libvpx") else {})
    with av.open(target, "w", format=container, options=options) as output:
        pictures = output.add_stream(video, rate=fps, options=encoder_options) if video else None
        sound = output.add_stream(audio, rate=rate, layout=layout) if audio else None
        if pictures:
            pictures.width, pictures.height = size
            pictures.pix_fmt = "yuv420p"
            for number in range(frames):
                frame = av.VideoFrame.from_ndarray(picture(number, frames, size), format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, fps)
                output.mux(pictures.encode(frame))
            output.mux(pictures.encode(None))
        if sound:
            for block in tone(sound, seconds or frames / fps, rate, layout):
                output.mux(sound.encode(block))
            output.mux(sound.encode(None))
    return target.getvalue() if path is None else path.read_bytes()


def picture(number: int, count: int, size: tuple[int, int]) -> np.ndarray:
    width, height = size
    values = np.full((height, width, 3), 20 + 200 * number // count, np.uint8)
    values[: height // 2, : width // 2] = 255
    return values


def tone(stream: Any, seconds: float, rate: int, layout: str) -> list[Any]:
    one = (0.5 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)).astype(np.float32)
    channels = av.AudioLayout(layout).nb_channels
    frame = av.AudioFrame.from_ndarray(np.stack([one] * channels), format="fltp", layout=layout)
    frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
    context = stream.codec_context
    resampler = av.AudioResampler(
        format=context.format, layout=layout, rate=rate, frame_size=context.frame_size or 1024
    )
    return [*resampler.resample(frame), *resampler.resample(None)]


def read(data: bytes, **limits: Any) -> Clip:
    return read_clip(data, sample_rate=RATE, **limits)


def number_of(found: Clip, count: int) -> int:
    """Which frame it is, by its brightness."""
    assert found.frame is not None
    grey = np.asarray(found.frame)[-10:, -10:].mean()
    return round((float(grey) - 20) * count / 200)


KINDS = [
    ("mp4", "libx264", "aac", {}),
    ("mp4", "libx264", "aac", {"movflags": "frag_keyframe+empty_moov"}),
    ("mov", "libx264", "pcm_s16le", {}),
    ("webm", "libvpx", "libopus", {}),
    ("webm", "libvpx-vp9", "libopus", {"live": "1"}),
    ("matroska", "libx264", "flac", {}),
    ("avi", "mpeg4", "libmp3lame", {}),
    ("avi", "mpeg4", "pcm_s16le", {}),
]


@pytest.mark.parametrize(("container", "video", "audio", "options"), KINDS)
def test_accepted_kinds_give_the_middle_frame_and_the_sound(
    container: str, video: str, audio: str, options: dict[str, str]
) -> None:
    found = read(clip(container, video, audio, frames=20, **options))
    assert found.frame is not None
    assert found.frame.mode == "RGB"
    assert found.frame.size == (WIDTH, HEIGHT)
    assert number_of(found, 20) == 10
    assert found.sound is not None
    assert found.sound.dtype == np.float32
    assert abs(len(found.sound) - 0.8 * RATE) < 0.06 * RATE
    spectrum = np.abs(np.fft.rfft(found.sound[2000:10_000]))
    assert spectrum.argmax() == pytest.approx(440 * 8000 / RATE, abs=1)
    assert np.abs(found.sound).max() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("fps", [5, 24, 25, 30, 60])
@pytest.mark.parametrize("frames", [1, 2, 9, 10, 31])
@pytest.mark.parametrize(("container", "video"), [("mp4", "libx264"), ("webm", "libvpx")])
def test_frame_is_number_five_of_ten(container: str, video: str, frames: int, fps: int) -> None:
    found = read(clip(container, video, None, frames=frames, fps=fps))
    assert number_of(found, frames) == frame_index(frames)
    assert found.sound is None


@pytest.mark.parametrize(("count", "index"), [(1, 0), (2, 1), (3, 1), (9, 4), (10, 5), (11, 5)])
def test_of_ten_frames_number_five_is_chosen(count: int, index: int) -> None:
    assert frame_index(count) == index


def test_clip_without_pictures_gives_its_sound() -> None:
    found = read(clip("mp4", None))
    assert found.frame is None
    assert found.sound is not None


def test_sound_shorter_than_a_frame_counts_as_none() -> None:
    data = clip("matroska", "libx264", "pcm_s16le", seconds=0.024)
    assert read(data).sound is None
    assert read(clip("matroska", "libx264", "pcm_s16le", seconds=0.05)).sound is not None
    with pytest.raises(BadClip, match="neither"):
        read(clip("matroska", None, "pcm_s16le", seconds=0.024))


@pytest.mark.parametrize(("rate", "layout"), [(8_000, "mono"), (44_100, "stereo"), (96_000, "5.1")])
def test_any_rate_and_number_of_channels_becomes_16_khz_mono(rate: int, layout: str) -> None:
    found = read(clip("matroska", None, "pcm_s16le", seconds=0.5, rate=rate, layout=layout))
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE // 2) / RATE)
    assert found.sound is not None
    assert found.sound.shape == (RATE // 2,)
    assert np.abs(found.sound - expected)[800:-800].max() < 1e-3


def test_only_the_first_track_of_each_kind_counts() -> None:
    target = io.BytesIO()
    with av.open(target, "w", format="matroska") as output:
        streams = [output.add_stream("libx264", rate=25) for _ in range(2)]
        for stream in streams:
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for stream, brightness in zip(streams, (60, 200), strict=True):
            values = np.full((HEIGHT, WIDTH, 3), brightness, np.uint8)
            frame = av.VideoFrame.from_ndarray(values, format="rgb24")
            frame.pts, frame.time_base = 0, Fraction(1, 25)
            output.mux(stream.encode(frame))
            output.mux(stream.encode(None))
    assert np.asarray(read(target.getvalue()).frame).mean() == pytest.approx(60, abs=3)


def test_clip_filmed_sideways_is_turned_upright() -> None:
    """A telephone writes its position into the track header: here a quarter turn clockwise."""
    data = bytearray(clip(audio=None))
    matrix = data.index(b"tkhd") + 44
    assert struct.unpack_from(">9i", data, matrix) == (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    struct.pack_into(">9i", data, matrix, 0, 65536, 0, -65536, 0, 0, HEIGHT << 16, 0, 1 << 30)
    frame = read(bytes(data)).frame
    assert frame is not None
    assert frame.size == (HEIGHT, WIDTH)
    # The white quarter goes from the upper left to the upper right.
    assert frame.getpixel((HEIGHT - 4, 4))[0] > 240
    assert frame.getpixel((4, 4))[0] < 200


def test_middle_far_from_its_key_frame_is_reached() -> None:
    data = clip(audio=None, frames=100, video_options=ONE_KEY_FRAME)
    assert number_of(read(data), 100) == 50


def test_too_much_decoding_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clips, "MAX_DECODED_PIXELS", 40 * WIDTH * HEIGHT)
    assert number_of(read(clip(audio=None, frames=20)), 20) == 10
    with pytest.raises(ClipTooLarge, match="key frame"):
        read(clip(audio=None, frames=100, video_options=ONE_KEY_FRAME))


PLAYLISTS = [
    b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{}\n#EXT-X-ENDLIST\n",
    b"ffconcat version 1.0\nfile '{}'\n",
    b"<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011'><BaseURL>{}</BaseURL></MPD>",
    b"[playlist]\nFile1={}\n",
]


@pytest.mark.parametrize("playlist", PLAYLISTS)
@pytest.mark.parametrize(
    "disguise", [b"", b"\0\0\0\x10ftypisom\0\0\0\0", b"\x1aE\xdf\xa3", b"RIFF\xff\0\0\0AVI "]
)
def test_playlist_is_never_followed(playlist: bytes, disguise: bytes, tmp_path: Path) -> None:
    target = tmp_path / "target.mp4"
    target.write_bytes(clip())
    with pytest.raises(BadClip):
        read(disguise + playlist.replace(b"{}", str(target).encode()))


def test_file_that_a_clip_names_is_not_opened(tmp_path: Path) -> None:
    """No format on the list opens other files; one that does shows that it could not."""
    (tmp_path / "target.mp4").write_bytes(clip())
    playlist = f"ffconcat version 1.0\nfile 'file:{tmp_path / 'target.mp4'}'\n".encode()
    opened = clips._options("concat,mov", clips.MAX_PIXELS) | {"safe": "0"}
    allowed = opened | {"protocol_whitelist": "file"}
    with av.open(io.BytesIO(playlist), format="concat", options=allowed) as container:
        assert len(container.streams) == 2
    with pytest.raises(av.FFmpegError):
        av.open(io.BytesIO(playlist), format="concat", options=opened)


def test_clip_is_opened_with_its_own_format_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[dict[str, Any]] = []
    real = av.open

    def spy(file: Any, **settings: Any) -> Any:
        opened.append(settings)
        return real(file, **settings)

    monkeypatch.setattr(av, "open", spy)
    read(clip_made_before)
    assert opened[0]["format"] == opened[0]["options"]["format_whitelist"] == "matroska"
    assert opened[0]["io_open"] is clips._refuse_other_files


@pytest.mark.parametrize(
    ("container", "video", "audio"),
    [("matroska", "ffv1", None), ("avi", "flv", None), ("matroska", None, "mp2")],
)
def test_codec_outside_the_lists_is_refused(container: str, video: str | None, audio: str | None) -> None:
    with pytest.raises(BadClip, match="accepted are"):
        read(clip(container, video, audio))


@pytest.mark.parametrize("container", ["flv", "mpegts", "ogg", "nut"])
def test_container_outside_the_list_is_refused(container: str) -> None:
    data = (
        clip(container, None, "flac")
        if container == "ogg"
        else clip(container, "mpeg4" if container == "nut" else "libx264", None)
    )
    with pytest.raises(BadClip, match="accepted containers"):
        read(data)


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"\0\0\0\x18ftypmp42", b"\x1aE\xdf\xa3", b"RIFF\0\0\0\0AVI ", bytes(99)]
)
def test_bytes_that_are_no_clip_are_refused(data: bytes) -> None:
    with pytest.raises(BadClip):
        read(data)


def test_container_without_tracks_is_refused() -> None:
    data = clip("mp4", "libx264", None)
    with pytest.raises(BadClip):
        read(data.replace(b"trak", b"free"))


@pytest.mark.parametrize("left", [0.02, 0.5, 0.9, 0.99])
@pytest.mark.parametrize(
    ("container", "video", "audio", "options"), [kind for kind in KINDS if "live" not in kind[3]]
)
def test_truncated_clip_is_refused(
    container: str, video: str, audio: str, options: dict[str, str], left: float
) -> None:
    data = clip(container, video, audio, **options)
    with pytest.raises(BadClip, match="truncated"):
        read(data[: int(left * len(data))])


def test_truncated_clip_with_its_header_in_front_is_refused(tmp_path: Path) -> None:
    data = clip(path=tmp_path / "clip.mp4", movflags="faststart")
    assert data.index(b"moov") < data.index(b"mdat")
    assert read(data).frame is not None
    with pytest.raises(BadClip, match="truncated"):
        read(data[:-100])


def test_packet_beyond_the_file_is_refused(tmp_path: Path) -> None:
    """The outer boxes are whole, the offsets of the samples lie."""
    data = bytearray(clip(audio=None, path=tmp_path / "clip.mp4", movflags="faststart"))
    struct.pack_into(">I", data, data.index(b"stco") + 12, len(data) - 50)
    with pytest.raises(BadClip):
        read(bytes(data))


def test_live_webm_that_was_cut_is_read_up_to_the_cut() -> None:
    """It announces no length, and a browser's recorder sends it so."""
    data = clip("webm", "libvpx", "libopus", frames=50, live="1")
    found = read(data[: len(data) // 2])
    assert found.sound is not None
    assert 10 <= number_of(found, 50) <= 15


def test_too_many_bytes_are_refused() -> None:
    data = clip()
    assert read(data, max_bytes=len(data)).frame is not None
    with pytest.raises(ClipTooLarge, match="bytes"):
        read(data, max_bytes=len(data) - 1)


@pytest.mark.parametrize("options", [{}, {"live": "1"}])
@pytest.mark.parametrize(("video", "audio"), [("libvpx", None), (None, "libopus")])
def test_too_long_clip_is_refused(video: str | None, audio: str | None, options: dict[str, str]) -> None:
    """A live webm does not say how long it is: its packets do."""
    data = clip("webm", video, audio, frames=50, seconds=4.0, **options)
    assert read(data, max_seconds=4.5) is not None
    with pytest.raises(ClipTooLarge, match="lasts"):
        read(data, max_seconds=1.5)


@pytest.mark.parametrize(("container", "video"), [("mp4", "libx264"), ("webm", "libvpx")])
def test_too_many_pixels_are_refused_before_a_frame_is_decoded(
    container: str, video: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = clip(container, video, None)
    assert read(data, max_pixels=WIDTH * HEIGHT).frame is not None
    monkeypatch.setattr(clips, "_decoded_at", lambda *_: pytest.fail("a frame was decoded"))
    with pytest.raises(ClipTooLarge, match="64x48"):
        read(data, max_pixels=WIDTH * HEIGHT - 1)


def test_frame_larger_than_the_header_says_is_refused() -> None:
    """In an avi: the numbers of its header are made small, those in the picture data stay."""
    data = bytearray(clip("avi", "mpeg4", None, size=(640, 480)))
    place = data.index(b"strf") + 12
    assert struct.unpack_from("<ii", data, place) == (640, 480)
    struct.pack_into("<ii", data, place, 64, 48)
    with pytest.raises(BadClip):
        read(bytes(data), max_pixels=10_000)


def test_too_many_packets_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = clip(audio=None, frames=20)
    monkeypatch.setattr(clips, "MAX_PACKETS", 10)
    with pytest.raises(ClipTooLarge, match="packets"):
        read(data)


def test_sound_longer_than_its_times_say_is_decoded_no_further() -> None:
    """The 96 kHz of the header become 8 kHz, so that the samples last twelve times as long."""
    data = bytearray(clip("matroska", None, "pcm_s16le", seconds=2.0, rate=96_000))
    frequency = data.index(struct.pack(">d", 96_000.0))
    struct.pack_into(">d", data, frequency, 8_000.0)
    with pytest.raises(ClipTooLarge, match="lasts"):
        read(bytes(data), max_seconds=5.0)


def test_sound_that_is_not_finite_is_refused() -> None:
    data = clip("matroska", None, "pcm_f32le", seconds=0.2, layout="mono")
    value = struct.pack("<f", 0.5 * np.sin(2 * np.pi * 440 * 100 / 48_000))
    with pytest.raises(BadAudio, match="not finite"):
        read(data.replace(value, struct.pack("<f", np.nan)))


def test_without_pyav_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ClipsUnavailable, match=r"attune\[video\]"):
        read(clip_made_before)


def test_module_is_imported_without_pyav_and_torch() -> None:
    code = "import sys, encoders.clips; print(sorted({'av', 'torch', 'transformers'} & set(sys.modules)))"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "[]"


clip_made_before = clip("webm", "libvpx", None)
SAMPLES = [clip(container, video, audio, frames=5, **options) for container, video, audio, options in KINDS]
STARTS = [b"", b"\0\0\0\x10ftypisom\0\0\0\0", b"\x1aE\xdf\xa3\x9f", b"RIFF\x40\0\0\0AVI LIST"]


@given(data=st.binary(max_size=300), start=st.sampled_from(STARTS))
@settings(max_examples=100, deadline=None, derandomize=True, database=None)
def test_random_bytes_are_a_clip_or_refused(data: bytes, start: bytes) -> None:
    with contextlib.suppress(BadClip, BadAudio):
        read(start + data, max_seconds=1)


@given(
    original=st.sampled_from(SAMPLES),
    left=st.one_of(st.just(1.0), st.floats(0, 1)),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6),
    from_end=st.booleans(),
    reach=st.sampled_from([200, 1000, 100_000]),
)
@settings(max_examples=300, deadline=None, derandomize=True, database=None)
def test_damaged_clips_are_a_clip_or_refused(
    original: bytes, left: float, changes: list[tuple[float, int]], from_end: bool, reach: int
) -> None:
    data = bytearray(original)
    for share, value in changes:
        place = int(share * min(reach, len(data)))
        data[-1 - place if from_end else place] = value
    with contextlib.suppress(BadClip, BadAudio):
        found = read(bytes(data[: int(left * len(data))]), max_seconds=2, max_pixels=100_000)
        assert found.frame is not None or found.sound is not None
