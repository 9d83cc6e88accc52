"""Which score notices cells of a type that was never learned? Each type in turn, by shadow heads.

    python benchmarks/novelty.py                                   # this project, all stages
    python benchmarks/novelty.py --root . /tmp/immune --figure docs/images/novelty.png --json
    python benchmarks/novelty.py --root /tmp/immune --apart "CD4 T" "CD8 T"     # these in a table apart

Needs a finished `make run`, or a stream project of `stream.py`, and changes nothing in it. A shadow head is
learned without one type on the frozen network's gene scores, then asked about all test cells of the stage so
far; every score sees the same heads, splits and cells. The backbone has seen the type, so all of them do
better here than on a type that nobody has seen.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import rankdata

from canal.app.learning import examination, held_out_cells
from canal.app.project import Project
from canal.config.sections import Novelty
from canal.continual.evaluation import harmonic_mean
from canal.continual.held_out_heads import (
    ChoiceScores,
    GeneScores,
    HeldOutHead,
    best_parts,
    learn_without,
    left_out,
    obstacle,
)
from canal.continual.novelty_choice import (
    chosen_cells,
    fit_distance,
    mix,
    mixture_threshold,
    quantile_threshold,
    raw_energy,
    rule_of,
)
from canal.model.annotator import Annotator
from canal.model.centroids import PARTS, TypeCentroids
from canal.model.compute import in_threads
from canal.model.head import NoveltyRule

PUBLISHED = "published, query-scaled"
CANAL = "chosen of these three (canal)"
NEIGHBOURS = 5

Scores = tuple[np.ndarray, np.ndarray]
"""Of known cells that were not trained on, and of the test cells; the larger, the stranger."""


@dataclass(frozen=True, eq=False)
class Asked:
    """A shadow head's answers, and what the scores are made of: ``known`` and ``test`` alike.

    ``chosen`` is what canal adds to the published score.
    """

    held_out: HeldOutHead
    settings: Novelty
    seed: int
    chosen: Sequence[str]

    @cached_property
    def parts(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Gene scores of known and of test cells."""
        return self.held_out.validation[0], self.held_out.test[0]

    @cached_property
    def manifolds(self) -> tuple[torch.Tensor, ...]:
        """Manifolds ``(n_cells, 128)``."""
        return tuple(self.held_out.head.from_scores(part).manifold for part in self.parts)

    @cached_property
    def logits(self) -> tuple[np.ndarray, ...]:
        """Logits ``(n_cells, n_types)``."""
        return tuple(self.held_out.head.answer(one).logits.numpy() for one in self.manifolds)

    @cached_property
    def trained(self) -> tuple[torch.Tensor, list[str]]:
        """Gene scores and types of trained cells, at most 200 a type."""
        scores, types = self.held_out.train
        rows = chosen_cells(types.tolist())
        return scores[torch.from_numpy(rows)], types[rows].tolist()

    @cached_property
    def centroids(self) -> TypeCentroids:
        """Where the types lie of trained cells, among gene scores."""
        return self.held_out.centroids()

    @cached_property
    def mixed(self) -> np.ndarray:
        """Logits of pseudo-novel cells."""
        random = np.random.default_rng(self.seed)
        types = self.held_out.validation[1].tolist()
        mixtures = mix(self.manifolds[0], types, self.settings.mixtures, random)
        logits: np.ndarray = self.held_out.head.answer(mixtures).logits.numpy()
        return logits

    def rule(self, energies: np.ndarray) -> NoveltyRule:
        """Return the published score with these energies scaled to 0...1."""
        return NoveltyRule(
            self.settings.temperature, float(energies.min()), float(energies.max()), threshold=1.0
        )

    def energies(self, *logits: np.ndarray) -> np.ndarray:
        """Return energies of all these logits together."""
        return raw_energy(np.concatenate(logits), self.settings.temperature)


