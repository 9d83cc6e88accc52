"""Network, sums and both together, on the test cells of finished projects whose method is combined.

    python benchmarks/combined.py                                  # this project
    python benchmarks/combined.py --root . /tmp/immune /tmp/first  # others, too
    python benchmarks/combined.py --novelty                        # and each type left out in turn

For each stage's version: accuracy (mean over stages so far), mean negative log likelihood and calibration
error of the network alone, of the sums alone and of what the version answers, the network's weight in it, and
how many labels the fast answer (``--effort fast``) has otherwise than the full one, with a 95 % interval.
Of several projects of the same stages (other seeds) the means follow, and in how many of them both together
are at least as accurate as the better one less a standard error, and likelier than either.

With ``--novelty`` every type is left out in turn, of the sums with its scatter, of the network by a head
learned anew, and test cells are asked: H-score and AUROC of each side and of what the version answers, whose
parts were chosen on validation cells of all types. Needs finished projects; changes nothing in them.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from canal.app.learning import examination, held_out_cells
from canal.app.project import Project
from canal.app.tasks import training_hooks
from canal.continual.combining import held_out_types
from canal.continual.exact_learner import ExactLearner
from canal.continual.held_out_heads import held_out_type_heads
from canal.memory.answer import ExactAnnotator
from canal.memory.prediction import calibration
from canal.memory.stage_sums import StageSums
from canal.model.annotator import Annotator
from canal.model.combined import CombinedAnnotator, FastAnnotator
from canal.model.load import CellAnnotator, method_of

_LEAST = 1e-12
_WIDE = 160
WHO = ("network", "sums", "both")


def measured(project: Project, stage: str) -> dict[str, Any] | None:
    """Return how a stage's version does; None where it is not of the combined method."""
    folder = project.layout.model(stage)
    if method_of(folder / "model") != "combined":
        return None
    whole = CombinedAnnotator.load(folder / "model")
    both: CombinedAnnotator | ExactAnnotator = whole if whole.combination.weight else whole.exact
    stages = (*project.config.ancestors(stage), stage)
    sums = StageSums.load(folder, stages)
    missing = {} if sums is None else sums.missing
    sides = {"network": Annotator.load(folder / "model"), "sums": ExactAnnotator.load(folder / "model/exact")}
    rule = both.novelty
    found: dict[str, Any] = {"weight": whole.combination.weight, "parts": list(rule.parts) if rule else []}
    for name, annotator in {**sides, "both": both}.items():
        found[name] = _figures(annotator, project, stages, missing)
    found["fast"] = _differing(FastAnnotator(whole), whole, project, stages, missing)
    return found


def _figures(
    annotator: CellAnnotator, project: Project, stages: tuple[str, ...], missing: Any
) -> dict[str, float]:
    right, costs, sure, by_stage = list[bool](), list[float](), list[float](), list[float]()
    for name in stages:
        cells = project.cells(name, "test", annotator.genes)
        said = annotator.without(missing.get(name, ())).predict(cells.expression)
        targets = cells.targets(annotator.labels)
        own = said.probabilities[np.arange(len(cells)), targets]
        hit = np.array(said.labels, dtype=object) == np.array(cells.cell_types, dtype=object)
        by_stage.append(float(hit.mean()))
        right += hit.tolist()
        costs += (-np.log(np.maximum(own, _LEAST))).tolist()
        sure += said.confidence.tolist()
    random = np.random.default_rng(0)
    error = calibration(np.array(sure, dtype=np.float64), np.array(right), random)
    return {
        "accuracy": float(np.mean(by_stage)),
        "standard_error": float(np.std(right) / np.sqrt(len(right))),
        "nll": float(np.mean(costs)),
        "ece": error["ece"],
    }


def noticed(project: Project, stage: str) -> dict[str, dict[str, Any]]:
    """Return of network, sums and both how well they notice each type that can be left out."""
    folder, config = project.layout.model(stage), project.config
    whole = CombinedAnnotator.load(folder / "model")
    cells = held_out_cells(project, stage, examination(project, stage))
    sums = StageSums.load(folder, (*config.ancestors(stage), stage))
    assert sums is not None
    every, kept = config.novelty.model_copy(update={"holdouts": whole.labels}), training_hooks(project)
    learner = ExactLearner(sums, config.memory, every)

    def by(annotator: CombinedAnnotator | ExactAnnotator) -> dict[str, Any]:
        return held_out_types(annotator, learner, cells, config.seed, kept)

    of_sums = by(whole.exact)
    return {
        "network": held_out_type_heads(whole.network, cells, every, config.seed, kept),
        "sums": of_sums,
        "both": by(whole) if whole.combination.weight else of_sums,
    }


def _differing(
    fast: FastAnnotator, full: CombinedAnnotator, project: Project, stages: tuple[str, ...], missing: Any
) -> dict[str, float]:
    """Return how many labels a fast answer has otherwise, and how many cells the network was asked."""
    differ, asked = list[bool](), list[bool]()
    for name in stages:
        cells, gone = project.cells(name, "test", full.genes), missing.get(name, ())
        one, other = (side.without(gone).predict(cells.expression) for side in (fast, full))
        differ += [a != b for a, b in zip(one.labels, other.labels, strict=True)]
        asked += [] if one.by_network is None else one.by_network.tolist()
    share = float(np.mean(differ))
    reach = 1.96 * float(np.sqrt(share * (1 - share) / len(differ)))
    return {
        "differ": share,
        "low": max(0.0, share - reach),
        "high": share + reach,
        "asked": float(np.mean(asked)),
    }


