"""Label the cells of a request to the HTTP service: a table of the model's genes, checked and labelled."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import csr_matrix

from canal.annotation.columns import columns_of, join_blocks
from canal.core.errors import DataError
from canal.data.expression import to_expression
from canal.data.units import BASES, MAX_TOTAL, TELLING_GENES

if TYPE_CHECKING:
    import pandas as pd

    from canal.config.sections import Values
    from canal.model.load import CellAnnotator


def answer(
    annotator: CellAnnotator,
    table: pd.DataFrame,
    lock: AbstractContextManager[object],
    probabilities: bool = False,
) -> pd.DataFrame:
    """Return the columns of `canal annotate` for each row of a table, in order; missing values are None.

    Parameters
    ----------
    annotator
        The model.
    table
        See `canal.annotation.service.read_request`.
    lock
        Acquired for each block of cells and shared by all requests: a large request neither fills the memory
        nor blocks small ones until it ends.
    probabilities
        Whether to return the probability of every type.

    Raises
    ------
    DataError
        As `read_request`.
    """
    request = read_request(table, annotator.genes)
    restricted, frames = annotator.without(request.missing), []
    for expression, empty in request.blocks():
        with lock:
            prediction = restricted.predict(expression)
        frames.append(columns_of(prediction, empty, annotator.labels, probabilities))
    answers = join_blocks(frames, annotator.ontology)
    for name in answers.select_dtypes("category"):
        names = answers[name].astype(object)
        answers[name] = names.where(names.notna(), None)  # in JSON null, where NaN would be no JSON
    return answers


# The table of a request: checked, then converted to expression.

TOTALS = "canal_total_counts"
"""Column of each cell's counts over all genes, the model's or not: with it, the genes' values are counts."""

MOST_COUNTS = 1e8
"""Most counts of a cell: a deeply sequenced one has some ten million."""

MIN_COVERAGE = 0.4
"""Share of the model's genes below which no cell is labelled, as in `canal.annotation.options.Options`."""

BLOCK_CELLS = 256
"""Cells labelled at a time: beyond the request itself, memory does not grow with its size."""

_EXAMPLES = 5
_NOT_SENT = "send 0 for a gene that is not expressed; leave a gene that was not measured out of all cells"
_WANTED = (
    f"send genes of the model as columns, either log1p(counts per 10,000) or raw counts together with a "
    f"column {TOTALS}, each cell's counts over all its genes"
)


@dataclass(frozen=True)
class Request:
    """Cells that can be labelled.

    Attributes
    ----------
    values : numpy.ndarray
        float32 ``(n_cells, n_panel_genes)``, genes that were not sent being zero.
    units : str
        ``counts`` or ``log1p_10k``.
    totals : numpy.ndarray or None
        Counts over all genes, float64 ``(n_cells,)``; None for logarithms.
    missing : tuple of str
        Panel genes that were not sent.
    """

    values: np.ndarray
    units: Values
    totals: np.ndarray | None
    missing: tuple[str, ...] = ()

    def blocks(self, size: int = BLOCK_CELLS) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield expression of the next ``size`` cells, and which of them express none of the model's genes.

        The arithmetic is that of `canal annotate`, so the same cells have the same expression, bit for bit.
        """
        for start in range(0, len(self.values), size):
            at = slice(start, start + size)
            totals = None if self.totals is None else self.totals[at]
            expression = to_expression(csr_matrix(self.values[at]), self.units, totals).toarray()
            yield expression, ~(expression > 0).any(axis=1)


def read_request(table: pd.DataFrame, panel: Sequence[str]) -> Request:
    """Return the cells of a table, one row a cell, one column a gene; genes without a column are zero.

    Parameters
    ----------
    table
        Panel genes and, where their values are raw counts, `TOTALS`; other columns are not looked at.
    panel
        The model's genes.

    Raises
    ------
    DataError
        If there are no rows or too few of the model's genes; if a value is no number, not finite or
        negative; if there are counts without totals, or totals that cannot be; if values without totals
        cannot be log1p(counts per 10,000).
    """
    sent = _sent(table, panel)
    values = _numbers(table, sent)
    if TOTALS in table.columns:
        totals = _numbers(table, [TOTALS])[:, 0]
        _check_counts(values, totals, sent)
    else:
        totals = None
        _check_logarithms(values, sent)
    whole = np.zeros((len(values), len(panel)), dtype=np.float32)
    position = {gene: i for i, gene in enumerate(panel)}
    whole[:, [position[gene] for gene in sent]] = values
    missing = tuple(gene for gene in panel if gene not in set(sent))
    return Request(whole, "log1p_10k" if totals is None else "counts", totals, missing)


def _sent(table: pd.DataFrame, panel: Sequence[str]) -> list[str]:
    """Return the panel's genes that the table has; raises if they are too few."""
    if twice := list(table.columns[table.columns.duplicated()].unique()):
        raise DataError(f"expected every column once, found {_listed(twice)} more than once")
    columns = set(table.columns)
    sent = [gene for gene in panel if gene in columns]
    needed = max(1, math.ceil(MIN_COVERAGE * len(panel)))
    if len(sent) < needed:
        others = [name for name in table.columns if name not in {TOTALS, *panel}]
        found = f"; other columns are {_listed(others)}" if others else ""
        raise DataError(
            f"{len(sent)} of the model's {len(panel)} genes are columns of the request, at least {needed} "
            f"are needed ({MIN_COVERAGE:.0%}){found}. Columns of other names are not read. The model knows "
            f"symbols such as {_listed(panel)}; its signature lists all of them: {_WANTED}"
        )
    if not len(table):
        raise DataError(f"the request has {len(sent)} of the model's genes, but no rows: send one row a cell")
    return sent


