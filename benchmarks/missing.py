"""What it costs that modalities are missing, and what completing them (CalMRL) gives back.

    python -m benchmarks.missing --set flickr8k --data FLICKR8K --model ENCODER --json OUT
    python -m benchmarks.missing --set scenes --json OUT
    python -m benchmarks.missing --cost --json OUT

Modalities are hidden at random at every rate, one of them only or each of them; a sample keeps one at least.
Calibrations are fitted to training samples, everything is measured on others. Sets are described in
missing_sets.py, figures in missing_measures.py; missing_report.py makes tables and plots.

Letters: N samples, M modalities, d features.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from torch import Tensor

from adapters.base import AdapterError
from adapters.completion import Completed, Completion, fit_completion
from adapters.latent import BadEmbeddings
from benchmarks.console import machine, make_console, versions
from benchmarks.datasets import DatasetError
from benchmarks.embedding import Progress as Done
from benchmarks.embedding import default_cache
from benchmarks.missing_cost import drain, measure_cost
from benchmarks.missing_imputers import (
    CompletionImputer,
    Embeddings,
    Imputer,
    MeanImputer,
    RidgeImputer,
    impute_all,
    reconstructed,
)
from benchmarks.missing_measures import (
    FUSED,
    answer_figures,
    area,
    by_parts,
    hide,
    imputation,
    joined,
    patterns_of,
    rank_correlation,
    ranks,
    recalls,
    shift_after,
    shift_before,
    unit_columns,
)
from benchmarks.missing_sets import (
    RETRIEVAL_SETS,
    SETS,
    Answers,
    ClassifierSet,
    RetrievalSet,
    Sizes,
    about_model,
    load_classifier_set,
    load_retrieval_set,
)
from encoders.base import EncoderError

_ERRORS = (AdapterError, DatasetError, EncoderError, FileNotFoundError)
RATES = tuple(tenth / 10 for tenth in range(1, 10))
ALL = "all"
"""Every modality is hidden from some samples, instead of one modality only."""
_NEEDS_DATA = ("flickr8k", "flickr8k-views", "digits")
_TRAINING_SEED = 1000
"""Added to the seed for training samples, so that they do not lose what the test samples lose."""

_SERVED_CLASSIFIER = "published"
"""How the service completes classifiers' parts (adapters.two_stream_completion.fit_parts)."""

Row = dict[str, Any]
Rows = dict[str, list[Row]]


# -- what is fitted -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fits:
    """Everything that was fitted to the same samples. imputers: by name, only those that could be fitted."""

    imputers: Mapping[str, Imputer]
    completions: Mapping[str, Completion]


def fit_all(train: Embeddings, observed: Tensor, *, unit: bool, latent: int | None, seed: int) -> Fits:
    """observed bool [N, M]. Completions are left out where too few samples have two modalities."""
    imputers: dict[str, Imputer] = {
        "mean": MeanImputer.of(train, observed),
        "ridge": RidgeImputer(train, observed),
    }
    completions: dict[str, Completion] = {}
    masks = {name: observed[:, m] for m, name in enumerate(train)}
    # Of a classifier's three modalities there is all, or one tower alone: the fused feature is made of both.
    patterns = patterns_of(list(train)) if FUSED in train else None
    for name, even in (("published", False), ("attune", True)):
        try:
            completions[name] = drain(
                fit_completion(
                    train, masks, unit=unit, latent=latent, even=even, seed=seed, patterns=patterns
                )
            )
        except BadEmbeddings:
            continue
        imputers[name] = CompletionImputer.of(completions[name])
    return Fits(imputers, completions)


# -- imputation and anchors -----------------------------------------------------------------------------


def imputation_rows(
    fits: Fits, test: Embeddings, means: Embeddings, observed: Tensor, about: Row
) -> list[Row]:
    """Of every method and hidden modality: error and cosine."""
    rows = []
    for method, imputer in fits.imputers.items():
        made = impute_all(imputer, test, observed)
        for modality, figures in imputation(made, test, means, observed).items():
            rows.append({**about, "method": method, "modality": modality, **figures})
    return rows


