"""Coarse cell types by the Cell Ontology, beside leaving the least confident cells without a name.

    python benchmarks/hierarchy.py                               # the embedded stream
    python benchmarks/hierarchy.py --data ~/cells --seeds 5      # immune, pancreas and first, too

Sums of all studies are asked about the studies' test cells (*learned*); then each study is left out, and
the others' sums are asked about its test cells (*left out*), of types that they know and of *unknown* ones.
A name is right if it is the truth or a term that the truth is a kind of, else wrong; shares are of all cells.
*coarse* names a cell by the deepest term whose probability reaches the bound, *cut* by its likeliest type,
but for the least confident cells: as many as *coarse* leaves without a name. Cells that are novel have no
name by either. Names of *one type* are those that *cut* gives, too.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import stream
from exact_figures import differences, interval
from exact_learners import Exact
from exact_strange import answering
from exact_streams import STREAMS, Drawn, StageCells, Stream
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

from canal.annotation.coarse import BOUND, NONE, Hierarchy
from canal.data.cell_ontology import cell_ontology
from canal.memory.answer import ExactAnnotator

BOUNDS = (0.6, 0.7, 0.8, BOUND, 0.95)
IDS = {
    "B": "CL:0000236",
    "CD4 T": "CL:0000624",
    "CD8 T": "CL:0000625",
    "Treg": "CL:0000815",
    "gdT": "CL:0000798",
    "NK": "CL:0000623",
    "plasma": "CL:0000786",
    "CD14 Mono": "CL:0002057",
    "CD16 Mono": "CL:0002396",
    "DC": "CL:0000451",
    "pDC": "CL:0000784",
    "MK": "CL:0000556",
    "HSPC": "CL:0008001",
    "mast": "CL:0000097",
    "alpha": "CL:0000171",
    "beta": "CL:0000169",
    "delta": "CL:0000173",
    "gamma": "CL:0002275",
    "ductal": "CL:0002079",
    "endothelial": "CL:0000115",
}
"""Terms of the streams' types; MDC (first) is a mixture and has none."""

Figures = dict[str, float]
Found = Mapping[tuple[str, float], Sequence[Figures]]
"""Setting and bound -> what was measured, seed by seed."""

SETTINGS = ("learned", "left out", "left out, known")


@dataclass(frozen=True, eq=False)
class Asked:
    """What sums say of some cells, one row a cell.

    Attributes
    ----------
    sure : numpy.ndarray
        Probability of the likeliest type.
    right : numpy.ndarray
        Whether that type is the truth, or the truth is of its kind.
    known, novel : numpy.ndarray
        Whether the sums know the true type, and whether the rule of novelty calls the cell Unassigned.
    coarse : dict
        Bound -> whether a node reaches it, whether that is right, and how many types it leaves open.
    """

    sure: np.ndarray
    right: np.ndarray
    known: np.ndarray
    novel: np.ndarray
    coarse: Mapping[float, tuple[np.ndarray, ...]]

    @classmethod
    def of(cls, annotator: ExactAnnotator, cells: StageCells) -> Asked:
        """Ask about the test cells of a study."""
        truth = np.array(cells.test.cell_types)
        said = annotator.without(cells.missing).predict(cells.test.expression)
        hierarchy = Hierarchy.of(annotator.labels, IDS)
        fits = {name: _right_nodes(hierarchy, name) for name in set(cells.test.cell_types)}
        right = np.stack([fits[name] for name in truth])  # (n_cells, n_nodes)
        rows, best = np.arange(len(truth)), said.probabilities.argmax(axis=1)
        coarse = {}
        for bound in BOUNDS:
            node, _ = hierarchy.answers(said.probabilities, bound)
            coarse[bound] = (
                node != NONE,
                right[rows, node] & (node != NONE),
                hierarchy.members.sum(axis=0)[node],
            )
        known = np.isin(truth, annotator.labels)
        return cls(said.confidence, right[rows, best], known, said.is_novel, coarse)

    @classmethod
    def pooled(cls, parts: Sequence[Asked]) -> Asked:
        """Return the cells of several studies as one."""
        own = [np.concatenate([getattr(one, name) for one in parts]) for name in _OWN]
        coarse = {
            bound: tuple(map(np.concatenate, zip(*(one.coarse[bound] for one in parts), strict=True)))
            for bound in BOUNDS
        }
        return cls(*own, coarse)

    def among(self, cells: np.ndarray) -> Asked:
        """Return some of the cells."""
        own = [getattr(self, name)[cells] for name in _OWN]
        coarse = {bound: tuple(values[cells] for values in one) for bound, one in self.coarse.items()}
        return Asked(*own, coarse)


