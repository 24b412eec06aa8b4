"""A short video clip before the classifier: bytes -> the middle frame and the sound track.

PyAV (FFmpeg's libraries) reads it; it is the extra `video` and imported only when a clip comes. FFmpeg knows
hundreds of formats, some of which open other files, so a clip is opened as what its first bytes say, from a
short list, with a short list of decoders, and whatever asks for another file is refused.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import numpy as np
from PIL import Image

from encoders.audio import HIGHEST_RATE, LOWEST_RATE, MAX_CHANNELS, Waveform, frame_samples, mono, resampled
from encoders.base import EncoderError

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

VIDEO_CODECS = ("h264", "hevc", "vp8", "vp9", "av1", "libdav1d", "mpeg4", "mjpeg")
AUDIO_CODECS = (
    *("aac", "mp3", "mp3float", "opus", "libopus", "vorbis", "flac", "alac", "ac3"),
    *("pcm_u8", "pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_s32le", "pcm_f32le", "pcm_mulaw", "pcm_alaw"),
)
MAX_BYTES = 64 * 1024 * 1024
MAX_SECONDS = 30.0
MAX_PIXELS = 4096 * 2304
MAX_PACKETS = 50_000
# The frames from a key frame to the middle: 30 s of 720p at 36 frames a second without any other key frame.
MAX_DECODED_PIXELS = 1_000_000_000
MAX_STREAMS = 16

_Kind = Literal["mov", "matroska", "avi"]
_SEGMENT = b"\x18\x53\x80\x67"


class BadClip(EncoderError):
    """The bytes are no video clip that can be used, or one that is refused before decoding."""


class ClipTooLarge(BadClip):
    """The clip has more bytes, seconds, pixels or packets than is allowed."""


class ClipsUnavailable(EncoderError):
    """PyAV, the extra `video`, is not installed."""


@dataclass(frozen=True)
class Clip:
    """What a classifier takes from a clip; at least one of the two is there.

    `frame` is RGB and upright; `sound` float32 [n], mono, at the rate that was asked for.
    """

    frame: Image.Image | None
    sound: Waveform | None


def frame_index(count: int) -> int:
    """Which of `count` frames, evenly spaced over a clip, the classifier sees: number 5 of 10."""
    return count // 2


def read_clip(
    data: bytes,
    *,
    sample_rate: int,
    max_seconds: float = MAX_SECONDS,
    max_bytes: int = MAX_BYTES,
    max_pixels: int = MAX_PIXELS,
) -> Clip:
    """The frame shown at half the duration and the sound track of an mp4, mov, webm, mkv or avi.

    Of several tracks the first of each kind counts, pictures of an album cover aside. Without a picture
    track `frame` is None; without a sound track, or with one shorter than the 25 ms of an audio frame,
    `sound` is None. A file that ends before the length it announces is refused; a webm written live
    announces none and is read up to its end. In an avi with B-frames, which has no display times, the frame
    may be the second next to the middle one.

    Raises:
        ClipsUnavailable: PyAV is not installed.
        ClipTooLarge: more than `max_bytes`, `max_seconds`, `max_pixels` a frame or `MAX_PACKETS`, or a middle
            frame that is too far from its key frame to be reached.
        BadClip: no clip, a container or codec that is not on the lists, corrupt or truncated, or neither
            picture nor sound in it.
        BadAudio: samples of the sound track that are not finite.
    """
    if len(data) > max_bytes:
        raise ClipTooLarge(f"the clip has {len(data)} bytes; at most {max_bytes} are accepted")
    kind = _kind_of(data)
    if _announced_length(data, kind) > len(data):
        raise BadClip(f"the clip is truncated: {len(data)} bytes are fewer than it announces")
    av = _pyav()
    with _damage_refused(av), _opened(av, data, kind, max_pixels) as container:
        video, audio = _streams(container)
        _check_header(container, video, audio, max_seconds, max_pixels)
        pictures, sounds = _packets(container, video, audio)
        frame = _middle_frame(video, pictures, max_seconds, max_pixels) if video and pictures else None
        sound = _sound(av, audio, sounds, sample_rate, max_seconds) if audio and sounds else None
    if frame is None and sound is None:
        raise BadClip("the clip holds neither a frame nor sound")
    return Clip(frame, sound)


def _pyav() -> ModuleType:
    try:
        import av
    except ImportError as error:
        raise ClipsUnavailable("video clips need PyAV: pip install 'attune[video]'") from error
    return av


def _kind_of(data: bytes) -> _Kind:
    """By the first bytes: FFmpeg's own guess would also find playlists, which open other files."""
    if not data:
        raise BadClip("the clip is empty (0 bytes)")
    if data[4:8] == b"ftyp":
        return "mov"
    if data[:4] == b"\x1aE\xdf\xa3":
        return "matroska"
    if data[:4] == b"RIFF" and data[8:12] == b"AVI ":
        return "avi"
    raise BadClip("not a readable clip; accepted containers are mp4, mov, webm, mkv and avi")