def trust_rows(fits: Fits, test: Embeddings, means: Embeddings) -> list[Row]:
    """Of every pattern and what it lacks: is that imputed as well as `confidence` says, worse where novel?"""
    rows: list[Row] = []
    names = list(test)
    for method, completion in fits.completions.items():
        for pattern in patterns_of(names):
            given = {name: test[name] for name in pattern}
            made = fits.imputers[method].impute(given)
            novelty, confidence = completion.novelty_of(given), completion.confidence(pattern)
            for name in names:
                if name in given:
                    continue
                errors = (made[name] - test[name]).square().sum(1)
                explained = 1 - float(errors.sum() / (test[name] - means[name]).square().sum())
                rows.append(
                    {
                        "method": method,
                        "given": "+".join(pattern),
                        "modality": name,
                        "confidence": confidence[name],
                        "explained": explained,
                        "novelty": float(novelty.mean()),
                        "novelty_and_error": rank_correlation(novelty, errors),
                    }
                )
    return rows


Columns = Callable[[Embeddings], Tensor]


def anchor_rows(fits: Fits, test: Embeddings, columns: Columns, observed: Tensor, about: Row) -> list[Row]:
    """How far anchors move where only what is there counts, and where the rest is imputed."""
    whole = columns(test)
    rows = [{**about, "method": "observed", **shift_before(whole, observed)}]
    for method, imputer in fits.imputers.items():
        made = columns(impute_all(imputer, test, observed))
        rows.append({**about, "method": method, "shift": shift_after(whole, made, observed)})
    return rows


def views_of(completion: Completion) -> Columns:
    """Columns of modalities that have no space in common: what each says of the latent."""
    return lambda parts: completion.views(Completed(parts, frozenset(parts), {}))


# -- retrieval ------------------------------------------------------------------------------------------

Vectors = Callable[[Embeddings], Tensor]
"""One unit vector [n, d] a sample, of samples that have the same modalities."""


def vector_methods(fits: Fits) -> dict[str, Vectors]:
    """By name, the ways to make one vector of what is there."""

    def plain(given: Embeddings) -> Tensor:
        return F.normalize(unit_columns(given).sum(2), dim=1)

    def anchored(imputer: Imputer) -> Vectors:
        return lambda given: joined(unit_columns(imputer.impute(given)))

    methods: dict[str, Vectors] = {"no calibration": plain}
    methods |= {name: anchored(imputer) for name, imputer in fits.imputers.items()}
    if "attune" in fits.completions:
        methods |= _variants(fits.completions["attune"], fits.imputers["attune"])
    return methods


def _variants(completion: Completion, imputer: Imputer) -> dict[str, Vectors]:
    """Other anchors of the same completion, to see whether they are better."""

    def weighted(given: Embeddings) -> Tensor:
        made = imputer.impute(given)
        confidence = completion.confidence(tuple(given))
        return joined(unit_columns(made) * torch.tensor([confidence[name] for name in made]))

    def by_length(given: Embeddings) -> Tensor:
        return joined(torch.stack(list(imputer.impute(given).values()), dim=2))

    def from_latent(given: Embeddings) -> Tensor:
        return joined(unit_columns(reconstructed(completion, given)))

    return {
        "attune, weighted by confidence": weighted,
        "attune, imputed length": by_length,
        "attune, all from the latent": from_latent,
    }


def gallery_vectors(method: Vectors, items: Embeddings, observed: Tensor) -> Tensor:
    """[n, d], pattern by pattern. observed bool [n, M]"""
    found: Tensor | None = None
    for pattern in torch.unique(observed, dim=0):
        rows = (observed == pattern).all(1)
        part = method({name: values[rows] for m, (name, values) in enumerate(items.items()) if pattern[m]})
        if found is None:
            found = part.new_zeros(len(observed), part.shape[1])
        found[rows] = part
    assert found is not None
    return found


