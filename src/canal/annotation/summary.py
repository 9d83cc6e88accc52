"""Summaries of labels: counts and warnings of one annotation, and the label changes between two models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from canal.annotation import drift
from canal.annotation.coarse import unplaced_warning
from canal.annotation.columns import (
    CELL_TYPE,
    COARSE_TYPE,
    CONFIDENCE,
    IS_NOVEL,
    LOW_QUALITY,
    NOVELTY,
    UNASSIGNED,
    named,
    reasons,
)
from canal.annotation.coverage import Coverage
from canal.annotation.naming import ambiguity_warning, mouse_warning
from canal.annotation.options import Options
from canal.annotation.query_units import AUTO
from canal.annotation.reading import Block, Reading
from canal.config.sections import Values
from canal.core.files import new_file
from canal.io.writer import table_as_text
from canal.memory.answer import PROMISE

if TYPE_CHECKING:
    import pandas as pd

    from canal.memory.prediction import Prediction
    from canal.model.load import CellAnnotator


@dataclass(frozen=True)
class Summary:
    """The summary of an annotation.

    Attributes
    ----------
    n_cells : int
    values : str
        The units of the values.
    detected : bool
        Whether the units were detected, not given.
    coverage : Coverage
        Which of the model's genes the query had.
    counts : dict
        Cells of each type, "Unassigned" included, most frequent first.
    warnings : tuple of str
        Why the labels are less certain.
    renamed : dict
        Genes found by another name: the column of var, and the number of genes by method.
    lost : dict
        Where coverage is low: for each type the share of its weight on missing genes.
    study : dict
        How similar the cells are to those of the learned studies; see `Likeness.to_json`.
    distributions : dict
        Novelty, confidence and depth of the cells in fiftieths, and the median counts of a cell, for
        `canal.annotation.drift`; see `Depth`.
    unassigned_by : dict
        With limits of novelty or confidence: the "Unassigned" cells by reason, a cell by the first of
        ``low_quality``, ``is_novel``, ``max_novelty`` and ``min_confidence``.
    coarse : dict
        With coarse types: cells of each, "Unassigned" included, most frequent first.
    """

    n_cells: int
    values: Values
    detected: bool
    coverage: Coverage
    counts: dict[str, int]
    warnings: tuple[str, ...]
    renamed: Mapping[str, Any] = field(default_factory=dict)
    lost: Mapping[str, float] = field(default_factory=dict)
    study: Mapping[str, Any] = field(default_factory=dict)
    unassigned_by: Mapping[str, int] = field(default_factory=dict)
    distributions: Mapping[str, Any] = field(default_factory=dict)
    coarse: Mapping[str, int] = field(default_factory=dict)

    @property
    def unassigned(self) -> int:
        """Number of cells that are none of the known types."""
        return self.counts.get(UNASSIGNED, 0)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON document."""
        coverage = self.coverage
        genes = {"found": coverage.found, "panel": coverage.panel, "missing": list(coverage.missing)}
        optional = {"renamed": dict(self.renamed), "lost_weight": dict(self.lost)}
        return {
            "n_cells": self.n_cells,
            "values": self.values,
            "values_detected": self.detected,
            "genes": {**genes, **{name: value for name, value in optional.items() if value}},
            "cell_types": self.counts,
            "warnings": list(self.warnings),
            **({"study": dict(self.study)} if self.study else {}),
            **({"unassigned_by": dict(self.unassigned_by)} if self.unassigned_by else {}),
            **({"coarse_types": dict(self.coarse)} if self.coarse else {}),
        }


