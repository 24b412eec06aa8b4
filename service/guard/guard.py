"""From what is seen of a batch to what becomes of it: learn, skip, roll back or reset.

A guard is a value: `rule` changes nothing and returns the guard as it is after the batch, which is committed
with the batch's state or dropped with it. Rulings depend on the batches alone, not on clock or chance, so a
batch computed again after a crash is ruled the same.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from adapters.base import Method
from adapters.state import AdaptationState
from service.guard.canaries import CanaryCheck
from service.guard.look import FIGURES, Figures, Look
from service.guard.reference import Reference
from service.guard.settings import GuardSettings
from service.guard.stored import StoredGuard

EVENTS_KEPT = 32
_MOST_DOUBLINGS = 6
_ROLLING_SHARE = 1 / 8
FEWEST_QUERIES = 4
"""Of a batch that can be judged; a smaller one is learned from unjudged."""
_HEALTHY_SHARE = 0.5
"""Of the suspicion that is harm, up to which a state may become the last good one."""
_SIGNS = {"source_likeness": 1, "modality_gap": 1, "top1_similarity": -1}
"""Which way each figure goes when the model gets worse."""

Action = Literal["warn", "skip", "freeze", "rollback", "reset"]
Finding = Literal["crowded", "unusual", "changed", "harm", "canaries"]
Weights = Literal["keep", "good", "source"]


@dataclass(frozen=True)
class GuardEvent:
    """What the guard did, and what it saw before.

    time     seconds since 1970; a record, nothing depends on it
    batch    how many batches the guard had seen, this one included
    figures  of the batch: `source.NAME`, `adapted.NAME`, agreement, distance, ratio
    """

    time: float
    stream: str
    track: str
    batch: int
    finding: Finding
    action: Action
    reason: str
    figures: Figures

    def to_plain(self) -> dict[str, Any]:
        return {each.name: getattr(self, each.name) for each in fields(self)}


@dataclass(frozen=True)
class Ruling:
    """What becomes of a batch.

    guard    the guard after it, to be committed with the outcome
    learn    whether the batch may be learned from; else `reason` says why not
    weights  the state to go on from: the present one, the last good one or the source's
    good     the last good state, where `weights` says so
    event    what there is to tell, if anything
    """

    guard: Guard
    learn: bool = True
    weights: Weights = "keep"
    reason: str = ""
    good: AdaptationState | None = None
    event: GuardEvent | None = None


@dataclass(frozen=True)
class _Concern:
    """Something found; `reason` is a sentence's end with the numbers."""

    finding: Finding
    reason: str


