"""Sound before the classifier: bytes -> checked mono waveform -> log mel filter bank -> normalised batch.

Needs neither torch nor Transformers. libsndfile reads, soxr resamples, and kaldi-native-fbank (Kaldi's own
feature code) makes the filter bank. A waveform is in [-1, 1], not scaled to 16 bits.

Letters: n samples of a waveform or frames of a filter bank, B clips, T frames, F mel bins.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import kaldi_native_fbank as knf
import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from encoders.base import EncoderError

FORMATS = ("WAV", "WAVEX", "FLAC", "OGG")
# Plain samples, the two telephone codes and the two codecs of Ogg; libsndfile's rarer decoders stay shut.
CODECS = (
    *("PCM_U8", "PCM_S8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"),
    *("ULAW", "ALAW", "VORBIS", "OPUS"),
)
LOWEST_RATE, HIGHEST_RATE = 8_000, 192_000
MAX_CHANNELS = 16
MAX_BYTES = 32 * 1024 * 1024
MAX_SECONDS = 30.0
FRAME_MS, SHIFT_MS = 25.0, 10.0

# Float files written at 16-bit scale stay below it; anything larger is damage, and could overflow later.
_LOUDEST = float(2**15)
# No logarithm of an fp32 power is further from zero: ln 1.4e-45 is -103.3, ln 3.4e38 is 88.7.
_FURTHEST_LOG = 104.0
_BLOCK_FRAMES = 65_536
# A writer that could not know the length leaves a size from here on in the data chunk.
_UNKNOWN_SIZE = 0x7FFF_0000
# What libsndfile says of a flac without a total; it then fails at the end instead of ending.
_UNKNOWN_FRAMES = 2**63 - 1

Waveform = NDArray[np.float32]
Fbank = NDArray[np.float32]


class BadAudio(EncoderError):
    """The bytes are no sound that can be used, or one that is refused before decoding."""


class AudioTooLong(BadAudio):
    """The sound lasts longer, or its bytes are more, than is allowed."""


@dataclass(frozen=True)
class AudioSpec:
    """How a classifier wants its sound: Kaldi's log mel filter bank over 25 ms frames every 10 ms.

    `frames` T is the length of the network's input; a raw value x enters it as (x - mean) / std.
    """

    sample_rate: int = 16000
    frames: int = 1024
    mel_bins: int = 128
    mean: float = -5.081
    std: float = 4.4849

    def __post_init__(self) -> None:
        if not LOWEST_RATE <= self.sample_rate <= HIGHEST_RATE:
            raise ValueError(
                f"the sample rate must lie in {LOWEST_RATE}..{HIGHEST_RATE} Hz, not {self.sample_rate}"
            )
        if self.frames < 1:
            raise ValueError(f"a filter bank needs at least one frame, not {self.frames}")
        if not 3 <= self.mel_bins <= 1024:
            raise ValueError(f"the number of mel bins must lie in 3..1024, not {self.mel_bins}")
        if not (np.isfinite(self.mean) and np.isfinite(self.std) and self.std > 0):
            raise ValueError(f"mean {self.mean} and std {self.std} must be finite and std positive")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> AudioSpec:
        return cls(**values)


def frame_samples(sample_rate: int) -> int:
    """Samples of one 25 ms frame: the shortest sound that has a filter bank."""
    return int(sample_rate * FRAME_MS / 1000)


def _shift_samples(sample_rate: int) -> int:
    return int(sample_rate * SHIFT_MS / 1000)


def decode_audio(
    data: bytes, spec: AudioSpec, *, max_seconds: float = MAX_SECONDS, max_bytes: int = MAX_BYTES
) -> Fbank:
    """Bytes of a sound file to its raw filter bank, float32 [min(n, T), F].

    Raises:
        BadAudio, AudioTooLong: as `read_audio`.
    """
    waveform = read_audio(data, sample_rate=spec.sample_rate, max_seconds=max_seconds, max_bytes=max_bytes)
    return fbank(waveform, spec)


def read_audio(
    data: bytes, *, sample_rate: int, max_seconds: float = MAX_SECONDS, max_bytes: int = MAX_BYTES
) -> Waveform:
    """Decode wav, flac or ogg (Vorbis, Opus) to a mono waveform float32 [n] at `sample_rate`, finite.

    Raises:
        AudioTooLong, BadAudio: as `read_sound`; less than one 25 ms frame.
    """
    waveform, rate = read_sound(data, max_seconds=max_seconds, max_bytes=max_bytes)
    return resampled(waveform, rate, sample_rate)


def read_sound(
    data: bytes, *, max_seconds: float = MAX_SECONDS, max_bytes: int = MAX_BYTES
) -> tuple[Waveform, int]:
    """Decode as `read_audio`, at the file's own rate: mono waveform float32 [n], finite, and that rate in Hz.

    Channels are averaged. The header alone decides on codec, rate, channels and length; then blocks are
    decoded, and never more than `max_seconds`, whatever the header says. A wav or flac that ends before the
    samples it announces is refused. An ogg announces nothing, so one that was cut is read up to the cut;
    likewise a wav whose writer left the length open (not a flac). Silence and clipped sound are accepted.

    Raises:
        AudioTooLong: more than `max_bytes` bytes, or longer than `max_seconds`.
        BadAudio: no sound file, a format or codec outside `FORMATS` and `CODECS`, a corrupt or truncated
            file, a rate outside 8..192 kHz, more than `MAX_CHANNELS` channels, or samples that are not
            finite.
    """
    if len(data) > max_bytes:
        raise AudioTooLong(f"the sound has {len(data)} bytes; at most {max_bytes} are accepted")
    _check_kind(data)
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            _check_header(file, max_seconds)
            return _decode(file, max_seconds), int(file.samplerate)
    except soundfile.SoundFileError as error:
        reason = error.error_string if isinstance(error, soundfile.LibsndfileError) else error
        raise BadAudio(f"the sound is corrupt or truncated: {reason}") from error


def _check_kind(data: bytes) -> None:
    """By the first bytes, so that libsndfile's parsers of other formats are never reached."""
    if not data:
        raise BadAudio("the sound is empty (0 bytes)")
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
        _check_wav_length(data)
    elif data[:4] not in (b"fLaC", b"OggS"):
        raise BadAudio("not a readable sound; accepted formats are WAV, FLAC and OGG (Vorbis, Opus)")