def _announced_length(data: bytes, kind: _Kind) -> int:
    """How many bytes the outermost length fields promise; 0 where they leave it open.

    FFmpeg reads a file that was cut as a shorter one.
    """
    try:
        if kind == "avi":
            return 8 + int(struct.unpack_from("<I", data, 4)[0])
        return _end_of_boxes(data) if kind == "mov" else _end_of_segment(data)
    except (struct.error, IndexError):
        return len(data) + 1


def _end_of_boxes(data: bytes) -> int:
    position = 0
    while position + 8 <= len(data):
        size, name = struct.unpack_from(">I4s", data, position)
        if size == 1:
            size = struct.unpack_from(">Q", data, position + 8)[0]
        # Size 0 means up to the end; what is no box may follow the last one.
        if size < 8 or not name.isalnum():
            break
        position += size
    return position


def _end_of_segment(data: bytes) -> int:
    """Matroska: a header element, then one segment with all the rest."""
    header, position = _element_size(data, 4)
    position += header or 0
    if data[position : position + 4] != _SEGMENT:
        return 0
    size, position = _element_size(data, position + 4)
    return position + size if size is not None else 0


def _element_size(data: bytes, position: int) -> tuple[int | None, int]:
    """The size field of a Matroska element and where its content starts; all bits set means unknown."""
    length = 9 - data[position].bit_length()
    if length > 8 or position + length > len(data):
        raise IndexError
    everything = (1 << 7 * length) - 1
    size = int.from_bytes(data[position : position + length], "big") & everything
    return None if size == everything else size, position + length