def published(asked: Asked) -> Scores:
    """Return the score of bbae047: energy is scaled over the query, so neighbours decide with."""
    rule = asked.rule(asked.energies(asked.logits[1]))
    return rule.published_score(asked.logits[0]), rule.published_score(asked.logits[1])


def fixed(asked: Asked) -> Scores:
    """Return the published score with bounds from known cells and mixtures."""
    rule = asked.rule(asked.energies(asked.logits[0], asked.mixed))
    return rule.published_score(asked.logits[0]), rule.published_score(asked.logits[1])


def softmax(asked: Asked) -> Scores:
    """Return 1 - the largest probability (Hendrycks & Gimpel 2017)."""

    def of(logits: np.ndarray) -> np.ndarray:
        values = logits.astype(np.float64)
        result: np.ndarray = 1 - np.exp(values.max(axis=1) - np.logaddexp.reduce(values, axis=1))
        return result

    return of(asked.logits[0]), of(asked.logits[1])


def energy(asked: Asked) -> Scores:
    """Return the energy alone (Liu et al. 2020)."""
    return asked.energies(asked.logits[0]), asked.energies(asked.logits[1])


def mahalanobis(asked: Asked, manifold: bool) -> Scores:
    """Return the distance to the nearest type (Lee et al. 2018), of gene scores or of the manifold."""
    trained, types = asked.trained
    if manifold:
        distance = fit_distance(asked.held_out.head.from_scores(trained).manifold, types)
    else:
        distance = asked.centroids.distance
    known, test = (distance.of(part).numpy() for part in (asked.manifolds if manifold else asked.parts))
    return known, test


def neighbours(asked: Asked, manifold: bool) -> Scores:
    """Return 1 - the cosine to the fifth nearest trained cell (Sun et al. 2022)."""
    trained = asked.trained[0]
    trained = asked.held_out.head.from_scores(trained).manifold if manifold else trained
    there = torch.nn.functional.normalize(trained)

    def of(cells: torch.Tensor) -> np.ndarray:
        cosines = torch.nn.functional.normalize(cells) @ there.T
        result: np.ndarray = 1 - cosines.topk(min(NEIGHBOURS, len(there)), dim=1).values[:, -1].numpy()
        return result

    known, test = (of(part) for part in (asked.manifolds if manifold else asked.parts))
    return known, test


def angle(asked: Asked) -> Scores:
    """Return 1 - the cosine to the nearest type's centre, gene scores in units of their spread."""
    known, test = (asked.centroids.of(part).angle.numpy() for part in asked.parts)
    return known, test


def canal(asked: Asked, parts: Sequence[str] | None = None) -> Scores:
    """Return the score of a version that adds these parts to the published score, by default the chosen."""
    parts = asked.chosen if parts is None else parts
    centroids = asked.centroids.only(parts)
    random = np.random.default_rng(asked.seed)
    known = (asked.parts[0], asked.held_out.validation[1].tolist())
    rule = rule_of(asked.held_out.head, known, centroids, asked.settings, random)
    pairs = zip(asked.logits, asked.parts, strict=True)
    first, second = (rule.score(logits, centroids.of(part) if centroids else None) for logits, part in pairs)
    return first, second


METHODS: dict[str, Callable[[Asked], Scores]] = {
    PUBLISHED: published,
    "published, fixed bounds": fixed,
    "maximum softmax": softmax,
    "energy": energy,
    "Mahalanobis, manifold": partial(mahalanobis, manifold=True),
    "Mahalanobis, gene scores": partial(mahalanobis, manifold=False),
    "5th neighbour, manifold": partial(neighbours, manifold=True),
    "5th neighbour, gene scores": partial(neighbours, manifold=False),
    "angle, gene scores": angle,
    "published + distance": partial(canal, parts=PARTS[:1]),
    "published + distance + angle": partial(canal, parts=PARTS),
    CANAL: canal,
}