def _check_wav_length(data: bytes) -> None:
    """libsndfile takes what is there for the whole, so the announced size is compared here."""
    position = 12
    while position + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, position)
        position += 8
        if name == b"data":
            if len(data) - position < size < _UNKNOWN_SIZE:
                raise BadAudio(
                    f"the sound is truncated: {size} bytes of samples announced, {len(data) - position} there"
                )
            return
        position += size + size % 2


def _check_header(file: soundfile.SoundFile, max_seconds: float) -> None:
    if file.format not in FORMATS or file.subtype not in CODECS:
        raise BadAudio(f"{file.format} with {file.subtype} is not accepted; codecs are {', '.join(CODECS)}")
    if not LOWEST_RATE <= file.samplerate <= HIGHEST_RATE:
        raise BadAudio(
            f"the sound has {file.samplerate} samples a second; {LOWEST_RATE} to {HIGHEST_RATE} are accepted"
        )
    if not 1 <= file.channels <= MAX_CHANNELS:
        raise BadAudio(f"the sound has {file.channels} channels; at most {MAX_CHANNELS} are accepted")
    if file.frames < 1:
        raise BadAudio("the sound has no samples")
    if file.frames == _UNKNOWN_FRAMES:
        raise BadAudio("the sound does not say how long it is; write the flac with its total of samples")
    if file.frames > max_seconds * file.samplerate:
        seconds = file.frames / file.samplerate
        raise AudioTooLong(f"the sound lasts {seconds:.1f} s; at most {max_seconds:g} s are accepted")


def _decode(file: soundfile.SoundFile, max_seconds: float) -> Waveform:
    """Mono, float32 [n]; `_check_header` has bounded what the file announces."""
    blocks = []
    read = 0
    while read < file.frames:
        block = file.read(_BLOCK_FRAMES, dtype="float32", always_2d=True)
        if not len(block):
            raise BadAudio(f"the sound is truncated: {file.frames} samples announced, {read} there")
        blocks.append(mono(block))
        read += len(block)
    return np.concatenate(blocks)


def mono(block: NDArray[np.float32]) -> Waveform:
    """The mean over the channels, [n, channels] -> [n].

    Raises:
        BadAudio: a sample is NaN, infinite or absurdly large.
    """
    # NaN goes through max and fails the comparison.
    if block.size and not np.abs(block).max() <= _LOUDEST:
        raise BadAudio("the sound has samples that are not finite, or far beyond full scale")
    return block[:, 0] if block.shape[1] == 1 else block.mean(axis=1, dtype=np.float32)