def retrieval_rows(
    measured: RetrievalSet, methods: Mapping[str, Vectors], observed: Tensor, about: Row
) -> list[Row]:
    """Recalls of every kind of query with every method, also by what the wanted items have."""
    names = list(measured.test)
    # In 32 bits, as a gallery keeps them.
    galleries = {name: gallery_vectors(way, measured.test, observed).float() for name, way in methods.items()}
    rows = []
    for query, given in measured.queries.items():
        scores = {name: way(given).float() @ galleries[name].T for name, way in methods.items()}
        asked = methods["no calibration"](given).float()
        scores |= _without_vectors(measured, asked, measured.target[query], observed)
        for method, values in scores.items():
            places = ranks(values)
            rows.append(
                {**about, "query": query, "method": method, **recalls(places)}
                | {"by_parts": by_parts(places, observed, names)}
            )
    return rows


def _without_vectors(
    measured: RetrievalSet, asked: Tensor, target: str, observed: Tensor
) -> dict[str, Tensor]:
    """Scores of one modality of the items, which finds only those that have it, and of their best one."""
    all_scores = torch.stack(
        [
            torch.where(observed[:, m], asked @ F.normalize(part, dim=1).float().T, -torch.inf)
            for m, part in enumerate(measured.test.values())
        ]
    )
    return {
        "one modality": all_scores[list(measured.test).index(target)],
        "best modality": all_scores.max(0).values,
    }


