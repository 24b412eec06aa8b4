"""Replay of a folder of goldens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from adapters.base import AdapterError
from benchmarks.replay.compare import ArrayError, Comparison
from benchmarks.replay.golden import GoldenError, load_golden
from benchmarks.replay.replayers import replayer_of
from benchmarks.replay.stream import NotReplayableError

Verdict = Literal["ok", "miss", "broken", "not implemented", "inputs"]


@dataclass(frozen=True)
class Replayed:
    """What became of one golden.

    broken: altered, incomplete or not replayable as its sidecar says; inputs: weights or inputs that other
    goldens share.
    """

    file: str
    verdict: Verdict
    kind: str = ""
    reason: str = ""
    tolerance: str = ""
    worst: ArrayError | None = None
    arrays: Sequence[ArrayError] = field(default_factory=tuple)
    not_compared: Sequence[str] = field(default_factory=tuple)

    @property
    def failed(self) -> bool:
        return self.verdict in ("miss", "broken")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def replay_file(sidecar: Path) -> Replayed:
    """Replay one golden, given its JSON file."""
    file = sidecar.stem
    try:
        golden = load_golden(sidecar)
    except GoldenError as error:
        return Replayed(file, "broken", reason=str(error))
    if golden.is_input():
        return Replayed(file, "inputs", reason="inputs of other goldens")
    comparison = Comparison(golden, golden.tolerance())
    try:
        replayer = replayer_of(golden)
        replayer.run(comparison)
    except NotReplayableError as error:
        return Replayed(file, "not implemented", reason=str(error))
    except (GoldenError, AdapterError, KeyError, ValueError, RuntimeError) as error:
        return Replayed(file, "broken", reason=f"{type(error).__name__}: {error}")
    return Replayed(
        file=file,
        verdict="ok" if comparison.within() else "miss",
        kind=replayer.name,
        tolerance=str(comparison.tolerance),
        worst=comparison.worst(),
        arrays=tuple(comparison.errors),
        not_compared=tuple(comparison.unused()),
    )


def replay_folder(folder: Path) -> list[Replayed]:
    """Every golden of a folder, by name. An npz without a sidecar counts as broken.

    Raises:
        GoldenError: there is no such folder, or no golden in it.
    """
    if not folder.is_dir():
        raise GoldenError(f"{folder} is no folder")
    names = {path.with_suffix(".json") for path in folder.iterdir() if path.suffix in (".npz", ".json")}
    if not names:
        raise GoldenError(f"{folder} holds no golden (NAME.npz with NAME.json)")
    return [replay_file(path) for path in sorted(names)]