@dataclass(frozen=True, eq=False)
class Guard:
    """What the guard of one track remembers.

    reference   what the track's queries look like to the source model
    pending     unusual batches in a row that resemble each other: perhaps a new shift
    rises       of the latest batches: how much worse than the source, and the error of that, by figure
    batches     batches seen
    healthy     healthy batches in a row since `good` was taken
    cooldown    batches that will not be learned from
    strikes     rollbacks without a good state in between
    update      distance that the last batch moved the parameters, relative to their length
    finding     what the last batch showed; None: nothing
    good        the last good state; it may be the committed one itself, states are never changed in place
    spent       whether `good` was gone back to and has not held since
    latest      all figures of the last batch; `rolling` their running means
    """

    settings: GuardSettings
    stream: str = ""
    track: str = ""
    reference: Reference | None = None
    pending: Reference | None = None
    rises: tuple[Mapping[str, tuple[float, float]], ...] = ()
    batches: int = 0
    healthy: int = 0
    cooldown: int = 0
    strikes: int = 0
    update: float = 0.0
    finding: Finding | None = None
    good: AdaptationState | None = None
    spent: bool = False
    latest: Figures = field(default_factory=dict)
    rolling: Figures = field(default_factory=dict)
    events: tuple[GuardEvent, ...] = ()

    def watches(self, method: Method) -> bool:
        return self.settings.policy != "off" and method.adapts

    @property
    def canaries_are_due(self) -> bool:
        """Whether the next batch wants a check of the canaries."""
        return self.batches % self.settings.canary_every_batches == 0

    # -- ruling -------------------------------------------------------------------------------------

    def rule(self, look: Look, state: AdaptationState, canaries: CanaryCheck | None = None) -> Ruling:
        """What becomes of a batch that looks like this under `state`."""
        ratio = 1.0 if self.reference is None else self.reference.ratio(look)
        seen = replace(self, batches=self.batches + 1, latest=_flat(look, ratio, self.update, canaries))
        seen = replace(seen, rolling=_rolled(self.rolling, seen.latest))
        if not look.source_is_finite:
            return self.unjudged()
        seen, concern = seen._compared(look, ratio)
        if concern is None:
            seen = seen._with_rises(look)
        if concern is None or not look.finite:
            concern = seen._harm(look, canaries) or concern
        if concern is None:
            return seen._sound(look, state)
        return seen._acted(concern)

    def unjudged(self) -> Ruling:
        """What becomes of a batch of fewer than FEWEST_QUERIES, or that the source model cannot encode."""
        seen = replace(self, batches=self.batches + 1)
        return seen._rest() or Ruling(seen)

    def _compared(self, look: Look, ratio: float) -> tuple[Guard, _Concern | None]:
        """The batch against the stream's own reference."""
        settings, reference = self.settings, self.reference
        uniformity = look.frozen["uniformity"]
        if uniformity < settings.min_uniformity:
            # Says nothing of the stream either, however long it lasts: neither reference nor a new shift.
            return self, _Concern("crowded", f"its queries are almost the same (uniformity {uniformity:.2f})")
        if reference is None:
            return replace(self, reference=Reference.of(look)), None
        limit = settings.unusual_ratio * reference.usual
        window = settings.reference_window_batches
        if reference.batches < settings.reference_batches or ratio <= limit:
            return replace(self, reference=reference.joined(look, window_batches=window), pending=None), None
        pending = self.pending
        if pending is None or pending.ratio(look) > limit:
            pending = Reference.of(look)
        else:
            pending = pending.joined(look, window_batches=window)
        if pending.batches >= settings.change_batches:
            reason = f"the queries have changed: {_changes(reference.figures, pending.figures)}"
            concern = _Concern("changed", reason)
            if settings.policy == "freeze":  # the old weights stay, and so does what is usual for them
                return replace(self, pending=pending), concern
            return replace(self, reference=pending, pending=None), concern
        reason = f"it is unlike this stream's batches (ratio {ratio:.1f}, limit {limit:.1f})"
        return replace(self, pending=pending), _Concern("unusual", reason)

    def _with_rises(self, look: Look) -> Guard:
        if not look.finite or look.distance == 0.0:
            return self
        rise = {name: (_SIGNS[name] * rise, look.errors[name]) for name, rise in look.rises.items()}
        return replace(self, rises=(*self.rises, rise)[-self.settings.harm_window_batches :])

    def _harm(self, look: Look, canaries: CanaryCheck | None) -> _Concern | None:
        """Whether the state serves these queries worse than the source model does."""
        if not look.finite:
            return _Concern("harm", "the adapted features are not finite")
        if canaries is not None and canaries.fall() > self.settings.max_canary_fall:
            return _Concern("canaries", f"the canaries' mean reciprocal rank fell by {canaries.fall():.2f}")
        suspicion, reason = max(self._suspicions(look))
        return _Concern("harm", reason) if suspicion > 1 else None

    def _suspicions(self, look: Look) -> list[tuple[float, str]]:
        """Each sign of harm, 1 where it becomes one, and what it says.

        A mean over the latest 1, 2, 4, ... batches counts when it is above its limit and surely above 0.
        """
        settings = self.settings
        found = [
            (look.distance / settings.max_distance, f"distance {look.distance:.3f} from the source"),
            (self.update / settings.max_update, f"the last batch moved the parameters by {self.update:.3f}"),
        ]
        limits = {
            "source_likeness": settings.max_source_likeness_rise,
            "modality_gap": settings.max_modality_gap_rise,
            "top1_similarity": settings.max_similarity_fall,
        }
        count = 1
        while self.rises:
            latest = self.rises[-count:]
            for name, limit in limits.items():
                mean = sum(rise[name][0] for rise in latest) / len(latest)
                error = sum(rise[name][1] ** 2 for rise in latest) ** 0.5 / len(latest)
                sure = mean / (settings.harm_sigmas * max(error * _small_sample(look.queries * count), 1e-12))
                word = "risen" if _SIGNS[name] > 0 else "fallen"
                text = f"{name} {word} by {mean:.3f} over the source's, mean of {len(latest)} batches"
                found.append((min(mean / limit, sure), text))
            if count >= len(self.rises):
                break
            count *= 2
        return found

    def change(self, name: str) -> float | None:
        """Of a figure in the last batch, adapted less source; None where it was not compared."""
        adapted, source = self.latest.get(f"adapted.{name}"), self.latest.get(f"source.{name}")
        return None if adapted is None or source is None else adapted - source

    def learned(self, figures: Figures) -> Guard:
        """After the batch was learned from; figures: what the method and the update say of it."""
        target = {name: figures[name] for name in ("modality_gap_target",) if name in figures}
        return replace(self, update=figures.get("update_norm", 0.0), latest={**self.latest, **target})

    # -- acting -------------------------------------------------------------------------------------

    def _sound(self, look: Look, state: AdaptationState) -> Ruling:
        """Nothing found: learn, unless a rollback is not long enough ago."""
        seen = replace(self, finding=None)
        if (resting := seen._rest()) is not None:
            return resting
        if max(self._suspicions(look))[0] > _HEALTHY_SHARE or look.distance == 0.0:
            return Ruling(replace(seen, healthy=0))
        seen = replace(seen, healthy=self.healthy + 1)
        if seen.healthy < self.settings.healthy_batches:
            return Ruling(seen)
        return Ruling(replace(seen, healthy=0, good=state, spent=False, strikes=0))

    def _rest(self) -> Ruling | None:
        """No learning yet after a rollback; None: there is no rest to keep."""
        if self.cooldown == 0 or self.settings.policy not in ("rollback", "reset"):
            return None
        left = self.cooldown - 1
        reason = f"guard: no learning for {left} more batches after a rollback"
        return Ruling(replace(self, cooldown=left), learn=False, reason=reason)

    def _acted(self, concern: _Concern) -> Ruling:
        policy = self.settings.policy
        new = self.finding != concern.finding
        seen = replace(self, finding=concern.finding, healthy=0)
        if policy == "warn":
            return seen._ruling(concern, "warn", learn=True, tell=new)
        if concern.finding in ("crowded", "unusual"):
            return seen._ruling(concern, "skip", tell=new)
        if policy == "freeze":
            return seen._ruling(concern, "freeze", tell=new)
        seen = replace(seen, rises=(), update=0.0)
        if concern.finding == "changed":
            seen = replace(seen, good=None, spent=False, strikes=0, cooldown=0)
            return seen._ruling(concern, "reset", learn=True, weights="source")
        rest = self.settings.cooldown_batches << min(self.strikes, _MOST_DOUBLINGS)
        seen = replace(seen, strikes=self.strikes + 1, cooldown=rest)
        if policy == "reset" or self.good is None or self.spent:
            return replace(seen, good=None, spent=False)._ruling(concern, "reset", weights="source")
        return replace(seen, spent=True)._ruling(concern, "rollback", weights="good")

    def _ruling(
        self,
        concern: _Concern,
        action: Action,
        *,
        learn: bool = False,
        weights: Weights = "keep",
        tell: bool = True,
    ) -> Ruling:
        """`tell`: a finding that lasts is one event, told when it begins."""
        reason = f"guard: {concern.reason}"
        good = self.good if weights == "good" else None
        if not tell:
            return Ruling(self, learn, weights, reason, good)
        event = GuardEvent(
            time.time(),
            self.stream,
            self.track,
            self.batches,
            concern.finding,
            action,
            concern.reason,
            self.latest,
        )
        told = replace(self, events=(*self.events, event)[-EVENTS_KEPT:])
        return Ruling(told, learn, weights, reason, good, event)

    # -- what the API shows, and what is stored -----------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """For the API: plain JSON."""
        return {
            "policy": self.settings.policy,
            "batches": self.batches,
            "finding": self.finding,
            "cooldown_batches": self.cooldown,
            "reference_batches": 0 if self.reference is None else self.reference.batches,
            "good_version": None if self.good is None else self.good.version,
            "figures": dict(self.latest),
            "rolling": dict(self.rolling),
            "usual": {} if self.reference is None else dict(self.reference.figures),
            "events": [event.to_plain() for event in self.events],
        }

    def to_plain(self) -> dict[str, Any]:
        """All but the settings and the good state, as JSON; see `from_plain`."""
        plain = {name: getattr(self, name) for name in _COUNTERS}
        return plain | {
            "reference": None if self.reference is None else self.reference.to_plain(),
            "pending": None if self.pending is None else self.pending.to_plain(),
            "rises": [{name: list(pair) for name, pair in rise.items()} for rise in self.rises],
            "latest": dict(self.latest),
            "rolling": dict(self.rolling),
            "events": [event.to_plain() for event in self.events],
        }

    @classmethod
    def from_plain(
        cls,
        plain: Mapping[str, Any],
        *,
        settings: GuardSettings,
        stream: str,
        track: str,
        good: AdaptationState | None,
        dimension: int,
    ) -> Guard:
        """The guard that `to_plain` described. Raises ValueError for anything else."""
        stored = StoredGuard.model_validate(plain)
        references = [
            None if each is None else Reference.from_plain(each.model_dump())
            for each in (stored.reference, stored.pending)
        ]
        for reference in references:
            if reference is not None and (
                reference.centre.shape != (dimension,) or reference.figures.keys() != set(FIGURES)
            ):
                raise ValueError("the guard's reference is not of this encoder")
        if any(rise.keys() != _SIGNS.keys() for rise in stored.rises):
            raise ValueError("the guard's differences lack a figure")
        return cls(
            settings=settings,
            stream=stream,
            track=track,
            good=good,
            **{name: getattr(stored, name) for name in _COUNTERS},
            reference=references[0],
            pending=references[1],
            rises=tuple({name: (pair[0], pair[1]) for name, pair in rise.items()} for rise in stored.rises),
            latest=stored.latest,
            rolling=stored.rolling,
            events=tuple(GuardEvent(**event.model_dump()) for event in stored.events[-EVENTS_KEPT:]),
        )

    def configured(self, settings: GuardSettings) -> Guard:
        """After a person has changed settings of the stream: what happened under the old ones is forgiven."""
        return replace(self, settings=settings, cooldown=0, strikes=0, update=0.0)