def table(name: str, found: dict[str, dict[str, Any]]) -> Table:
    """Return the figures of one project."""
    made = Table(title=f"{name}: mean accuracy, % / negative log likelihood / calibration error, %")
    for heading in ("version", *WHO, "network's weight", "fast: other labels, %", "asked, %"):
        made.add_column(heading, justify="left" if heading == "version" else "right")
    for stage, one in found.items():
        cells = [
            f"{100 * one[who]['accuracy']:.1f} / {one[who]['nll']:.3f} / {100 * one[who]['ece']:.1f}"
            for who in WHO
        ]
        fast = one["fast"]
        differ = f"{100 * fast['differ']:.1f} ({100 * fast['low']:.1f}-{100 * fast['high']:.1f})"
        made.add_row(stage, *cells, f"{one['weight']:g}", differ, f"{100 * fast['asked']:.1f}")
    return made


def novelty_table(name: str, found: dict[str, dict[str, Any]]) -> Table:
    """Return how well types left out of one project are noticed."""
    made = Table(title=f"{name}: types left out in turn, H-score, % / AUROC, %")
    for heading in ("version", "types", *WHO, "made of"):
        made.add_column(heading, justify="right" if heading in ("types", *WHO) else "left")
    for stage, one in found.items():
        if (told := one.get("novelty")) and told["network"]["holdouts"]:
            cells = [f"{100 * told[who]['h_score']:.1f} / {100 * told[who]['auroc']:.1f}" for who in WHO]
            made.add_row(stage, str(len(told["network"]["holdouts"])), *cells, ", ".join(one["parts"]))
    return made


def summaries(found: dict[str, dict[str, Any]]) -> list[Table]:
    """Return the means over projects of the same stages, a table for each such group."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for one in found.values():
        groups.setdefault(tuple(one), []).append(one)
    return [_summary(stages, group) for stages, group in groups.items() if stages and len(group) > 1]


def _summary(stages: tuple[str, ...], group: list[dict[str, Any]]) -> Table:
    made = Table(
        title=f"mean of {len(group)} projects of {', '.join(stages)}: accuracy, % (SD) / NLL / ECE, %"
    )
    for heading in ("version", *WHO, "weights", "as accurate", "likelier"):
        made.add_column(heading, justify="left" if heading == "version" else "right")
    for stage in stages:
        rows = [one[stage] for one in group]
        cells = []
        for who in WHO:
            values = {name: [row[who][name] for row in rows] for name in ("accuracy", "nll", "ece")}
            spread = (
                f"{100 * np.mean(values['accuracy']):.1f} ({100 * np.std(values['accuracy'], ddof=1):.1f})"
            )
            cells.append(f"{spread} / {np.mean(values['nll']):.3f} / {100 * np.mean(values['ece']):.1f}")
        better = [max(row["network"]["accuracy"], row["sums"]["accuracy"]) for row in rows]
        accurate = sum(
            row["both"]["accuracy"] >= best - row["both"]["standard_error"]
            for row, best in zip(rows, better, strict=True)
        )
        likelier = sum(row["both"]["nll"] <= min(row["network"]["nll"], row["sums"]["nll"]) for row in rows)
        weights = ", ".join(f"{row['weight']:g}" for row in rows)
        made.add_row(stage, *cells, weights, f"{accurate} of {len(rows)}", f"{likelier} of {len(rows)}")
    if all("novelty" in row[stage] for row in group for stage in stages):
        for stage in stages:
            cells = []
            for who in WHO:
                told = [one[stage]["novelty"][who] for one in group]
                pair = [100 * np.mean([each[name] for each in told]) for name in ("h_score", "auroc")]
                cells.append(f"H {pair[0]:.1f}, AUROC {pair[1]:.1f}")
            made.add_row(f"{stage}: types left out", *cells)
    return made


def main() -> None:
    """Measure the projects that are named, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--root", nargs="+", type=Path, default=[Path.cwd()], help="finished projects")
    parser.add_argument("--novelty", action="store_true", help="leave out each type in turn: minutes")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = {}
    for root in arguments.root:
        project = Project.open(root)
        stages = {stage: measured(project, stage) for stage in project.config.stages}
        made = {stage: one for stage, one in stages.items() if one is not None}
        for stage, one in made.items() if arguments.novelty else ():
            one["novelty"] = noticed(project, stage)
        found[root.resolve().name] = made
    if arguments.json:
        sys.stdout.write(json.dumps(found, indent=1) + "\n")
        return
    console = Console(width=None if sys.stdout.isatty() else _WIDE)
    for name, one in found.items():
        console.print(table(name, one) if one else f"{name}: no version is of the combined method")
        if one and arguments.novelty:
            console.print(novelty_table(name, one))
    for one_summary in summaries(found):
        console.print(one_summary)


if __name__ == "__main__":
    main()