@dataclass(frozen=True, eq=False)
class Case:
    """A stage's test cells, of which one type was not learned, and what every method says of them.

    ``novel`` says by the method's own threshold: the mean over mixtures for the published one, else what 5 %
    of known validation cells exceed.
    """

    stage: str
    type: str
    unknown: np.ndarray
    right: np.ndarray
    scores: Mapping[str, np.ndarray]
    novel: Mapping[str, np.ndarray]


def case(
    name: str,
    stage: str,
    scores: GeneScores,
    settings: Novelty,
    seed: int,
    noticed: Mapping[str, ChoiceScores],
) -> Case:
    """Learn a head without type ``name`` and ask every method.

    What canal adds to the published score is chosen as it is for a version, but for type ``name``, which has
    no say: ``noticed`` is what `left_out` found.
    """
    held_out = learn_without(name, scores, settings.shadow_epochs, seed)
    chosen = best_parts([one for other, one in noticed.items() if other != name])
    asked, truth = Asked(held_out, settings, seed, chosen), held_out.test[1]
    said = np.array(held_out.labels, dtype=object)[asked.logits[1].argmax(axis=1)]
    found = {method: function(asked) for method, function in METHODS.items()}
    thresholds = {
        method: quantile_threshold(known, settings.false_unassigned) for method, (known, _) in found.items()
    }
    thresholds[PUBLISHED] = mixture_threshold(asked.rule(asked.energies(asked.logits[1])), asked.mixed)
    return Case(
        stage,
        name,
        truth == name,
        said == truth,
        {method: test for method, (_, test) in found.items()},
        {method: test > thresholds[method] for method, (_, test) in found.items()},
    )


def cases(project: Project, settings: Novelty) -> Iterator[Case]:
    """Yield a case for each stage and each type that can be measured."""
    for stage in project.config.stages:
        annotator = Annotator.load(project.layout.model(stage) / "model")
        cells = held_out_cells(project, stage, examination(project, stage))
        names = [name for name in annotator.labels if not obstacle(name, annotator.labels, cells)]
        scores = GeneScores.of(annotator, cells)
        noticed = left_out(scores, settings, project.config.seed)
        one = partial(
            case,
            stage=stage,
            scores=scores,
            settings=settings,
            seed=project.config.seed,
            noticed=noticed,
        )
        chosen = " + ".join(("published", *best_parts(list(noticed.values()))))
        sys.stderr.write(f"{project.layout.root.name}, {stage}: {len(names)} types; {chosen}\n")
        yield from in_threads(one, names)


def auroc(score: np.ndarray, unknown: np.ndarray) -> float:
    """Return the share of pairs in which the unknown cell scores higher than the known one; ties half."""
    n = int(unknown.sum())
    return float((rankdata(score)[unknown].sum() - n * (n + 1) / 2) / (n * (len(score) - n)))


def h_score(score: np.ndarray, unknown: np.ndarray, right: np.ndarray, rate: float) -> float:
    """Return the H-score at the threshold that at most a share ``rate`` of the known test cells exceeds."""
    novel = score > np.quantile(score[~unknown], 1 - rate, method="higher")
    return judged(novel, unknown, right)["h_score"]


def judged(novel: np.ndarray, unknown: np.ndarray, right: np.ndarray) -> dict[str, float]:
    """Return what comes of calling these cells novel."""
    known_accuracy = float((right & ~novel)[~unknown].mean())
    noticed = float(novel[unknown].mean())
    return {
        "false_unassigned": float(novel[~unknown].mean()),
        "noticed": noticed,
        "h_score": harmonic_mean(known_accuracy, noticed),
    }


def means(some: Sequence[Case], rate: float) -> dict[str, dict[str, float]]:
    """Return each method's measures, the mean over cases."""
    found = {}
    for method in METHODS:
        own = [judged(one.novel[method], one.unknown, one.right) for one in some]
        found[method] = {
            "auroc": float(np.mean([auroc(one.scores[method], one.unknown) for one in some])),
            "h_score": float(
                np.mean([h_score(one.scores[method], one.unknown, one.right, rate) for one in some])
            ),
            **{f"own_{key}": float(np.mean([each[key] for each in own])) for key in own[0]},
        }
    return found