def _numbers(table: pd.DataFrame, names: Sequence[str]) -> np.ndarray:
    """Return columns as float64, every value finite and not negative."""
    chosen = table[list(names)]
    if other := [name for name, dtype in zip(names, chosen.dtypes, strict=True) if dtype.kind not in "fiu"]:
        raise DataError(
            f"expected numbers, found {len(other)} column(s) of other values, such as {other[0]!r} with "
            f"{chosen[other[0]].iloc[0]!r}: {_WANTED}"
        )
    values: np.ndarray = chosen.to_numpy(dtype=np.float64, na_value=np.nan)
    missing = f"every cell needs its {TOTALS}" if TOTALS in names else _NOT_SENT
    for what, wrong, way_out in (
        ("missing or NaN", np.isnan(values), missing),
        ("infinite", np.isinf(values), _WANTED),
        ("negative", values < 0, f"scaled or centred values cannot be read; {_WANTED}"),
    ):
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            raise DataError(
                f"expected finite numbers of at least 0, found {int(wrong.sum())} value(s) that are {what}, "
                f"the first of {names[column]} in cell {row} (counted from 0): {way_out}"
            )
    return values


def _check_counts(values: np.ndarray, totals: np.ndarray, sent: Sequence[str]) -> None:
    """Raise unless values are whole and no more than their cell's total."""
    fractions = values != np.rint(values)
    if fractions.any():
        row, column = np.argwhere(fractions)[0]
        raise DataError(
            f"a column {TOTALS} says that genes are raw counts, but {int(fractions.sum())} value(s) are no "
            f"whole numbers, such as {values[row, column]:.6g} of {sent[column]} in cell {row} (counted from "
            f"0): leave {TOTALS} out if they are log1p(counts per 10,000)"
        )
    if (beyond := np.flatnonzero(totals > MOST_COUNTS)).size:
        cell = beyond[0]
        raise DataError(
            f"{TOTALS} must be a cell's counts over all its genes, but in {beyond.size} cell(s) it is more "
            f"than any cell has, the first being cell {cell} (counted from 0) with {totals[cell]:.10g}: send "
            "the sum of the cell's own counts"
        )
    sums = values.sum(axis=1)
    below = np.flatnonzero(totals < sums)
    if below.size:
        cell = below[0]
        raise DataError(
            f"{TOTALS} must be a cell's counts over all its genes, but in {below.size} cell(s) it is less "
            f"than the sum of the {len(sent)} genes sent, the first being cell {cell} (counted from 0) with "
            f"{totals[cell]:.10g} against {sums[cell]:.10g}: send totals of before genes were chosen"
        )


def _check_logarithms(values: np.ndarray, sent: Sequence[str]) -> None:
    """Raise where values look like counts, or are larger than logarithms of counts per 10,000 can be."""
    expressed = (values > 0).sum(axis=1)
    whole = (values == np.rint(values)).all(axis=1) & (expressed > 0)
    alone = expressed.any() and whole[expressed > 0].all()
    if alone or (expressed[whole] >= TELLING_GENES).any():  # rounded logarithms of few genes may be whole
        row = int(np.flatnonzero(whole)[0])
        column = int(values[row].argmax())
        raise DataError(
            f"{int(whole.sum())} cell(s) hold whole numbers alone, such as {values[row, column]:.10g} of "
            f"{sent[column]} in cell {row} (counted from 0): these are counts, which the model's genes alone "
            f"cannot be scaled by. Add a column {TOTALS}, each cell's counts over all its genes, or send "
            "log1p(counts per 10,000)"
        )
    with np.errstate(over="ignore"):
        undone = np.expm1(values * math.log(BASES["log1p_10k"])).sum(axis=1)
    over = np.flatnonzero(undone > MAX_TOTAL)
    if over.size:
        raise DataError(
            f"values without {TOTALS} must be log1p(counts per 10,000), base e, but in {over.size} cell(s) "
            f"the genes sent are more than 10,000 counts per 10,000, the first being cell {over[0]} (counted "
            f"from 0) with {undone[over[0]]:.6g}: {_WANTED}"
        )


def _listed(names: Sequence[object]) -> str:
    more = f", ... ({len(names)} in all)" if len(names) > _EXAMPLES else ""
    return ", ".join(str(name)[:40] for name in names[:_EXAMPLES]) + more
