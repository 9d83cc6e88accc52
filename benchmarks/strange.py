"""How many cells of known types are called Unassigned in a new data set, and where genes are lacking.

    python benchmarks/strange.py                       # this project, each of its versions
    python benchmarks/strange.py --root /tmp/immune --json

Needs a finished `make run`, or a stream project of `stream.py`, and changes nothing in it. Each stage's model
gets the novelty rule of all three parts, and its parts get thresholds for the same promise.
Then it is asked about test cells of later stages, which it never learned from, and about test cells that it
may know, with genes taken away.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from novelty import auroc
from rich.console import Console
from rich.table import Table

from canal.app.learning import examination, held_out_cells
from canal.app.project import Project
from canal.continual.novelty_choice import quantile_threshold, with_rule
from canal.model.annotator import Annotator

CANAL = "published + distance + angle"
SCORES = ("published", "published + distance", "angle", CANAL)
SHARES = (0.0, 0.1, 0.25, 0.5)
DRAWS = 2


@dataclass(frozen=True, eq=False)
class Judge:
    """A stage's model with today's rule, thresholds of each score, and test cells of types that it knows."""

    annotator: Annotator
    thresholds: dict[str, float]
    expression: np.ndarray

    @classmethod
    def of(cls, project: Project, stage: str) -> Judge:
        """Set rule and thresholds on the stage's validation cells and probes."""
        annotator = Annotator.load(project.layout.model(stage) / "model")
        cells, settings = held_out_cells(project, stage, examination(project, stage)), project.config.novelty
        known, trained = (
            (annotator.gene_scores(some.expression), some.cell_types)
            for some in (cells.validation, cells.train)
        )
        annotator = with_rule(annotator, known, trained, settings, project.config.seed)
        thresholds = {
            name: quantile_threshold(values, settings.false_unassigned)
            for name, values in scored(annotator, known[0]).items()
        }
        tested = cells.test.expression[np.isin(cells.test.cell_types, annotator.labels)]
        return cls(annotator, thresholds, tested)


@torch.no_grad()
def scored(annotator: Annotator, gene_scores: torch.Tensor) -> dict[str, np.ndarray]:
    """Return canal's novelty of cells, and that of its parts; the larger, the stranger."""
    rule, centroids = annotator.novelty, annotator.centroids
    assert rule is not None
    assert rule.blend is not None
    assert centroids is not None
    logits, apart = annotator.network.head.from_scores(gene_scores).logits.numpy(), centroids.of(gene_scores)
    without_angle = replace(rule, blend=replace(rule.blend, angle_mean=None, angle_spread=None))
    both = without_angle.score(logits, apart)
    values = (rule.published_score(logits), both, apart.angle.double().numpy(), rule.score(logits, apart))
    return dict(zip(SCORES, values, strict=True))


def lacking(judge: Judge, seed: int) -> list[dict[str, float]]:
    """Return the share of known cells that is Unassigned, by the share of genes that is gone.

    ``counted`` reads what is gone as not expressed; ``left_out`` is what `canal annotate` does.
    """
    annotator, random = judge.annotator, np.random.default_rng(seed)
    found = []
    for share in SHARES:
        draws = []
        for _ in range(DRAWS if share else 1):
            gone = random.permutation(len(annotator.genes))[: round(share * len(annotator.genes))]
            expression = judge.expression.copy()
            expression[:, gone] = 0
            gene_scores = annotator.gene_scores(expression)
            missing = [annotator.genes[i] for i in gone]
            novelty = [scored(one, gene_scores)[CANAL] for one in (annotator, annotator.without(missing))]
            draws.append([(values > judge.thresholds[CANAL]).mean() for values in novelty])
        counted, left_out = np.mean(draws, axis=0)
        found.append({"share": share, "counted": float(counted), "left_out": float(left_out)})
    return found


def shifted(project: Project, judge: Judge, later: str) -> dict[str, Any]:
    """Return what each score says of a later stage's test cells: of known types, and of unknown ones."""
    annotator = judge.annotator
    cells, there = project.cells(later, "test", annotator.genes), set(project.prepared(later).genes)
    missing = [gene for gene in annotator.genes if gene not in there]
    unknown = ~np.isin(cells.cell_types, annotator.labels)
    found: dict[str, Any] = {
        "n_known": int((~unknown).sum()),
        "n_unknown": int(unknown.sum()),
        "genes_missing": len(missing),
    }
    gene_scores = annotator.gene_scores(cells.expression)
    for name, values in scored(annotator.without(missing), gene_scores).items():
        novel, both = values > judge.thresholds[name], unknown.any() and not unknown.all()
        found[name] = {
            "false_unassigned": float(novel[~unknown].mean()) if not unknown.all() else None,
            "noticed": float(novel[unknown].mean()) if unknown.any() else None,
            "auroc": auroc(values, unknown) if both else None,
        }
    return found


def measured(root: Path) -> dict[str, Any]:
    """Return all that is measured of one project, by stage."""
    project = Project.open(root)
    torch.set_num_threads(project.config.threads)
    found = {}
    for stage in project.config.stages:
        sys.stderr.write(f"{project.layout.root.name}, {stage}\n")
        judge = Judge.of(project, stage)
        behind = [name for name in project.config.stages if stage in project.config.ancestors(name)]
        found[stage] = {
            "n_cells": len(judge.expression),
            "lacking": lacking(judge, project.config.seed),
            "later": {later: shifted(project, judge, later) for later in behind},
        }
    return found


def tables(name: str, found: dict[str, Any]) -> list[Table]:
    """Return one project's measures as tables."""
    gone = Table(title=f"{name}: known test cells called Unassigned, %: what is gone counts as 0 / left out")
    for heading in ("version", "cells", *(f"{100 * share:g} % gone" for share in SHARES)):
        gone.add_column(heading, justify="left" if heading == "version" else "right")
    later = Table(title=f"{name}: test cells of a data set never learned, %: {' / '.join(SCORES)}")
    for heading in ("version", "asked about", "known", "Unassigned", "unknown", "noticed", "AUROC"):
        later.add_column(heading, justify="left" if heading in ("version", "asked about") else "right")
    for stage, one in found.items():
        pairs = [_pair(each["counted"], each["left_out"]) for each in one["lacking"]]
        gone.add_row(stage, str(one["n_cells"]), *pairs)
        for other, each in one["later"].items():
            values = [
                _pair(*(each[rule][key] for rule in SCORES))
                for key in ("false_unassigned", "noticed", "auroc")
            ]
            asked = f"{other}, {each['genes_missing']} genes missing"
            later.add_row(stage, asked, str(each["n_known"]), values[0], str(each["n_unknown"]), *values[1:])
    return [gone, later]


def _pair(*values: float | None) -> str:
    return " / ".join("-" if value is None else f"{100 * value:.0f}" for value in values)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the arguments, measure each project, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--root", type=Path, nargs="+", default=[Path()], help="project folders")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    wishes = parser.parse_args(arguments)
    found = {root.resolve().name: measured(root) for root in wishes.root}
    if wishes.json:
        sys.stdout.write(json.dumps(found, indent=1) + "\n")
        return
    for name, one in found.items():
        for table in tables(name, one):
            Console(width=130).print(table)


if __name__ == "__main__":
    main()
