"""How `canal annotate` reads a query, what it writes beside the labels, and how it tells how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from canal.annotation.naming import Naming

if TYPE_CHECKING:
    from canal.model.compute import Precision
    from canal.model.load import Effort


@dataclass(frozen=True)
class Options:
    """How a query is read and what is written beside the labels.

    Attributes
    ----------
    layer : str
        X, raw or the name of a layer.
    values : str
        auto, counts, log1p_10k or log2p_10k.
    gene_column : str or None
        Column of var with gene symbols; None: the index.
    chunk_cells : int
        Cells held in memory at a time.
    min_coverage : float
        Share of the model's genes below which cells are not labelled.
    force : bool
        Whether they are labelled nonetheless, with a warning.
    naming : Naming
        What is said of the genes' names.
    overwrite : bool
        Whether an output that is there may be replaced.
    only_obs : bool
        Whether a table of the labels alone is written; a suffix .csv or .parquet says so, too.
    probabilities : bool
        Whether the probability of every type is written, too: 4 bytes a cell and type.
    vote : str or None
        Clusters whose majority is written beside each cell's own label: a column of obs, or ``leiden``; see
        `canal.annotation.clusters`.
    resume : bool
        Whether to go on where an interrupted run for the same output stopped.
    device : str
        auto, cpu or cuda.
    dtype : str
        float32, or bfloat16: other last digits, and faster where the machine has instructions for it.
    effort : str
        full, or fast: how the annotator was loaded; see `canal.model.load.load_model`.
    model_name : dict
        What the model is, JSON values; written into the output.
    origin : dict
        When, and from which file, JSON values; written into the output beside the model.
    """

    layer: str = "X"
    values: str = "auto"
    gene_column: str | None = None
    chunk_cells: int = 2000
    min_coverage: float = 0.4
    force: bool = False
    naming: Naming = field(default_factory=Naming)
    overwrite: bool = False
    only_obs: bool = False
    probabilities: bool = False
    vote: str | None = None
    resume: bool = False
    device: str = "auto"
    dtype: Precision = "float32"
    effort: Effort = "full"
    model_name: Mapping[str, Any] = field(default_factory=dict)
    origin: Mapping[str, Any] = field(default_factory=dict)


OnCells = Callable[[int, int], None]
"""Is told (cells done, cells in all)."""


@dataclass(frozen=True)
class Listeners:
    """Who is told while a file is labelled.

    Attributes
    ----------
    notice : callable
        Is told what a person may want to know; without ``on_cells`` also every tenth of the cells.
    on_cells : callable, optional
        Is told (cells done, cells in all) after every block.
    on_record : callable, optional
        Is told the record when the copy is whole, just before it appears under its name.
    """

    notice: Callable[[str], None] = lambda message: None
    on_cells: OnCells | None = None
    on_record: Callable[[str], None] | None = None


# How far a labelling is: lines at every tenth of the cells, with cells a second and the time left.

_TENTHS = 10


def in_tenths(
    notice: Callable[[str], None], clock: Callable[[], float] = time.monotonic, what: str = "labelled"
) -> OnCells:
    """Return what tells ``notice`` a line at every tenth of the cells: ``what`` was done with how many.

    The rate is that of this run: cells of an earlier, interrupted one do not count.
    """
    before = began_at = -1
    began = clock()

    def tell(done: int, total: int) -> None:
        nonlocal before, began_at
        if before < 0:
            before = began_at = done
            return
        passed, before = _TENTHS * done // total > _TENTHS * before // total, done
        if passed:
            rate = (done - began_at) / max(clock() - began, 1e-9)
            left = f" ({rate:,.0f} cells/s, {_span((total - done) / rate)} left)" if done < total else ""
            notice(f"{what} {done:,} of {total:,} cells{left}")

    return tell


def _span(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
