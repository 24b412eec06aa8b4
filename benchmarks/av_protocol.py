"""The papers' online protocol for classification (methods.md 5.5): one pass, answered batch by batch.

Streams are shuffled by the seed; every stream starts from the source state, unless the run is continual. The
batch goes through service.classification.adapt, as in the server. What a corruption makes of a data set is
computed once and shared by all methods and seeds.

Letters: N samples of a stream, B of a batch, C classes, n frames of a filter bank, F mel bins.
"""

from __future__ import annotations

import os
import statistics
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adapters.classification import ClassifyMethod, TwoStream
from adapters.state import AdaptationState
from benchmarks.av_data import AVData, AVSample, read_frame, read_waveform
from benchmarks.corruptions.audio import NoiseBeds, Place, corrupt_audio
from benchmarks.corruptions.av_shift import AVShift, Corruption
from benchmarks.corruptions.image import corrupt_image
from encoders.audio import AudioSpec, fbank
from encoders.preprocessing import ImageSpec
from service.classification import adapt
from service.pipeline import EarlyAnswer, Outcome, StageTimes

Done = Callable[[int], None]
Values = NDArray[Any]


class Classifier(TwoStream, Protocol):
    """What the protocol uses of encoders.cav_mae.CavMae beside the methods."""

    audio_spec: AudioSpec
    image_spec: ImageSpec

    def prepare(self, fbanks: Sequence[Values] | None, pictures: Sequence[Values] | None) -> Any: ...


# -- samples under a shift ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Corrupted:
    """One modality of every sample: raw filter banks [n, F] or frames uint8 [3, H, W]; None where lacking."""

    items: Sequence[Values | None]

    @property
    def bytes(self) -> int:
        return sum(item.nbytes for item in self.items if item is not None)


@dataclass
class ShiftedData:
    """A data set under any shift, for one classifier's sizes.

    corruption_seed  of the noise: a sample's depends on it, the corruption and the sample alone
    snr_db, place    of the backgrounds (corruptions/audio.py)
    most_bytes       of corrupted samples that are kept for the next shift
    """

    data: AVData
    audio_spec: AudioSpec
    image_spec: ImageSpec
    beds: NoiseBeds
    corruption_seed: int = 0
    snr_db: float | None = None
    place: Place = "start"
    most_bytes: int = 4 << 30
    _kept: OrderedDict[tuple[str, Corruption | None], Corrupted] = field(default_factory=OrderedDict)

    def sounds(self, corruption: Corruption | None, done: Done) -> Corrupted:
        """Raw filter banks, corrupted as waveforms."""
        return self._part("audio", corruption, self._sound, done)

    def pictures(self, corruption: Corruption | None, done: Done) -> Corrupted:
        """Frames of the model's size, corrupted at that size; lengths in pixels scale with it."""
        return self._part("video", corruption, self._picture, done)

    def _sound(self, number: int, sample: AVSample, corruption: Corruption | None) -> Values | None:
        waveform = read_waveform(sample, self.audio_spec)
        if waveform is None:
            return None
        if corruption is not None:
            waveform = corrupt_audio(
                waveform,
                corruption.name,
                corruption.severity,
                self._rng("audio", corruption, number),
                self.beds,
                snr_db=self.snr_db,
                place=self.place,
            )
        return fbank(waveform, self.audio_spec)

    def _picture(self, number: int, sample: AVSample, corruption: Corruption | None) -> Values | None:
        frame = read_frame(sample, self.image_spec)
        if frame is None:
            return None
        if corruption is not None:
            rng = self._rng("video", corruption, number)
            frame = corrupt_image(frame, corruption.name, corruption.severity, rng, scale=True)
        return np.ascontiguousarray(np.moveaxis(frame, -1, 0))

    def _rng(self, modality: str, corruption: Corruption, number: int) -> np.random.Generator:
        name = zlib.crc32(f"{modality}:{corruption}".encode())
        return np.random.default_rng([self.corruption_seed, name, number])

    def _part(
        self,
        modality: str,
        corruption: Corruption | None,
        make: Callable[[int, AVSample, Corruption | None], Values | None],
        done: Done,
    ) -> Corrupted:
        key = (modality, corruption)
        if key in self._kept:
            self._kept.move_to_end(key)
            done(len(self.data))
            return self._kept[key]

        def one(number: int) -> Values | None:
            made = make(number, self.data.samples[number], corruption)
            done(1)
            return made

        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            part = Corrupted(list(pool.map(one, range(len(self.data)))))
        self._kept[key] = part
        while len(self._kept) > 1 and sum(kept.bytes for kept in self._kept.values()) > self.most_bytes:
            self._kept.popitem(last=False)
        return part


# -- one stream -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SeedResult:
    """One pass. Accuracies in percent, not rounded.

    accuracy          of all samples
    batch_mean        the reference's: mean of batch accuracies, each rounded to two decimals; a short last
                      batch counts like the others
    batch_accuracies  in stream order
    ms_per_batch      median over full batches, without the first
    statuses          how many batches were applied, skipped, undone
    state_version     updates behind the state at the end; in a continual run those of earlier shifts too
    """

    seed: int
    accuracy: float
    batch_mean: float
    batch_accuracies: Sequence[float]
    ms_per_batch: float
    statuses: Mapping[str, int]
    state_version: int