def summarise(
    annotator: CellAnnotator,
    table: pd.DataFrame,
    reading: Reading,
    options: Options,
    blocks: tuple[Mapping[str, Any], Mapping[str, Any]],
) -> Summary:
    """Return the summary of a finished annotation.

    Parameters
    ----------
    annotator, table, reading
        The model, the columns of its labels, and the reading of the cells.
    options
        How the cells were read and labelled.
    blocks
        What was counted block by block: the documents of `Likeness.to_json` and of `Depth.to_json`.
    """
    study, depth = blocks
    ordered = _counts(table[CELL_TYPE])
    coverage, warnings = reading.coverage, list(reading.warnings)
    lost = lost_weight(annotator, coverage.missing) if coverage.warning else {}
    warnings += [
        text
        for text in (
            lost_weight_warning(lost) if lost else "",
            mouse_warning(reading.renamed),
            unplaced_warning(annotator.labels, annotator.ontology) if options.coarse is not None else "",
            ambiguity_warning(reading.renamed),
            shift_warning(study, _share_novel(table)),
        )
        if text
    ]
    if empty := int(table[LOW_QUALITY].sum()):
        warnings.append(
            f"{empty:,} cells express none of the model's genes: they are {UNASSIGNED}, see "
            f"{named(LOW_QUALITY, options.key_added)}"
        )
    limits = options.max_novelty, options.min_confidence
    has_novelty = bool(annotator.about().get("novelty"))
    return Summary(
        len(table),
        reading.units.values,
        options.values == AUTO,
        coverage,
        ordered,
        tuple(warnings),
        reading.renamed,
        lost,
        study,
        reasons(table, *limits) if options.has_limits else {},
        {
            drift.CONFIDENCE: drift.histogram(table[CONFIDENCE].to_numpy()),
            **({drift.NOVELTY: drift.histogram(table[NOVELTY].to_numpy())} if has_novelty else {}),
            **depth,
        },
        _counts(table[COARSE_TYPE]) if options.coarse is not None else {},
    )


def _counts(names: pd.Series[Any]) -> dict[str, int]:
    """Return the number of cells of each category, most frequent first."""
    types = names.cat
    counts = dict(zip(types.categories, np.bincount(types.codes).tolist(), strict=True))
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


# What to expect of labels: cells of known types left Unassigned, and types that lose most with missing genes.

MOST_LIKE = 0.5
"""Below this share of cells that resemble the learned studies, a warning says that the file is shifted."""


@dataclass
class Likeness:
    """How many of the cells seen so far resemble the cells of the learned studies."""

    n_cells: int = 0
    n_like: int = 0

    def add(self, answer: Prediction) -> None:
        """Count the next cells, where the model measures their similarity."""
        if answer.of_learned is not None:
            self.n_cells += len(answer.of_learned)
            self.n_like += int(answer.of_learned.sum())

    def to_json(self, about: Mapping[str, Any]) -> dict[str, Any]:
        """Return the share of similar cells, and the expected share of known cells left Unassigned.

        For cells that resemble the learned studies the expected share is the rule's promise; for others it
        is the share measured on a learned study that was held out: lowest, mean and highest. The document is
        empty where the model was not measured in this way.

        Parameters
        ----------
        about
            The document of `canal.model.load.CellAnnotator.about`.
        """
        strays = list(about.get("strays", {}).values())
        if not self.n_cells or not strays or not about.get("novelty"):
            return {}
        like = self.n_like / self.n_cells
        promise = float(about.get("false_unassigned", PROMISE))
        shares = (min(strays), sum(strays) / len(strays), max(strays))
        lowest, usual, highest = (round(like * promise + (1 - like) * one, 3) for one in shares)
        return {
            "like_learned": round(like, 4),
            "known_unassigned": {"lowest": lowest, "usual": usual, "highest": highest},
        }


class Depth:
    """How deeply the cells seen so far were measured.

    Parameters
    ----------
    found
        How many of the model's genes the file has, at least 1.
    """

    def __init__(self, found: int) -> None:
        self._found = found
        self._shares = np.zeros(drift.BINS, dtype=np.int64)
        self._totals: list[np.ndarray] = []

    def add(self, block: Block) -> None:
        """Count the next cells."""
        self._shares += drift.histogram((block.expression > 0).sum(axis=1) / self._found)
        if block.totals is not None:
            self._totals.append(block.totals)

    def to_json(self) -> dict[str, Any]:
        """Return the share of the file's genes of the model that a cell expresses, in fiftieths.

        Of counts also the median over cells of their sum over all genes. A run that was resumed counts the
        cells since then.
        """
        totals = np.concatenate(self._totals) if self._totals else np.zeros(0)
        return {
            drift.DEPTH: self._shares.tolist(),
            **({"median_counts": float(np.median(totals))} if len(totals) else {}),
        }


def _share_novel(table: pd.DataFrame) -> float:
    """Return the share of cells that the version's own rule calls Unassigned, whatever limits are given."""
    novel = table[IS_NOVEL].astype(bool) | table[LOW_QUALITY].astype(bool)
    return float(novel.mean()) if len(table) else 0.0