@contextmanager
def _damage_refused(av: ModuleType) -> Iterator[None]:
    """FFmpeg's errors, and what PyAV makes of impossible values, as BadClip."""
    try:
        yield
    except (av.FFmpegError, ValueError, LookupError, ArithmeticError, MemoryError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadClip(f"the clip is corrupt or truncated: {reason}") from error


def _opened(av: ModuleType, data: bytes, kind: _Kind, max_pixels: int) -> InputContainer:
    return av.open(
        io.BytesIO(data),
        format=kind,
        metadata_errors="replace",
        io_open=_refuse_other_files,
        options=_options(kind, max_pixels),
    )


def _options(kind: str, max_pixels: int) -> dict[str, str]:
    return {
        # The lists also bind what a container brings along, such as the subtitles of an avi.
        "format_whitelist": kind,
        "codec_whitelist": ",".join((*VIDEO_CODECS, *AUDIO_CODECS)),
        # No protocol has this name: not even a demuxer that opens files by itself can.
        "protocol_whitelist": "none",
        "max_streams": str(MAX_STREAMS),
        # Opening may decode a first frame.
        "max_pixels": str(max_pixels),
    }


def _refuse_other_files(url: str, flags: int, options: dict[str, str]) -> NoReturn:
    raise BadClip("the clip refers to another file")


def _streams(container: InputContainer) -> tuple[VideoStream | None, AudioStream | None]:
    pictures = (stream for stream in container.streams.video if not _is_cover(stream))
    return next(pictures, None), next(iter(container.streams.audio), None)


def _is_cover(stream: VideoStream) -> bool:
    from av.stream import Disposition

    return Disposition.attached_pic in stream.disposition


def _check_header(
    container: InputContainer,
    video: VideoStream | None,
    audio: AudioStream | None,
    max_seconds: float,
    max_pixels: int,
) -> None:
    if container.duration is not None:
        _check_seconds(container.duration / 1_000_000, max_seconds)
    if video is not None:
        _check_codec(video, VIDEO_CODECS)
        _check_pixels(video.codec_context.width, video.codec_context.height, max_pixels)
    if audio is not None:
        _check_codec(audio, AUDIO_CODECS)


def _check_seconds(seconds: float, max_seconds: float) -> None:
    if seconds > max_seconds:
        raise ClipTooLarge(f"the clip lasts {seconds:.1f} s; at most {max_seconds:g} s are accepted")


def _check_codec(stream: VideoStream | AudioStream, accepted: Sequence[str]) -> None:
    # Where FFmpeg has no decoder at all, PyAV has no context, whatever its types say.
    context = getattr(stream, "codec_context", None)
    if context is None or context.name not in accepted:
        name = "an unknown codec" if context is None else context.name
        raise BadClip(f"the clip's {stream.type} is {name}; accepted are {', '.join(accepted)}")


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ClipTooLarge(f"the clip has {width}x{height} pixels; at most {max_pixels} are accepted")


def _packets(
    container: InputContainer, video: VideoStream | None, audio: AudioStream | None
) -> tuple[list[Packet[Any]], list[Packet[Any]]]:
    """Everything of the two streams, still encoded: no more than the bytes that were sent."""
    pictures: list[Packet[Any]] = []
    sounds: list[Packet[Any]] = []
    for count, packet in enumerate(container.demux()):
        if count >= MAX_PACKETS:
            raise ClipTooLarge(f"the clip has more than {MAX_PACKETS} packets")
        if not packet.size:
            continue
        if packet.stream not in (video, audio):
            continue
        if packet.is_corrupt:
            raise BadClip("the clip is truncated: a packet ends beyond the file")
        (pictures if packet.stream is video else sounds).append(packet)
    return pictures, sounds


def _time(packet: Packet[Any]) -> int:
    """In ticks of its stream; avi has decoding times only."""
    time = packet.pts if packet.pts is not None else packet.dts
    if time is None:
        raise BadClip("the clip has packets without a time")
    return time


def _middle_frame(
    video: VideoStream, packets: list[Packet[Any]], max_seconds: float, max_pixels: int
) -> Image.Image:
    times = sorted(_time(packet) for packet in packets if not packet.is_discard)
    if not times:
        raise BadClip("the clip's frames all lie outside what it shows")
    duration = _duration(times)
    _check_seconds(float(duration * (video.time_base or 0)), max_seconds)
    # Times are rounded to ticks, so a frame due exactly in the middle may be up to half a tick late.
    middle = max(time for time in times if time < times[0] + duration / 2 + Fraction(1, 2))
    starts = [n for n, packet in enumerate(packets) if packet.is_keyframe and _time(packet) <= middle]
    video.codec_context.thread_count = 1
    video.codec_context.options = {"max_pixels": str(max_pixels)}
    frame = _decoded_at(video, packets[starts[-1] if starts else 0 :], middle)
    _check_pixels(frame.width, frame.height, max_pixels)
    image = Image.fromarray(frame.to_ndarray(format="rgb24"))
    return image.rotate(frame.rotation, expand=True) if frame.rotation else image


def _duration(times: list[int]) -> Fraction:
    """In ticks, the last frame included, which is taken to last as long as the mean one."""
    if len(times) == 1:
        return Fraction(0)
    return Fraction((times[-1] - times[0]) * len(times), len(times) - 1)


def _decoded_at(video: VideoStream, packets: list[Packet[Any]], time: int) -> VideoFrame:
    """The frame shown at a time; the packets start at a key frame."""
    shown: VideoFrame | None = None
    spent = 0
    context = video.codec_context
    for packet in (*packets, None):
        for frame in context.decode(packet):
            if shown is None or frame.pts is None or frame.pts <= time:
                shown = frame
            if frame.pts is not None and frame.pts >= time:
                return shown
        # Per packet, as a packet may cost a frame's work without showing one.
        spent += context.width * context.height
        if spent > MAX_DECODED_PIXELS:
            raise ClipTooLarge("the clip's middle frame is too far from the key frame before it")
    if shown is None:
        raise BadClip("the clip is corrupt: no frame could be decoded")
    return shown


def _sound(
    av: ModuleType, audio: AudioStream, packets: list[Packet[Any]], sample_rate: int, max_seconds: float
) -> Waveform | None:
    audio.codec_context.thread_count = 1
    to_float = av.AudioResampler(format="fltp")
    blocks: list[Waveform] = []
    rate = decoded = 0
    for packet in (*packets, None):
        for frame in audio.codec_context.decode(packet):
            rate = frame.sample_rate
            _check_sound(rate, frame.layout.nb_channels)
            decoded += frame.samples
            # Codecs may add some padding at both ends.
            _check_seconds(decoded / rate - 1, max_seconds)
            blocks += [mono(block.to_ndarray().T) for block in to_float.resample(frame)]
    waveform = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
    if not rate or len(waveform) * sample_rate < (frame_samples(sample_rate) + 1) * rate:
        return None
    return resampled(waveform, rate, sample_rate)


def _check_sound(rate: int, channels: int) -> None:
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise BadClip(
            f"the clip's sound has {rate} samples a second; {LOWEST_RATE} to {HIGHEST_RATE} are accepted"
        )
    if not 1 <= channels <= MAX_CHANNELS:
        raise BadClip(f"the clip's sound has {channels} channels; at most {MAX_CHANNELS} are accepted")
