"""Are features of a frozen network better for sums than the genes themselves? By a finished project.

    python benchmarks/exact_backbone.py --root .
    python benchmarks/exact_backbone.py --root . --cells 600       # of each set of a stage at most: quick

Features are outputs of the pretrained backbone, or of the first stage's network, which later stages would
have kept frozen: the premise of CANAL and of RanPAC. Each is put on 64 levels by its mean and standard
deviation over the first stage's training cells, and goes through the same sums and the same solution as
genes. Sets of cells are the project's own; nothing in it is changed. Intervals are over test cells.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from exact import COLUMNS
from exact_figures import Figures, measured
from exact_learners import Exact, said
from exact_streams import Drawn, StageCells
from rich.console import Console
from rich.table import Table

from canal.app.project import CellSet, Project
from canal.continual.cells import LabelledCells
from canal.data.expression import tokenize
from canal.memory.levels import HIGHEST, Basis
from canal.model.annotator import Annotator
from canal.model.backbone import Backbone

LEVELS_A_DEVIATION = 8
RANDOM_FEATURES = 1000
_BATCH = 32

Features = Callable[[np.ndarray], np.ndarray]


class FeatureBasis(Basis):
    """A basis of whatever was put on 64 levels already."""

    def levels(self, expression: np.ndarray) -> np.ndarray:
        """Return the first columns, which are levels, as float64."""
        return expression[:, : self.size].astype(np.float64)


@dataclass(frozen=True, eq=False)
class Kind:
    """Features: their name, what makes them of expression (None: nothing), and whether genes stand beside."""

    name: str
    features: Features | None
    genes: bool = False


def of_project(project: Project, most: int | None) -> Drawn:
    """Return a project's stages on its panel, at most so many cells of each set."""
    genes = tuple(project.panel)
    stages = {}
    for stage in project.config.stages:
        own = set(project.prepared(stage).genes)
        train = [_cells(project, stage, one, genes) for one in ("train", "reserve")]
        stages[stage] = StageCells(
            _cut(LabelledCells.concatenate(train), most),
            _cut(_cells(project, stage, "validation", genes), most),
            _cut(_cells(project, stage, "test", genes), most),
            tuple(gene for gene in genes if gene not in own),
        )
    return Drawn(project.config, genes, stages)


def _cells(project: Project, stage: str, chosen: CellSet, genes: Sequence[str]) -> LabelledCells:
    return project.cells(stage, chosen, genes)


def _cut(cells: LabelledCells, most: int | None) -> LabelledCells:
    if most is None or len(cells) <= most:
        return cells
    return cells.take(np.sort(np.random.default_rng(0).permutation(len(cells))[:most]))


def kinds(project: Project, usual: np.ndarray) -> list[Kind]:
    """Return the candidates; ``usual`` are training cells of the first stage."""
    backbone = Backbone.load(project.layout.model("backbone") / "model").for_panel(project.panel)
    first = Annotator.load(project.layout.model(project.config.root_stage) / "model")
    pooled, scores = _kept(lambda cells: _pooled(backbone, cells)), _kept(lambda cells: _scores(first, cells))
    return [
        Kind("genes (the exact memory)", None, genes=True),
        Kind("backbone, pooled", pooled),
        Kind(f"{RANDOM_FEATURES:,} random ReLU of these", _random(pooled, usual)),
        Kind("genes, and backbone pooled", pooled, genes=True),
        Kind("first stage's network, a score a gene", scores),
        Kind("genes, and these scores", scores, genes=True),
    ]


def _kept(make: Features) -> Features:
    """Return the features, each array's made once."""
    found: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def of(expression: np.ndarray) -> np.ndarray:
        if id(expression) not in found:
            found[id(expression)] = expression, make(expression)
        return found[id(expression)][1]

    return of


@torch.inference_mode()
def _pooled(backbone: Any, expression: np.ndarray) -> np.ndarray:
    """Return the mean of the hidden states over all genes, and over those expressed: ``(n_cells, 2 dim)``."""
    parts = []
    for start in range(0, len(expression), _BATCH):
        tokens = torch.from_numpy(tokenize(expression[start : start + _BATCH]))
        hidden = backbone(tokens)[:, : expression.shape[1]]
        there = (torch.from_numpy(expression[start : start + _BATCH]) > 0).float()[:, :, None]
        expressed = (hidden * there).sum(dim=1) / there.sum(dim=1).clamp(min=1)
        parts.append(torch.cat([hidden.mean(dim=1), expressed], dim=1).numpy())
    return np.concatenate(parts)


def _scores(annotator: Annotator, expression: np.ndarray) -> np.ndarray:
    made: np.ndarray = annotator.gene_scores(expression).numpy()
    return made