def query_trust_rows(measured: RetrievalSet, fits: Fits) -> list[Row]:
    """Does novelty say which queries miss? In a gallery that lacks nothing."""
    rows = []
    for method, completion in fits.completions.items():
        anchored = vector_methods(fits)[method]
        gallery = anchored(measured.test)
        for query, given in measured.queries.items():
            places, novelty = ranks(anchored(given) @ gallery.T), completion.novelty_of(given)
            usual = novelty.argsort()[: max(1, len(novelty) // 2)]
            rows.append(
                {
                    "method": method,
                    "query": query,
                    "r10": recalls(places)["r10"],
                    "r10_usual_half": recalls(places[usual])["r10"],
                    "area_novelty": area(novelty, places >= 10),
                    "novelty": float(novelty.mean()),
                }
            )
    return rows


# -- classification -------------------------------------------------------------------------------------


def path_logits(measured: ClassifierSet, answers: Answers, imputers: Mapping[str, Imputer]) -> dict[str, Any]:
    """Of every path, by the modality that is there alone: logits [n, C]. `model` is the model's own."""
    paths: dict[str, dict[str, Tensor]] = {
        "model": {alone: answers.logits[alone] for alone in ("audio", "video")}
    }
    for name, imputer in imputers.items():
        paths[name] = {
            alone: _head(measured, imputer.impute({alone: answers.features[alone]})[FUSED])
            for alone in ("audio", "video")
        }
    return paths


@torch.no_grad()
def _head(measured: ClassifierSet, fused: Tensor) -> Tensor:
    return measured.model.head(fused.float())[0].double()


def chosen_paths(measured: ClassifierSet, fits: Fits) -> dict[str, str]:
    """`auto`: by the modality that is there alone, the path that is right more often on held-out samples."""
    if _SERVED_CLASSIFIER not in fits.imputers:
        return {"audio": "model", "video": "model"}
    held = measured.held_out
    served = {_SERVED_CLASSIFIER: fits.imputers[_SERVED_CLASSIFIER]}
    paths = path_logits(measured, held, served)
    return {
        alone: max(paths, key=lambda path: int((paths[path][alone].argmax(1) == held.labels).sum()))
        for alone in ("audio", "video")
    }


def classification_rows(
    measured: ClassifierSet, fits: Fits, paths: Mapping[str, Any], observed: Tensor, about: Row
) -> list[Row]:
    """Accuracy of all samples; of those that lack something also how far confidence can be trusted."""
    names = list(measured.test)
    audio, video = (observed[:, names.index(name)] for name in ("audio", "video"))
    incomplete = ~(audio & video)
    served = fits.completions.get(_SERVED_CLASSIFIER)
    novelty = None if served is None else _novelty(measured, served, audio)
    rows = []
    for method, path in paths.items():
        logits = torch.where(audio[:, None], path["audio"], path["video"])
        logits = torch.where(incomplete[:, None], logits, measured.asked.logits["audio+video"])
        labels = measured.asked.labels
        whole = 100 * float((logits.argmax(1) == labels).double().mean())
        row = {**about, "method": method, "accuracy": whole}
        if bool(incomplete.any()):
            part = None if novelty is None else novelty[incomplete]
            row["incomplete"] = answer_figures(logits[incomplete], labels[incomplete], part)
        rows.append(row)
    return rows


def _novelty(measured: ClassifierSet, completion: Completion, audio: Tensor) -> Tensor:
    """[n] of samples that have only sound, where `audio`, or else only a picture."""
    alone = {name: completion.novelty_of({name: measured.test[name]}) for name in ("audio", "video")}
    return torch.where(audio, alone["audio"], alone["video"])


# -- a run ----------------------------------------------------------------------------------------------


def run(
    measured: RetrievalSet | ClassifierSet,
    *,
    rates: Sequence[float],
    seeds: Sequence[int],
    fit_seeds: Sequence[int],
    latent: int | None,
    bar: Callable[[str, int], Done],
) -> tuple[Rows, Row]:
    """All rows by kind, and facts of the calibrations that were fitted to complete samples.

    seeds      of what test samples lose
    fit_seeds  those of them with which training samples lose modalities too, and everything is fitted anew
    """
    names = list(measured.train)
    count = len(measured.train[names[0]])
    complete = torch.ones(count, len(names), dtype=torch.bool)
    done = bar("fitting", 1)
    fits = fit_all(measured.train, complete, unit=measured.unit, latent=latent, seed=0)
    done(1)
    means = MeanImputer.of(measured.train, complete).means
    rows: Rows = {"imputation": [], "anchors": [], "trust": trust_rows(fits, measured.test, means)}
    facts: Row = {name: dict(part.about) for name, part in fits.completions.items()}
    if isinstance(measured, RetrievalSet):
        rows |= {"retrieval": [], "queries": query_trust_rows(measured, fits)}
    else:
        rows["classification"] = []
        facts["auto"] = chosen_paths(measured, fits)
    hideable = [name for name in names if name != FUSED]
    scenarios = [(name, [name]) for name in hideable] + [(ALL, hideable)]
    done = bar("hiding", len(scenarios) * len(rates) * len(seeds))
    for hidden, which in scenarios:
        for rate in rates:
            for seed in seeds:
                about = {"fit": "complete", "hidden": hidden, "rate": rate, "seed": seed}
                observed = hide(len(measured.test[names[0]]), names, which, rate, seed)
                about["missing"] = 1 - float(observed.double().mean())
                _measure(rows, measured, fits, means, observed, about)
                done(1)
    done = bar("fitting to incomplete samples", len(rates) * len(fit_seeds))
    for rate in rates:
        for seed in fit_seeds:
            kept = hide(count, names, hideable, rate, seed + _TRAINING_SEED)
            partial = fit_all(measured.train, kept, unit=measured.unit, latent=latent, seed=seed)
            observed = hide(len(measured.test[names[0]]), names, hideable, rate, seed)
            about = {"fit": "incomplete", "hidden": ALL, "rate": rate, "seed": seed}
            about["missing"] = 1 - float(observed.double().mean())
            about["complete_training_samples"] = int(kept.all(1).sum())
            _measure(rows, measured, partial, means, observed, about)
            done(1)
    return rows, facts


def _measure(
    rows: Rows,
    measured: RetrievalSet | ClassifierSet,
    fits: Fits,
    means: Embeddings,
    observed: Tensor,
    about: Row,
) -> None:
    rows["imputation"] += imputation_rows(fits, measured.test, means, observed, about)
    if isinstance(measured, RetrievalSet):
        rows["anchors"] += anchor_rows(fits, measured.test, unit_columns, observed, about)
        rows["retrieval"] += retrieval_rows(measured, vector_methods(fits), observed, about)
        return
    if "attune" in fits.completions:
        columns = views_of(fits.completions["attune"])
        rows["anchors"] += anchor_rows(fits, measured.test, columns, observed, about)
    paths = path_logits(measured, measured.asked, fits.imputers)
    chosen = chosen_paths(measured, fits)
    paths["auto"] = {alone: paths[path][alone] for alone, path in chosen.items()}
    rows["classification"] += classification_rows(measured, fits, paths, observed, about)


# -- command line ---------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.missing", description="Missing modalities, completed or not."
    )
    made.add_argument("--set", choices=SETS, help="what to measure on")
    made.add_argument("--data", type=Path, help=f"folder of {', '.join(_NEEDS_DATA)}")
    made.add_argument("--model", default="demo", help="a folder, an encoder's hub name, or `demo` (default)")
    made.add_argument("--rates", type=_rate, nargs="+", default=list(RATES), help="default 0.1 to 0.9")
    made.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of what is hidden (0 1 2)")
    made.add_argument(
        "--fits",
        type=int,
        default=1,
        help="of these seeds the first so many are also those of fits to incomplete samples (default 1)",
    )
    made.add_argument("--train", type=_positive, default=3000, help="samples to fit to (default 3000)")
    made.add_argument("--test", type=_positive, default=1000, help="samples to measure on (default 1000)")
    made.add_argument("--latent", type=_positive, help="size of the latent; default: the best on held-out")
    made.add_argument("--cost", action="store_true", help="time of completing and of fitting instead")
    made.add_argument("--rounds", type=_positive, default=31, help="of --cost (default 31)")
    made.add_argument("--threads", type=_positive, help="of torch on the CPU")
    made.add_argument("--cache", type=Path, default=default_cache(), help="folder of embeddings")
    made.add_argument("--no-cache", action="store_true", help="embed anew and keep nothing")
    made.add_argument("--json", type=Path, metavar="OUT", help="write everything")
    return made


def _rate(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"a rate is from 0 to below 1, not {value}")
    return value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    console = make_console()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.cost == bool(options.set):
        console.print("[red]give --set, or --cost[/red]", highlight=False)
        return 2
    if options.set in _NEEDS_DATA and options.data is None:
        console.print(f"[red]--set {options.set} needs --data[/red]", highlight=False)
        return 2
    try:
        with _progress(console) as progress:
            bar = _bars(progress)
            document = _cost(options, bar) if options.cost else _measured(options, bar)
    except _ERRORS as error:
        console.print(f"[red]{error}[/red]", highlight=False)
        return 2
    if options.json:
        partial = options.json.with_name(f"{options.json.name}.partial")
        partial.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
        partial.replace(options.json)
    from benchmarks.missing_report import markdown

    console.print(markdown([document]), markup=False, highlight=False, soft_wrap=True)
    return 0


def _measured(options: argparse.Namespace, bar: Callable[[str, int], Done]) -> Row:
    sizes = Sizes(options.train, options.test)
    measured: RetrievalSet | ClassifierSet
    if options.set in RETRIEVAL_SETS:
        cache = None if options.no_cache else options.cache
        measured = load_retrieval_set(options.set, options.model, options.data, sizes, cache=cache, bar=bar)
    else:
        measured = load_classifier_set(options.set, options.model, options.data, sizes, bar=bar)
    seeds = options.seeds
    fit_seeds = seeds[: max(0, options.fits)]
    rows, facts = run(
        measured, rates=options.rates, seeds=seeds, fit_seeds=fit_seeds, latent=options.latent, bar=bar
    )
    return {
        **_head_of_document(),
        "set": measured.name,
        "model": about_model(measured),
        "note": measured.note,
        "protocol": {
            "rates": options.rates,
            "seeds": seeds,
            "fit_seeds": fit_seeds,
            "latent": options.latent,
        },
        "calibrations": facts,
        "results": rows,
    }


def _cost(options: argparse.Namespace, bar: Callable[[str, int], Done]) -> Row:
    rows = measure_cost(options.model, options.rounds, bar)
    return {**_head_of_document(), "set": "cost", "model": {"name": options.model}, "results": {"cost": rows}}


def _head_of_document() -> Row:
    return {
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "machine": machine(),
    }


@contextmanager
def _progress(console: Console) -> Iterator[Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        yield progress


def _bars(progress: Progress) -> Callable[[str, int], Done]:
    """A new line replaces the one before."""
    shown: list[TaskID] = []

    def bar(title: str, total: int) -> Done:
        if shown:
            progress.remove_task(shown.pop())
        shown.append(progress.add_task(title, total=total))
        line = shown[-1]
        return lambda count: progress.advance(line, count)

    return bar


if __name__ == "__main__":
    sys.exit(main())