def shift_warning(study: Mapping[str, Any], unassigned: float) -> str:
    """Return a warning where most cells differ from those of the learned studies, else ``""``.

    ``unassigned`` is the share of the file's cells that are so by the version's own rule. Where it is beyond
    all that happened to a learned study when it was left out, such a figure foretells nothing here, and none
    is given.
    """
    if not study or study["like_learned"] >= MOST_LIKE:
        return ""
    expected, elsewhere = study["known_unassigned"], 1 - study["like_learned"]
    shifted = f"{elsewhere:.0%} of the cells lie outside of the studies that were learned: "
    if unassigned > expected["highest"]:
        return (
            f"{shifted}{unassigned:.0%} of the cells are {UNASSIGNED}, more than known types alone explain. "
            "Either the model does not know these cells (another tissue), or the whole file is shifted "
            "(another platform, units, missing genes); if it is your tissue, learn a part of it with `canal "
            "stage add`"
        )
    return (
        f"{shifted}the whole file is shifted, and of cells of known types some {expected['usual']:.0%} may "
        f"be {UNASSIGNED} ({expected['lowest']:.0%} to {expected['highest']:.0%}, as learned studies were "
        "when they were left out); learn a part of it with `canal stage add`"
    )


# The weight of missing genes: how much of each type's gene weights is on genes that a query lacks.

_MOST_TYPES = 5


def lost_weight(annotator: CellAnnotator, missing: Sequence[str]) -> dict[str, float]:
    """Return for each type the share of its weight on ``missing`` genes, 0...1, largest first.

    Weights are those of `canal.model.load.CellAnnotator.gene_weights`, the same for every query.
    """
    weights = annotator.gene_weights()
    gone = np.isin(np.array(annotator.genes, dtype=object), list(missing))
    shares = weights[:, gone].sum(axis=1) / np.maximum(weights.sum(axis=1), np.finfo(float).tiny)
    lost = {label: round(float(share), 4) for label, share in zip(annotator.labels, shares, strict=True)}
    return dict(sorted(lost.items(), key=lambda item: (-item[1], item[0])))


def lost_weight_warning(lost: Mapping[str, float]) -> str:
    """Return a warning that names the types with most weight on missing genes."""
    most = ", ".join(f"{label} {share:.0%}" for label, share in list(lost.items())[:_MOST_TYPES])
    return f"of what the model looks at, these types lose most with the missing genes: {most}"


# Label changes between two models, counted by old and new type.

_EXAMPLES = 5


@dataclass(frozen=True)
class Changes:
    """The label changes of a file's cells between two models.

    Attributes
    ----------
    name : str
        The file.
    n_cells : int
    table : pandas.DataFrame
        A row a cell whose label changed, in the file's order, indexed by its name: ``before``, ``after``,
        ``confidence_before``, ``confidence_after``.
    """

    name: str
    n_cells: int
    table: pd.DataFrame

    @property
    def flows(self) -> dict[tuple[str, str], int]:
        """Number of cells by (old type, new type), the largest first."""
        counts = Counter(zip(self.table["before"], self.table["after"], strict=True))
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    def to_json(self) -> dict[str, Any]:
        """Return a JSON document."""
        flows = []
        for (old, new), n in self.flows.items():
            rows = (self.table["before"] == old) & (self.table["after"] == new)
            examples = [str(name) for name in self.table.index[rows][:_EXAMPLES]]
            flows.append({"from": old, "to": new, "n": n, "examples": examples})
        return {"name": self.name, "n_cells": self.n_cells, "changed": len(self.table), "flows": flows}

    def write(self, path: Path) -> None:
        """Write the cells whose label changed as CSV, whole or not at all."""
        with new_file(path) as temporary:
            table_as_text(self.table).to_csv(temporary, lineterminator="\n", float_format="%.6f")


def label_changes(name: str, before: pd.DataFrame, after: pd.DataFrame) -> Changes:
    """Compare two tables of `canal.annotation.annotate.label_h5ad` on the same file.

    A cell that becomes "Unassigned", or is so no more, has changed its label, too.

    Raises
    ------
    ValueError
        If the tables are of different cells.
    """
    import pandas as pd

    if list(before.index) != list(after.index):
        raise ValueError(f"the tables hold different cells: {len(before)} and {len(after)}")
    old, new = (table[CELL_TYPE].astype(str).to_numpy() for table in (before, after))
    changed = old != new
    table = pd.DataFrame(
        {
            "before": old[changed],
            "after": new[changed],
            "confidence_before": before[CONFIDENCE].to_numpy()[changed],
            "confidence_after": after[CONFIDENCE].to_numpy()[changed],
        },
        index=before.index[changed].rename("cell"),
    )
    return Changes(name, len(before), table)