@dataclass(frozen=True)
class ShiftResult:
    """One method on one shift, over all seeds; accuracy, batch_mean and ms_per_batch are means over them."""

    shift: str
    kind: str
    method: str
    samples: int
    accuracy: float
    accuracy_spread: float
    batch_mean: float
    ms_per_batch: float
    seeds: Sequence[SeedResult]


def summarise(shift: AVShift, method: str, samples: int, seeds: Sequence[SeedResult]) -> ShiftResult:
    accuracies = [result.accuracy for result in seeds]
    return ShiftResult(
        shift=str(shift),
        kind=shift.kind,
        method=method,
        samples=samples,
        accuracy=statistics.fmean(accuracies),
        accuracy_spread=statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0,
        batch_mean=statistics.fmean(result.batch_mean for result in seeds),
        ms_per_batch=statistics.fmean(result.ms_per_batch for result in seeds),
        seeds=seeds,
    )


def stream_order(count: int, seed: int) -> list[int]:
    """The fixed random order of a seed (torch's randperm)."""
    order: list[int] = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return order


def run_stream(
    *,
    model: Classifier,
    method: ClassifyMethod,
    state: AdaptationState,
    labels: Sequence[int],
    sounds: Corrupted,
    pictures: Corrupted,
    seed: int,
    batch_size: int,
    done: Done,
) -> tuple[SeedResult, AdaptationState]:
    """One pass over the shuffled samples, and the state at its end. labels [N] as the samples are stored."""
    order = stream_order(len(labels), seed)
    right: list[int] = []
    sizes: list[int] = []
    milliseconds: list[float] = []
    statuses: list[str] = []
    for number, start in enumerate(range(0, len(order), batch_size)):
        rows = order[start : start + batch_size]
        batch = [
            _inputs(model, group, sounds.items, pictures.items) for group in by_kind(rows, sounds, pictures)
        ]
        correct, ms = 0, 0.0
        for part, (group, inputs) in enumerate(batch):
            began = time.perf_counter()
            logits, outcome = adapt_batch(model, method, state, inputs, f"{seed}/{number}/{part}")
            ms += (time.perf_counter() - began) * 1e3
            state = outcome.state or state
            expected = torch.tensor([labels[row] for row in group])
            correct += int((logits.argmax(-1).cpu() == expected).sum())
            statuses.append(outcome.status)
        right.append(correct)
        sizes.append(len(rows))
        milliseconds.append(ms)
        done(len(rows))
    accuracies = [100 * count / size for count, size in zip(right, sizes, strict=True)]
    result = SeedResult(
        seed=seed,
        accuracy=100 * sum(right) / sum(sizes),
        batch_mean=statistics.fmean(round(accuracy, 2) for accuracy in accuracies),
        batch_accuracies=[round(accuracy, 2) for accuracy in accuracies],
        ms_per_batch=_typical(milliseconds, sizes, batch_size),
        statuses={status: statuses.count(status) for status in dict.fromkeys(statuses)},
        state_version=state.version,
    )
    return result, state


def adapt_batch(
    model: TwoStream, method: ClassifyMethod, state: AdaptationState, inputs: Any, batch_id: str
) -> tuple[Tensor, Outcome]:
    """The logits [B, C] that the service would answer with, and what became of the batch."""
    answers: list[EarlyAnswer[Tensor]] = []
    slices = adapt(
        model=model,
        method=method,
        state=state,
        inputs=inputs,
        batch_id=batch_id,
        times=StageTimes(),
        on_answer=answers.append,
    )
    while True:
        try:
            next(slices)
        except StopIteration as end:
            (answer,) = answers
            return answer.answered, end.value


def by_kind(rows: Sequence[int], sounds: Corrupted, pictures: Corrupted) -> list[list[int]]:
    """Rows that have both, sound only, picture only: what a batch lacks, all of it lacks."""
    kinds: dict[tuple[bool, bool], list[int]] = {(True, True): [], (True, False): [], (False, True): []}
    for row in rows:
        kinds[sounds.items[row] is not None, pictures.items[row] is not None].append(row)
    return [group for group in kinds.values() if group]


def _inputs(
    model: Classifier, rows: list[int], sounds: Sequence[Values | None], pictures: Sequence[Values | None]
) -> tuple[list[int], Any]:
    heard = [item for row in rows if (item := sounds[row]) is not None]
    seen = [item for row in rows if (item := pictures[row]) is not None]
    return rows, model.prepare(heard or None, seen or None)


def _typical(milliseconds: Sequence[float], sizes: Sequence[int], batch_size: int) -> float:
    full = [ms for ms, size in zip(milliseconds, sizes, strict=True) if size == batch_size]
    return statistics.median(full[1:] or full or milliseconds)