_OWN = ("sure", "right", "known", "novel")


def _right_nodes(hierarchy: Hierarchy, truth: str) -> np.ndarray:
    """Return which nodes are the truth or what it is a kind of, bool ``(n_nodes,)``."""
    lineage = cell_ontology().lineage(IDS.get(truth, ""))
    pairs = zip(hierarchy.names, hierarchy.ids, strict=True)
    return np.array([name == truth or term in lineage for name, term in pairs])


def measured(asked: Asked, bound: float) -> Figures:
    """Return shares of all cells, by coarse names and by the likeliest type with the least confident cut."""
    n, may = len(asked.sure), ~asked.novel
    has, right, open_types = asked.coarse[bound]
    named, closer = may & has, may & has & (open_types == 1)
    # As many names, given to the most confident of the cells that are not novel.
    order = np.lexsort((np.arange(n), -asked.sure, ~may))
    cut = order[: int(named.sum())]
    broad = named & ~closer
    unsure = may & (asked.sure.astype(np.float32) < np.float32(bound))
    return {
        "named today": float(may.mean()),
        "wrong today": float((may & ~asked.right).mean()),
        "named": float(named.mean()),
        "wrong, coarse": float((named & ~right).mean()),
        "wrong, cut": float((~asked.right[cut]).sum() / n),
        "one type": float(closer.mean()),
        "several types": float(broad.mean()),
        "open": float(open_types[broad].mean()) if broad.any() else float("nan"),
        "named by cut, as many wrong": _at_error(asked, order, int((named & ~right).sum())) / n,
        "unsure": float(unsure.mean()),
        **{
            f"unsure, {what}": float((unsure & cells).sum() / max(1, unsure.sum()))
            for what, cells in {
                "right type": asked.right,
                "right name": has & right,
                "wrong name": has & ~right,
            }.items()
        },
    }


def _at_error(asked: Asked, order: np.ndarray, errors: int) -> int:
    """Return how many of the most confident cells have a likeliest type with no more errors than these."""
    able = order[: int((~asked.novel).sum())]
    wrong = np.cumsum(~asked.right[able])
    return int((wrong <= errors).sum())


def of_novel(asked: Asked, bound: float) -> Figures:
    """Return what names the cells of one kind would get that the rule of novelty calls Unassigned."""
    has, right, _ = asked.coarse[bound]
    n = max(1, int(asked.novel.sum()))
    return {
        "Unassigned": float(asked.novel.mean()),
        "right type": float((asked.novel & asked.right).sum() / n),
        "right name": float((asked.novel & right).sum() / n),
        "wrong name": float((asked.novel & has & ~right).sum() / n),
    }


def over_seeds(line: Stream, seeds: int) -> Found:
    """Return what is measured of a stream."""
    found: dict[tuple[str, float], list[Figures]] = defaultdict(list)
    for seed in range(seeds):
        sys.stderr.write(f"{line.name}, seed {seed}\n")
        for setting, asked in _settings(line.drawn(seed)).items():
            for bound in BOUNDS:
                found[setting, bound].append(measured(asked, bound))
            for kind, cells in (("known", asked.known), ("unknown", ~asked.known)):
                if setting == "left out" and cells.any():
                    found[kind, BOUND].append(of_novel(asked.among(cells), BOUND))
    return found