def differences(
    some: Sequence[Case], rate: float, n_resamples: int, seed: int
) -> dict[str, dict[str, tuple[float, float]]]:
    """Return for each method the 95 % interval of its AUROC and H-score less those of the published score.

    Types are drawn with replacement, each with all its stages, and within a case its known and its unknown
    cells: every method is asked about the same draw.
    """
    random = np.random.default_rng(seed)
    names = sorted({one.type for one in some})
    others = [method for method in METHODS if method != PUBLISHED]
    drawn: dict[str, list[tuple[float, float]]] = {method: [] for method in others}
    for _ in range(n_resamples):
        picked = [one for name in random.choice(names, len(names)) for one in some if one.type == name]
        gains: dict[str, list[tuple[float, float]]] = {method: [] for method in others}
        for one in picked:
            groups = [np.flatnonzero(one.unknown), np.flatnonzero(~one.unknown)]
            rows = np.concatenate([random.choice(group, len(group)) for group in groups])
            values = {
                method: (
                    auroc(one.scores[method][rows], one.unknown[rows]),
                    h_score(one.scores[method][rows], one.unknown[rows], one.right[rows], rate),
                )
                for method in METHODS
            }
            first = values[PUBLISHED]
            for method in others:
                gains[method].append((values[method][0] - first[0], values[method][1] - first[1]))
        for method in others:
            drawn[method].append(tuple(np.mean(gains[method], axis=0)))
    return {method: _intervals(np.array(found)) for method, found in drawn.items()}


def _intervals(found: np.ndarray) -> dict[str, tuple[float, float]]:
    low, high = np.quantile(found, [0.025, 0.975], axis=0)
    return {name: (float(low[i]), float(high[i])) for i, name in enumerate(("auroc", "h_score"))}


def measured(root: Path, wishes: argparse.Namespace) -> dict[str, Any]:
    """Return all that is measured of one project."""
    project = Project.open(root)
    torch.set_num_threads(project.config.threads)
    settings = project.config.novelty.model_copy(update={"false_unassigned": wishes.false_unassigned})
    if wishes.epochs:
        settings = settings.model_copy(update={"shadow_epochs": wishes.epochs})
    seen = list(cases(project, settings))
    if not seen:
        raise SystemExit(f"{root}: no type can be measured; each needs 5 test cells")
    apart = [one for one in seen if one.type in wishes.apart]
    others = [one for one in seen if one.type not in wishes.apart]
    if not others or {one.type for one in apart} != set(wishes.apart):
        raise SystemExit(f"{root}: --apart names some of {sorted({one.type for one in seen})}, not all")
    compared = partial(
        compare, rate=wishes.false_unassigned, n_resamples=wishes.resamples, seed=project.config.seed
    )
    found = {"methods": compared(others), "cases": [_told(one) for one in others]}
    if apart:
        found["apart"] = {"methods": compared(apart), "cases": [_told(one) for one in apart]}
    return found | {"shadow_epochs": settings.shadow_epochs}


def compare(some: Sequence[Case], rate: float, n_resamples: int, seed: int) -> dict[str, dict[str, Any]]:
    """Return each method's measures, with the intervals of their differences to the published score."""
    found: dict[str, dict[str, Any]] = {**means(some, rate)}
    for method, intervals in differences(some, rate, n_resamples, seed).items():
        found[method]["less_published"] = intervals
    return found


def _told(one: Case) -> dict[str, Any]:
    return {
        "stage": one.stage,
        "type": one.type,
        "n_known": int((~one.unknown).sum()),
        "n_unknown": int(one.unknown.sum()),
        "auroc": {method: auroc(score, one.unknown) for method, score in one.scores.items()},
        "own_h_score": {
            method: judged(novel, one.unknown, one.right)["h_score"] for method, novel in one.novel.items()
        },
    }


