"""Replayers of the av_* goldens: streams of classification through the service's pipeline."""

from __future__ import annotations

from benchmarks.replay.replayer import Replayer

REPLAYERS: tuple[Replayer, ...] = ()