def _settings(drawn: Drawn) -> dict[str, Asked]:
    sums = Exact(drawn).sums
    whole = answering(drawn, sums)
    settings = {"learned": Asked.pooled([Asked.of(whole, cells) for cells in drawn.stages.values()])}
    if len(sums.stages) > 1:
        parts = [
            Asked.of(answering(drawn, sums.without_stage(name)), cells)
            for name, cells in drawn.stages.items()
        ]
        left = settings["left out"] = Asked.pooled(parts)
        settings["left out, known"] = left.among(left.known)
    return settings


def share(figures: Sequence[Figures], key: str) -> str:
    """Return the mean over seeds in percent."""
    return f"{100 * average(figures, key):.1f}"


def average(figures: Sequence[Figures], key: str) -> float:
    """Return the mean over seeds of a figure, of those in which it could be measured."""
    values = [one[key] for one in figures if np.isfinite(one[key])]
    return float(np.mean(values)) if values else float("nan")


def table(title: str, headings: Sequence[str]) -> Table:
    """Return an empty table, its first column of words and the others of figures."""
    shown = Table(title=title, title_justify="left")
    for number, heading in enumerate(headings):
        shown.add_column(heading, justify="right" if number else "left")
    return shown


def names_table(title: str, found: Found) -> Table:
    """Return the table of names by setting and bound."""
    keys = ("named today", "wrong today", "named", "one type", "several types")
    headings = ("cells", "bound", "named today", "wrong", "coarse: named", "one type", "several", "left open")
    shown = table(
        title, (*headings, "wrong", "cut, as many named: wrong", "coarse less cut", "as many wrong: named")
    )
    for (setting, bound), figures in found.items():
        if setting in SETTINGS:
            pairs = ([{"x": one[key]} for one in figures] for key in ("wrong, coarse", "wrong, cut"))
            shown.add_row(
                setting,
                f"{bound:g}",
                *(share(figures, key) for key in keys),
                "-" if np.isnan(opened := average(figures, "open")) else f"{opened:.1f}",
                share(figures, "wrong, coarse"),
                share(figures, "wrong, cut"),
                interval(differences(*pairs, "x")),
                share(figures, "named by cut, as many wrong"),
            )
    return shown


def unsure_table(title: str, found: Found) -> Table:
    """Return what becomes of cells that are not novel, and whose likeliest type is below the bound."""
    shown = table(
        title, ("cells", "bound", "of all", "likeliest type right", "right name", "wrong name", "none")
    )
    for (setting, bound), figures in found.items():
        if setting in SETTINGS and bound == BOUND:
            named = [average(figures, f"unsure, {what} name") for what in ("right", "wrong")]
            shown.add_row(
                setting,
                f"{bound:g}",
                share(figures, "unsure"),
                share(figures, "unsure, right type"),
                *(f"{100 * one:.1f}" for one in (*named, 1 - sum(named))),
            )
    return shown


def novel_table(title: str, found: Found) -> Table:
    """Return what names cells would get that are Unassigned in studies left out."""
    shown = table(title, ("of type", "Unassigned", "likeliest type right", "right name", "wrong name"))
    for (setting, _), figures in found.items():
        if setting not in SETTINGS:
            shown.add_row(setting, *(share(figures, key) for key in ("Unassigned", "right type", *_NAMES)))
    return shown


_NAMES = ("right name", "wrong name")


def main() -> None:
    """Measure the streams, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with the files of immune and pancreas")
    parser.add_argument("--streams", nargs="+", choices=STREAMS, help="these alone")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--into", type=Path, default=Path(".canal/exact"))
    arguments = parser.parse_args()
    console = Console(width=180)
    for name in arguments.streams or (
        "embedded",
        *(("immune", "pancreas", "first") if arguments.data else ()),
    ):
        line = Stream(name, arguments.data, arguments.into / "prepared", stream.REPOSITORY / ".canal")
        with threadpool_limits(1):
            found = over_seeds(line, arguments.seeds)
        of = f"mean over {arguments.seeds} seeds, test cells"
        console.print(names_table(f"{name}: % of all cells, {of}", found))
        console.print(unsure_table(f"{name}: cells below the bound, %, {of}", found))
        console.print(
            novel_table(f"{name}: cells that are novel in a study left out, bound {BOUND:g}, %", found)
        )


if __name__ == "__main__":
    main()
