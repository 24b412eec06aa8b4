"""BriMPR: bridging modalities by progressive re-alignment (AAAI 2026; methods.md 3.8).

Only prompts learn: some before the tokens of every tower block. Each batch, over the prompts of both towers:

    L_PMGFA  every block's feature statistics come back to the source's, each modality by itself
    L_CMER   predictions with one modality half masked follow those from everything,
             more so for the modality that is closer to its source
    L_IICL   the two modalities of a sample agree, more than those of different samples

Full and masked tokens go through a tower together and the six differentiable joint passes are one call, which
a GPU computes as one. Differences from the release, marked [ours]: a batch of one is not learned from (it has
no spread; the release gives NaN); random numbers are counted, so a state restores exactly.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from adapters.alignment import (
    adaptive_temperature,
    instance_contrast,
    soft_cross_entropy,
    statistics_distance,
)
from adapters.base import BadSettings, StepReport, at_least_fp32
from adapters.calibration import SourceStatistics
from adapters.classification import (
    Answer,
    Artefact,
    Inputs,
    Modality,
    Slices,
    TwoStream,
    generator,
    require_calibration,
)
from adapters.optimizer import AdamWSettings, adamw_step, all_finite, gradients
from adapters.settings import MethodSettings
from adapters.state import AdaptationState

_MODALITIES: tuple[Modality, ...] = ("audio", "video")
_NAMES: Mapping[Modality, str] = {"audio": "prompts_a", "video": "prompts_v"}


class BriMPRSettings(MethodSettings):
    """Every constant of the released code."""

    learning_rate: float = Field(1e-4, gt=0, le=1, description="Adam.")
    prompts: int = Field(10, ge=1, le=100, description="Prompts before the tokens of each block (P).")
    prompt_layers: int | None = Field(
        None, ge=1, le=100, description="Blocks with prompts, from the first (Lp); none given: all."
    )
    prompt_range: float = Field(1e-4, gt=0, le=1, description="Prompts are drawn from [-r, r).")
    mask_ratio: float = Field(0.5, gt=0, lt=1, description="Share of tokens that the masked twin lacks.")
    temperature_scale: float = Field(0.2, ge=0, le=10, description="a of the teacher's temperature.")
    temperature_centre: float = Field(5.0, ge=-100, le=100, description="b of the teacher's temperature.")
    tau: float = Field(
        0.07, gt=0, le=10, description="Temperature of L_IICL. Released: 0.25 where both modalities shift."
    )
    weight_pmgfa: float = Field(1.0, ge=0, le=100, description="Weight of L_PMGFA.")
    weight_cmer: float = Field(1.0, ge=0, le=100, description="Weight of L_CMER.")
    weight_iicl: float = Field(1.0, ge=0, le=100, description="Weight of L_IICL.")
    continual: bool = Field(
        False, description="Draw a modality's prompts anew when its distance to the source jumps."
    )
    restore_window: int = Field(10, ge=2, le=1000, description="Batches that a jump is measured against.")
    restore_threshold: float = Field(5.0, gt=0, le=100, description="Standard deviations that are a jump.")
    seed: int = Field(0, ge=0, le=2**31, description="Of the first prompts and of the masks.")


@dataclass(frozen=True)
class Passes:
    """What one batch looks like from all sides. Logits [B, C], representations [B, D], features [B, L, D].

    logits, fused         of all tokens; cut from the graph
    without_audio, without_video   logits with half of that modality's tokens masked
    audio, video          of one modality alone
    features              of each block and modality
    """

    logits: Tensor
    fused: Tensor
    without_audio: Tensor
    without_video: Tensor
    audio: Tensor
    video: Tensor
    features: Mapping[Modality, Tensor]


class BriMPR:
    name = "brimpr"
    adapts = True
    needs: frozenset[Artefact] = frozenset({"statistics"})
    fewest = 2
    takes_incomplete = False

    def __init__(
        self,
        settings: BriMPRSettings | None = None,
        *,
        noise: Callable[[Modality, tuple[int, int]], Tensor] | None = None,
    ) -> None:
        """`noise` replaces the random numbers of the masks, [B, N] uniform each, audio asked for first."""
        self.settings = settings or BriMPRSettings()
        self._adam = AdamWSettings(self.settings.learning_rate, weight_decay=0.0)
        self._noise = noise

    def check(self, model: TwoStream) -> None:
        require_calibration(self, model)
        layers = self.settings.prompt_layers
        if layers is not None and layers > model.depth:
            raise BadSettings(f"brimpr: prompt_layers is {layers}, the model has {model.depth} blocks")

    def initial_state(self, model: TwoStream) -> AdaptationState:
        self.check(model)
        state = AdaptationState(
            method=self.name,
            fingerprint=model.fingerprint,
            parameters={},
            numbers={"seed": self.settings.seed, "draws": 0},
        )
        random = generator(state)
        shape = (self.settings.prompt_layers or model.depth, self.settings.prompts, model.width)
        like = at_least_fp32(model.weights[model.groups["norms"][0]])
        for modality in _MODALITIES:
            state.parameters[_NAMES[modality]] = self._fresh_prompts(shape, random).to(like)
        return state

    def _fresh_prompts(self, shape: tuple[int, ...], random: torch.Generator) -> Tensor:
        return (torch.rand(shape, generator=random) * 2 - 1) * self.settings.prompt_range

    @torch.no_grad()
    def predict(self, model: TwoStream, state: AdaptationState, inputs: Inputs) -> Tensor:
        logits: Tensor = model.forward(inputs, prompts=_prompts(state)).logits
        return logits

    def adapt(self, model: TwoStream, state: AdaptationState, inputs: Inputs) -> Slices:
        towers = self._towers(model, state, inputs)
        logits, fused = _whole(model, towers)
        yield Answer(logits)
        passes = _partly(model, towers, logits, fused)
        yield None
        terms = self.losses(passes, _statistics(model))
        settings = self.settings
        loss = (
            settings.weight_pmgfa * terms["pmgfa"]
            + settings.weight_cmer * terms["cmer"]
            + settings.weight_iicl * terms["iicl"]
        )
        grads = gradients(loss, state.parameters)
        finite = all_finite({"loss": loss.detach(), **grads})
        adamw_step(state, grads, self._adam)
        if settings.continual:
            self._restore_after_jump(state, terms)
        losses = {name: value.detach() for name, value in terms.items()}
        return StepReport(losses={"total": loss.detach(), **losses}, applied=True, finite=finite)

    # -- passes -------------------------------------------------------------------------------------

    def passes(self, model: TwoStream, state: AdaptationState, inputs: Inputs) -> Passes:
        """All passes of one batch; counts a draw of the masks in `state`."""
        towers = self._towers(model, state, inputs)
        return _partly(model, towers, *_whole(model, towers))

    def kept_tokens(
        self, state: AdaptationState, embedded: Mapping[Modality, Tensor]
    ) -> dict[Modality, Tensor]:
        """Which tokens the masked twins keep: int64 [B, kept] of each modality."""
        random = generator(state)
        kept: dict[Modality, Tensor] = {}
        for modality in _MODALITIES:
            tokens = embedded[modality]
            shape = (tokens.shape[0], tokens.shape[1])
            noise = self._noise(modality, shape) if self._noise else torch.rand(shape, generator=random)
            count = int(shape[1] * (1 - self.settings.mask_ratio))
            kept[modality] = noise.to(tokens.device).argsort(dim=1)[:, :count]
        return kept

    def _towers(self, model: TwoStream, state: AdaptationState, inputs: Inputs) -> Mapping[Modality, Any]:
        """Full and masked tokens of each modality behind its tower."""
        embedded = _embed(model, inputs)
        kept = self.kept_tokens(state, embedded)
        prompts = _prompts(state)
        return {
            modality: model.tower_packed(
                modality,
                [embedded[modality], pick(embedded[modality], kept[modality])],
                prompts=prompts[modality],
                features=True,
            )
            for modality in _MODALITIES
        }

    # -- losses -------------------------------------------------------------------------------------

    def losses(self, passes: Passes, source: SourceStatistics) -> dict[str, Tensor]:
        """The three losses and what they are made of; scalars."""
        settings = self.settings
        distance_a = statistics_distance(passes.features["audio"], source.audio).mean()
        distance_v = statistics_distance(passes.features["video"], source.video).mean()
        distance_u = statistics_distance(passes.fused.unsqueeze(1), source.fused).mean()
        temperature = adaptive_temperature(
            distance_u, scale=settings.temperature_scale, centre=settings.temperature_centre
        ).float()  # in single precision as in the release, whatever the model's
        near_a, near_v = distance_a.detach(), distance_v.detach()
        teacher = at_least_fp32(passes.logits) / temperature
        masked_a = soft_cross_entropy(passes.without_audio, teacher).mean()
        masked_v = soft_cross_entropy(passes.without_video, teacher).mean()
        return {
            "pmgfa": distance_a + distance_v,
            "cmer": (near_v * masked_a + near_a * masked_v) / (near_a + near_v),
            "iicl": instance_contrast(
                at_least_fp32(passes.audio), at_least_fp32(passes.video), temperature=settings.tau
            ),
            "distance_audio": near_a,
            "distance_video": near_v,
            "distance_fused": distance_u,
            "masked_audio": masked_a.detach(),
            "masked_video": masked_v.detach(),
            "teacher_temperature": temperature,
        }

    # -- continual variant --------------------------------------------------------------------------

    def _restore_after_jump(self, state: AdaptationState, terms: Mapping[str, Tensor]) -> None:
        """Draw anew the prompts of a modality whose distance left its recent range; moments stay."""
        random: torch.Generator | None = None
        distances = torch.stack([terms[f"distance_{modality}"] for modality in _MODALITIES]).tolist()
        for modality, distance in zip(_MODALITIES, distances, strict=True):
            name = f"history.{modality}"
            before = state.tensors[name].tolist() if name in state.tensors else []
            history = History(self.settings.restore_window, self.settings.restore_threshold, before)
            if history.jumps(distance):
                random = random or generator(state)
                prompts = state.parameters[_NAMES[modality]]  # as many as it began with, whatever is set now
                with torch.no_grad():
                    prompts.copy_(self._fresh_prompts(prompts.shape, random))
            state.tensors[name] = torch.tensor(history.values, dtype=torch.float64)


@dataclass
class History:
    """The latest values of a modality's distance to its source, and when the next one is a jump."""

    window: int
    threshold: float
    values: list[float] = field(default_factory=list)

    def score(self, value: float) -> float:
        """By how many standard deviations (ddof 1) it lies above the mean; 0 with fewer than two values."""
        spread = statistics.stdev(self.values) if len(self.values) > 1 else 0.0
        return (value - statistics.fmean(self.values)) / spread if spread > 0 else 0.0

    def jumps(self, value: float) -> bool:
        """Remember the value; or, where it jumps out of a full window, forget all and say so."""
        if len(self.values) >= self.window and self.score(value) > self.threshold:
            self.values = []
            return True
        self.values = [*self.values, value][-self.window :]
        return False


