"""Known cells that the sums call Unassigned: in studies left out, with genes gone, in shallower cells.

    python benchmarks/exact_strange.py                               # the embedded stream
    python benchmarks/exact_strange.py --data ~/cells --seeds 3      # immune, too

Each study is left out in turn; the others' sums are solved, their rule is set on validation cells as canal
does, and the study's test cells are asked: of types that the others know (*known*), and of those they do not
(*unknown*). Then the sums of all studies are asked about their test cells with a share of the genes gone, and
with counts thinned to a share (of 2,500 counts a cell, which the files no longer tell). Last, each type of
``novelty.holdouts`` is left out of all studies: H-score and AUROC as `canal.continual.combining` has them.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import stream
from exact_learners import Exact
from exact_streams import Drawn, Stream
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

from canal.continual.cells import LabelledCells
from canal.continual.combining import held_out_types
from canal.continual.exact_learner import ExactLearner, LabelledLevels
from canal.continual.held_out_heads import HeadCells
from canal.memory.answer import ExactAnnotator
from canal.memory.stage_sums import StageSums

GONE, KEPT = (0.0, 0.1, 0.25, 0.5), (1.0, 0.5, 0.25)
_COUNTS = 2500
Figures = dict[tuple[str, str], list[float]]


def answering(drawn: Drawn, sums: StageSums) -> ExactAnnotator:
    """Return what some stages' sums answer, set on their validation cells."""
    parts = [drawn.stages[name].validation for name in sums.stages]
    validation = LabelledLevels.of_cells(LabelledCells.concatenate(parts), sums)
    learner = ExactLearner(sums, drawn.config.memory, drawn.config.novelty)
    return learner.annotator(sums.types, drawn.genes, validation)


def left_out(drawn: Drawn, sums: StageSums, found: Figures) -> None:
    """Ask about each study by the sums of the others."""
    for name, cells in drawn.stages.items():
        annotator = answering(drawn, sums.without_stage(name))
        said = annotator.without(cells.missing).predict(cells.test.expression)
        known = np.isin(cells.test.cell_types, annotator.labels)
        found["left out, known Unassigned", name].append(float(said.is_novel[known].mean()))
        found["left out, like learned studies", name].append(float(np.mean(said.of_learned)))
        if not known.all():
            found["left out, unknown noticed", name].append(float(said.is_novel[~known].mean()))


def changed(drawn: Drawn, sums: StageSums, found: Figures) -> None:
    """Ask about test cells with genes gone, and with counts thinned."""
    annotator, random = answering(drawn, sums), np.random.default_rng(drawn.config.seed)
    for cells in drawn.stages.values():
        expression = cells.test.expression
        for share in GONE:
            n = round(share * len(drawn.genes))
            gone = {drawn.genes[i] for i in random.permutation(len(drawn.genes))[:n]} | set(cells.missing)
            there = np.array([gene not in gone for gene in drawn.genes])
            said = annotator.without(gone).predict(expression * there)
            found["genes gone", f"{share:.0%}"].append(float(said.is_novel.mean()))
        for share in KEPT:
            counts = np.rint((np.exp2(expression.astype(np.float64)) - 1) * _COUNTS / 1e4).astype(np.int64)
            thin = random.binomial(counts, share) * 1e4 / (_COUNTS * share)
            said = annotator.without(cells.missing).predict(np.log2(1 + thin).astype(np.float32))
            found["counts kept", f"{share:.0%}"].append(float(said.is_novel.mean()))


def noticed(drawn: Drawn, sums: StageSums, found: Figures) -> None:
    """Leave types out of all studies."""
    config, stages = drawn.config, drawn.stages.values()
    cells = HeadCells(
        *(
            LabelledCells.concatenate([getattr(one, part) for one in stages])
            for part in ("train", "validation", "test")
        )
    )
    annotator = answering(drawn, sums)
    learner = ExactLearner(sums, config.memory, config.novelty)
    asked = held_out_types(annotator, learner, cells, config.seed)
    for name in ("h_score", "auroc"):
        found["types left out", name].append(float(asked[name]))


def main() -> None:
    """Measure the streams, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with the files of immune")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--into", type=Path, default=Path(".canal/exact"))
    arguments = parser.parse_args()
    console = Console()
    for name in ("embedded", *(("immune", "pancreas", "first") if arguments.data else ())):
        line = Stream(name, arguments.data, arguments.into / "prepared", stream.REPOSITORY / ".canal")
        found: Figures = defaultdict(list)
        with threadpool_limits(1):
            for seed in range(arguments.seeds):
                sys.stderr.write(f"{name}, seed {seed}\n")
                drawn = line.drawn(seed)
                sums = Exact(drawn).sums
                if len(sums.stages) > 2:
                    left_out(drawn, sums, found)
                changed(drawn, sums, found)
                noticed(drawn, sums, found)
        table = Table(title=f"{name}: %, mean over {arguments.seeds} seeds, test cells")
        for heading in ("what", "of", "%"):
            table.add_column(heading, justify="right" if heading == "%" else "left")
        for (what, of), values in found.items():
            table.add_row(what, of, f"{100 * float(np.mean(values)):.1f}")
        console.print(table)


if __name__ == "__main__":
    main()
