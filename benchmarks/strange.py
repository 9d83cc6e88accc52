"""How many cells of known types are called Unassigned in a new data set, and where genes are lacking.

    python benchmarks/strange.py                       # this project, each of its versions
    python benchmarks/strange.py --root /tmp/immune --json

Needs a finished `make run`, or a stream project of `stream.py`, and changes nothing in it. Each stage's model
gets the novelty rule that a version learned today has, and the published score with a threshold for the same
promise. Then it is asked about test cells of later stages, which it never learned from, and about test cells
that it may know, with genes taken away.
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

from canal.continual.novelty import quantile_threshold, with_rule
from canal.lessons import examination, shadow_cells
from canal.model.annotator import Annotator
from canal.project import Project

PUBLISHED, CANAL = "published", "canal"
SHARES = (0.0, 0.1, 0.25, 0.5)
DRAWS = 2


@dataclass(frozen=True, eq=False)
class Judges:
    """A stage's model with both rules, and test cells ``(n_cells, n_genes)`` of types that it knows."""

    by_name: dict[str, Annotator]
    expression: np.ndarray

    @classmethod
    def of(cls, project: Project, stage: str) -> Judges:
        """Set both rules on the stage's validation cells and probes."""
        annotator = Annotator.load(project.layout.model(stage) / "model")
        cells, settings = shadow_cells(project, stage, examination(project, stage)), project.config.novelty
        known, trained = (
            (annotator.gene_scores(some.expression), some.cell_types) for some in (cells.known, cells.train)
        )
        judge = with_rule(annotator, known, trained, settings, project.config.seed)
        assert judge.novelty is not None
        rule = replace(judge.novelty, blend=None)
        with torch.no_grad():
            scores = rule.score(judge.network.head.from_scores(known[0]).logits.numpy())
        rule = replace(rule, threshold=quantile_threshold(scores, settings.false_unassigned))
        by_name = {PUBLISHED: judge.with_novelty(rule), CANAL: judge}
        return cls(by_name, cells.test.expression[np.isin(cells.test.cell_types, annotator.labels)])


def lacking(judges: Judges, seed: int) -> list[dict[str, float]]:
    """Return the share of known cells that is Unassigned, by the share of genes that is gone.

    ``counted`` reads what is gone as not expressed; ``left_out`` is what `canal annotate` does.
    """
    judge, random = judges.by_name[CANAL], np.random.default_rng(seed)
    found = []
    for share in SHARES:
        draws = []
        for _ in range(DRAWS if share else 1):
            gone = random.permutation(len(judge.genes))[: round(share * len(judge.genes))]
            expression = judges.expression.copy()
            expression[:, gone] = 0
            missing = [judge.genes[i] for i in gone]
            draws.append([one.predict(expression).is_novel.mean() for one in (judge, judge.without(missing))])
        counted, left_out = np.mean(draws, axis=0)
        found.append({"share": share, "counted": float(counted), "left_out": float(left_out)})
    return found


def shifted(project: Project, judges: Judges, later: str) -> dict[str, Any]:
    """Return what both rules say of a later stage's test cells: of known types, and of unknown ones."""
    genes, labels = judges.by_name[CANAL].genes, judges.by_name[CANAL].labels
    cells, there = project.cells(later, "test", genes), set(project.prepared(later).genes)
    missing = [gene for gene in genes if gene not in there]
    unknown = ~np.isin(cells.cell_types, labels)
    found: dict[str, Any] = {
        "n_known": int((~unknown).sum()),
        "n_unknown": int(unknown.sum()),
        "genes_missing": len(missing),
    }
    for name, judge in judges.by_name.items():
        prediction = judge.without(missing).predict(cells.expression)
        novel, both = prediction.is_novel, unknown.any() and not unknown.all()
        found[name] = {
            "false_unassigned": float(novel[~unknown].mean()) if not unknown.all() else None,
            "noticed": float(novel[unknown].mean()) if unknown.any() else None,
            "auroc": auroc(prediction.novelty, unknown) if both else None,
        }
    return found


def measured(root: Path) -> dict[str, Any]:
    """Return all that is measured of one project, by stage."""
    project = Project.open(root)
    torch.set_num_threads(project.config.threads)
    found = {}
    for stage, entry in project.config.stages.items():
        sys.stderr.write(f"{project.layout.root.name}, {stage}\n")
        judges = Judges.of(project, stage)
        behind = [name for name in project.config.stages if stage in project.config.ancestors(name)]
        found[stage] = {
            "parent": entry.parent,
            "n_cells": len(judges.expression),
            "lacking": lacking(judges, project.config.seed),
            "later": {later: shifted(project, judges, later) for later in behind},
        }
    return found


def tables(name: str, found: dict[str, Any]) -> list[Table]:
    """Return one project's measures as tables."""
    gone = Table(title=f"{name}: known test cells called Unassigned, %: what is gone counts as 0 / left out")
    for heading in ("version", "cells", *(f"{100 * share:g} % gone" for share in SHARES)):
        gone.add_column(heading, justify="left" if heading == "version" else "right")
    later = Table(title=f"{name}: test cells of a data set never learned, %: {PUBLISHED} score / {CANAL}")
    for heading in ("version", "asked about", "known", "Unassigned", "unknown", "noticed", "AUROC"):
        later.add_column(heading, justify="left" if heading in ("version", "asked about") else "right")
    for stage, one in found.items():
        pairs = [_pair(each["counted"], each["left_out"]) for each in one["lacking"]]
        gone.add_row(stage, str(one["n_cells"]), *pairs)
        for other, each in one["later"].items():
            values = [
                _pair(*(each[rule][key] for rule in (PUBLISHED, CANAL)))
                for key in ("false_unassigned", "noticed", "auroc")
            ]
            missing = f"{other}, {each['genes_missing']} genes missing"
            later.add_row(
                stage, missing, str(each["n_known"]), values[0], str(each["n_unknown"]), *values[1:]
            )
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