def pick(tokens: Tensor, rows: Tensor) -> Tensor:
    """[B, N, D] and int64 [B, n] -> [B, n, D]: those tokens of each sample."""
    return tokens.gather(1, rows.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def _prompts(state: AdaptationState) -> dict[Modality, Tensor]:
    return {modality: state.parameters[_NAMES[modality]] for modality in _MODALITIES}


@torch.no_grad()
def _embed(model: TwoStream, inputs: Inputs) -> dict[Modality, Tensor]:
    return model.embed(inputs)


@torch.no_grad()
def _whole(model: TwoStream, towers: Mapping[Modality, Any]) -> tuple[Tensor, Tensor]:
    """Logits and fused representation of all tokens, cut from the graph."""
    everything = torch.cat([towers["audio"][0].tokens, towers["video"][0].tokens], dim=1)
    (fused,) = model.joint_packed([(everything, "plain")])
    return model.head(fused)[0], at_least_fp32(fused)


def _partly(model: TwoStream, towers: Mapping[Modality, Any], logits: Tensor, fused: Tensor) -> Passes:
    """The six joint passes that the losses are differentiated through, as one."""
    (audio, masked_audio), (video, masked_video) = towers["audio"], towers["video"]
    masked_v, masked_a, *alone = model.joint_packed(
        [
            (torch.cat([audio.tokens, masked_video.tokens], dim=1), "plain"),
            (torch.cat([masked_audio.tokens, video.tokens], dim=1), "plain"),
            (audio.tokens, "plain"),
            (audio.tokens, "audio"),
            (video.tokens, "plain"),
            (video.tokens, "video"),
        ]
    )
    return Passes(
        logits=logits,
        fused=fused,
        without_audio=model.head(masked_a)[0],
        without_video=model.head(masked_v)[0],
        audio=(alone[0] + alone[1]) / 2,
        video=(alone[2] + alone[3]) / 2,
        features={
            "audio": at_least_fp32(audio.features),
            "video": at_least_fp32(video.features),
        },
    )


def _statistics(model: TwoStream) -> SourceStatistics:
    assert model.calibration is not None  # `check` has seen it
    assert model.calibration.statistics is not None
    return model.calibration.statistics