def resampled(waveform: Waveform, rate: int, sample_rate: int) -> Waveform:
    """float32 [n] at `rate` -> float32 [m] at `sample_rate`.

    Raises:
        BadAudio: less than one 25 ms frame is left.
    """
    if rate != sample_rate:
        waveform = soxr.resample(waveform, rate, sample_rate)
    if len(waveform) < frame_samples(sample_rate):
        milliseconds = 1000 * len(waveform) / sample_rate
        raise BadAudio(f"the sound lasts {milliseconds:.1f} ms; one frame is {FRAME_MS:g} ms")
    return waveform


def fbank(waveform: NDArray[np.floating[Any]], spec: AudioSpec) -> Fbank:
    """Log mel filter bank of a waveform [n] at the spec's rate: float32 [min(frames, T), F], in nats.

    Of the waveform minus its mean, as Kaldi computes it: frames of 25 ms every 10 ms that lie wholly inside
    (1 + (n - 400) // 160 of them at 16 kHz), each minus its mean, pre-emphasis 0.97, symmetric Hann window,
    zeros up to a power of two, power spectrum, triangles on the mel scale from 20 Hz to Nyquist, natural
    logarithm floored at ln 1.19e-7. No dither, no energy. Frames beyond T are not computed; nothing is
    padded or normalised.

    Raises:
        BadAudio: not one frame of samples, or samples that are not finite.
    """
    window, shift = frame_samples(spec.sample_rate), _shift_samples(spec.sample_rate)
    if waveform.ndim != 1 or len(waveform) < window:
        raise BadAudio(f"a waveform needs at least {window} samples in one row, not {list(waveform.shape)}")
    mono(waveform[:, None])
    used = waveform[: (spec.frames - 1) * shift + window] - waveform.mean(dtype=np.float64)
    computer = knf.OnlineFbank(_options(spec))
    # The library takes any sequence of floats, and a memoryview is read faster than an array or a list.
    computer.accept_waveform(spec.sample_rate, memoryview(used.astype(np.float32)))
    computer.input_finished()
    return np.stack([computer.get_frame(index) for index in range(computer.num_frames_ready)])


def _options(spec: AudioSpec) -> knf.FbankOptions:
    """Every option that is not written here only matters with a feature that is switched off here."""
    options = knf.FbankOptions()
    frames, mel = options.frame_opts, options.mel_opts
    frames.samp_freq = spec.sample_rate
    frames.frame_length_ms, frames.frame_shift_ms = FRAME_MS, SHIFT_MS
    frames.snip_edges = True
    frames.dither = 0.0
    frames.remove_dc_offset = True
    frames.preemph_coeff = 0.97
    frames.window_type = "hanning"
    frames.round_to_power_of_two = True
    mel.num_bins = spec.mel_bins
    mel.low_freq, mel.high_freq = 20.0, 0.0  # 0 is Nyquist
    mel.htk_mode = mel.is_librosa = False
    options.use_energy = False
    options.use_power = True
    options.use_log_fbank = True
    return options


def check_fbank(values: NDArray[Any], spec: AudioSpec) -> Fbank:
    """A raw filter bank that a client computed: float32 [min(n, T), F]; frames beyond T are cut off.

    Raises:
        BadAudio: not numbers [n, F] with n >= 1, not finite, or no logarithms.
    """
    if values.dtype.kind not in "fiu" or values.ndim != 2 or values.shape[1] != spec.mel_bins:
        raise BadAudio(
            f"a filter bank has numbers in rows of {spec.mel_bins} mel bins, "
            f"not {values.dtype} of shape {list(values.shape)}"
        )
    if not len(values):
        raise BadAudio("the filter bank has no frames")
    kept = values[: spec.frames]
    # NaN goes through min and max and fails the comparison.
    if not (kept.min() >= -_FURTHEST_LOG and kept.max() <= _FURTHEST_LOG):
        raise BadAudio(
            "the filter bank has values that are not finite or no natural logarithms of a power "
            f"(beyond {_FURTHEST_LOG:g} nats)"
        )
    return np.ascontiguousarray(kept, dtype=np.float32)


def normalised(fbanks: Sequence[NDArray[np.float32]], spec: AudioSpec) -> NDArray[np.float32]:
    """Raw filter banks [n_i, F] to the network's input, float32 [B, T, F].

    Cut at T or padded at the end with the raw value 0, which is normalised like the rest, as the reference
    does.
    """
    batch = np.zeros((len(fbanks), spec.frames, spec.mel_bins), dtype=np.float32)
    for row, values in zip(batch, fbanks, strict=True):
        row[: len(values)] = values[: spec.frames]
    batch -= np.float32(spec.mean)
    batch /= np.float32(spec.std)
    return batch