def table(name: str, found: Mapping[str, Any], rate: float) -> Table:
    """Return one project's measures as a table."""
    n_types = len({one["type"] for one in found["cases"]})
    shown = Table(title=f"{name}: {n_types} types, {len(found['cases'])} held-out tests; %")
    for heading in (
        "score",
        "AUROC",
        f"H at {100 * rate:g} % false",
        "AUROC less published",
        "H less published",
        "own threshold: false",
        "noticed",
        "H",
    ):
        shown.add_column(heading, justify="left" if heading == "score" else "right")
    for method, one in found["methods"].items():
        spans = one.get("less_published")
        texts = [_span(spans[key]) for key in ("auroc", "h_score")] if spans else ["", ""]
        own = [one[f"own_{key}"] for key in ("false_unassigned", "noticed", "h_score")]
        values = [f"{100 * value:.1f}" for value in (one["auroc"], one["h_score"])]
        shown.add_row(method, *values, *texts, *(f"{100 * value:.1f}" for value in own))
    return shown


def _span(interval: Sequence[float]) -> str:
    return f"{100 * interval[0]:+.1f} to {100 * interval[1]:+.1f}"


def draw(found: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draw what each score gains on the published one, with its interval, a colour a project."""
    from canal.report.canvas import MARKERS, PALETTE, new_figure, save, styled

    @styled
    def figure() -> Any:
        methods = [method for method in METHODS if method != PUBLISHED][::-1]
        drawn = new_figure(9.0, 1.4 + 0.42 * len(methods))
        axes = drawn.subplots(1, 2, sharey=True)
        for axis, (key, title) in zip(axes, (("auroc", "AUROC"), ("h_score", "H-score")), strict=True):
            for number, (name, one) in enumerate(found.items()):
                values = one["methods"]
                gains = [100 * (values[method][key] - values[PUBLISHED][key]) for method in methods]
                rows = np.arange(len(methods)) + 0.24 * (number - (len(found) - 1) / 2)
                colour = PALETTE[number % len(PALETTE)]
                spans = [values[method]["less_published"][key] for method in methods]
                axis.hlines(rows, *(100 * np.array(spans).T), color=colour, linewidth=1.4)
                marker = MARKERS[number % len(MARKERS)]
                axis.plot(gains, rows, marker, color=colour, label=name, markersize=6)
            axis.axvline(0, color="0.6", linewidth=1)
            axis.set(title=f"{title} less that of the published score", xlabel="Points")
            axis.grid(True, axis="x")
        axes[0].set_yticks(range(len(methods)), methods)
        axes[0].legend(loc="upper right")
        return drawn

    save(figure(), path)


def main() -> None:
    """Read the arguments, measure each project, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--root", type=Path, nargs="+", default=[Path()], help="project folders")
    parser.add_argument("--false-unassigned", type=float, default=0.05, help="share of known cells")
    parser.add_argument("--epochs", type=int, help="of a shadow head; by default novelty.shadow_epochs")
    parser.add_argument("--apart", nargs="+", default=[], metavar="TYPE", help="types in a table apart")
    parser.add_argument("--resamples", type=int, default=500, help="of the bootstrap")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--figure", type=Path, help="draw the comparison into this file (.png or .svg)")
    wishes = parser.parse_args()
    found = {root.resolve().name: measured(root, wishes) for root in wishes.root}
    if wishes.json:
        sys.stdout.write(json.dumps(found, indent=1) + "\n")
    else:
        for name, one in found.items():
            Console(width=150).print(table(name, one, wishes.false_unassigned))
            if "apart" in one:
                shown = table(f"{name}, {', '.join(wishes.apart)}", one["apart"], wishes.false_unassigned)
                Console(width=150).print(shown)
    if wishes.figure:
        draw(found, wishes.figure)


if __name__ == "__main__":
    main()