_COUNTERS = ("batches", "healthy", "cooldown", "strikes", "update", "finding", "spent")


def _small_sample(queries: int) -> float:
    """By how much a bound of about 3 standard errors widens when these come from few queries themselves.

    Student's against the normal bound at the same chance: 3.6 for 16 queries, 3.3 for 32, 3.1 for 64.
    """
    return 1 + 3 / queries


def _flat(look: Look, ratio: float, update: float, canaries: CanaryCheck | None) -> dict[str, float]:
    """Everything measured of a batch, by name, but for what is not finite (figures of a broken state)."""
    flat = {f"source.{name}": value for name, value in look.frozen.items()}
    flat |= {f"adapted.{name}": value for name, value in look.adapted.items()}
    flat |= {"agreement": look.agreement, "distance": look.distance, "update_norm": update, "ratio": ratio}
    if canaries is not None:
        flat["canary_fall"] = canaries.fall()
    return {name: value for name, value in flat.items() if math.isfinite(value)}


def _rolled(rolling: Figures, latest: Figures) -> dict[str, float]:
    return {
        name: value + (1 - _ROLLING_SHARE) * (rolling.get(name, value) - value)
        for name, value in latest.items()
    }


def _changes(before: Figures, after: Figures) -> str:
    """The figures of two references that say how much harder the queries are to the source model."""
    return ", ".join(
        f"{name} {before[name]:.2f} to {after[name]:.2f}"
        for name in ("source_likeness", "modality_gap", "top1_similarity")
    )