def _random(features: Features, usual: np.ndarray) -> Features:
    """Return random features of features, as RanPAC has them: ReLU of normal weights and biases.

    Features are taken in units of their spread over the cells ``usual``.
    """

    def of(expression: np.ndarray) -> np.ndarray:
        made, scale, random = features(expression), features(usual), np.random.default_rng(0)
        weights = random.standard_normal((made.shape[1], RANDOM_FEATURES)) / np.sqrt(made.shape[1])
        bias = random.standard_normal(RANDOM_FEATURES)
        whitened = (made - scale.mean(axis=0)) / np.maximum(scale.std(axis=0), 1e-6)
        result: np.ndarray = np.maximum(whitened @ weights + bias, 0)
        return result

    return of


def on_levels(drawn: Drawn, kind: Kind) -> Drawn:
    """Return the stream with expression replaced by levels of a kind's features."""
    if kind.features is None:
        return drawn
    first = kind.features(next(iter(drawn.stages.values())).train.expression)
    middle, spread = first.mean(axis=0), first.std(axis=0)
    varies = spread > 1e-6 * np.abs(middle).max()
    basis = Basis(drawn.genes, {})

    def of(cells: LabelledCells) -> LabelledCells:
        assert kind.features is not None
        made = (kind.features(cells.expression) - middle)[:, varies] / spread[varies]
        levels = np.clip(np.rint(made * LEVELS_A_DEVIATION) + (HIGHEST + 1) // 2, 0, HIGHEST)
        parts = [basis.levels(cells.expression)] if kind.genes else []
        return replace(cells, expression=np.concatenate([*parts, levels], axis=1).astype(np.float32))

    names = tuple(f"feature {number}" for number in np.flatnonzero(varies))
    stages = {
        name: StageCells(of(one.train), of(one.validation), of(one.test), one.missing if kind.genes else ())
        for name, one in drawn.stages.items()
    }
    return Drawn(drawn.config, (*drawn.genes, *names) if kind.genes else names, stages)


class OfFeatures(Exact):
    """The exact memory on features instead of genes."""

    def __init__(self, drawn: Drawn) -> None:
        super().__init__(drawn, FeatureBasis(drawn.genes, {}))


def right(learner: Exact, drawn: Drawn) -> list[np.ndarray]:
    """Return, of each stage's test cells, which are right after all stages."""
    answer, found = learner.learned(list(drawn.stages)), []
    for cells in drawn.stages.values():
        named = np.array(said(answer, cells.test, cells.missing), dtype=object)
        found.append((named == np.array(cells.test.cell_types, dtype=object)).astype(np.float64))
    return found


def apart(one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> tuple[float, float, float]:
    """Return the difference of A_T and its 95 % interval over test cells."""
    gaps = [a - b for a, b in zip(one, other, strict=True)]
    error = np.sqrt(sum(gap.var(ddof=1) / len(gap) for gap in gaps)) / len(gaps)
    mean = float(np.mean([gap.mean() for gap in gaps]))
    return mean, mean - 1.96 * float(error), mean + 1.96 * float(error)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure each kind of features and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(), help="a finished project")
    parser.add_argument("--cells", type=int, help="at most so many cells of each set of a stage")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    wanted = parser.parse_args(arguments)
    torch.set_num_threads(1)
    project = Project.open(wanted.root)
    drawn, found, genes = of_project(project, wanted.cells), list[dict[str, Any]](), list[np.ndarray]()
    for kind in kinds(project, drawn.stages[project.config.root_stage].train.expression):
        sys.stderr.write(f"{kind.name}\n")
        made = on_levels(drawn, kind)
        learner = Exact(made) if kind.features is None else OfFeatures(made)
        rights = right(learner, made)
        genes = genes or rights
        figures: Figures = measured(learner, made)
        found.append({"features": kind.name, "n": len(made.genes), "apart": apart(rights, genes), **figures})
    console = Console(width=170, stderr=wanted.json)
    console.print(table(project.layout.root.name, found))
    if wanted.json:
        sys.stdout.write(json.dumps(found, indent=1) + "\n")


def table(name: str, found: Sequence[dict[str, Any]]) -> Table:
    """Return a row a kind of features."""
    shown = Table(title=f"{name}: the exact memory on other features, the project's own split")
    for heading in ("features", "number", "less genes, points [95 %]", *COLUMNS.values()):
        shown.add_column(heading, justify="left" if heading == "features" else "right")
    for one in found:
        gap = "{:+.2f} [{:+.2f}, {:+.2f}]".format(*(100 * value for value in one["apart"]))
        values = ["-" if one[key] is None else f"{one[key]:.3f}" for key in COLUMNS]
        shown.add_row(one["features"], str(one["n"]), gap, *values)
    return shown


if __name__ == "__main__":
    main()
