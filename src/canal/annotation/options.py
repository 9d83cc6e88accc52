"""The options and callbacks of annotation: how cells are read, what is written, and progress messages."""

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
        Whether cells are labelled below that share, with a warning.
    naming : Naming
        The options about gene names.
    overwrite : bool
        Whether an existing output may be replaced.
    only_obs : bool
        Whether only a table of labels is written; implied by a suffix .csv or .parquet.
    probabilities : bool
        Whether the probability of every type is also written: 4 bytes a cell and type.
    vote : str or None
        Clusters whose majority is written beside each cell's own label: a column of obs, or ``leiden``; see
        `canal.annotation.clusters`.
    resume : bool
        Whether to continue an interrupted run for the same output.
    device : str
        auto, cpu or cuda.
    dtype : str
        float32, or bfloat16: less precise, and faster where the machine has instructions for it.
    effort : str
        full, or fast: how the annotator was loaded; see `canal.model.load.load_model`.
    model_name : dict
        Provenance of the model, JSON values; written into the record.
    origin : dict
        Time and input file, JSON values; written into the record.
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
"""Called with (cells done, cells in all)."""


@dataclass(frozen=True)
class Callbacks:
    """Functions that are called while a file is labelled.

    Attributes
    ----------
    notice : callable
        Receives messages for the user; without ``on_cells`` also progress at every tenth of the cells.
    on_cells : callable, optional
        Called with (cells done, cells in all) after every block.
    on_record : callable, optional
        Receives the record when the output is complete, just before it is renamed into place.
    """

    notice: Callable[[str], None] = lambda message: None
    on_cells: OnCells | None = None
    on_record: Callable[[str], None] | None = None


# Progress: a message at every tenth of the cells, with cells a second and the time left.

_TENTHS = 10


def in_tenths(
    notice: Callable[[str], None], clock: Callable[[], float] = time.monotonic, what: str = "labelled"
) -> OnCells:
    """Return a progress callback that sends ``notice`` a message at every tenth of the cells.

    ``what`` is the participle in the message. The rate leaves out cells of an earlier, interrupted run.
    """
    before = began_at = -1
    began = clock()

    def on_cells(done: int, total: int) -> None:
        nonlocal before, began_at
        if before < 0:
            before = began_at = done
            return
        passed, before = _TENTHS * done // total > _TENTHS * before // total, done
        if passed:
            rate = (done - began_at) / max(clock() - began, 1e-9)
            left = f" ({rate:,.0f} cells/s, {_span((total - done) / rate)} left)" if done < total else ""
            notice(f"{what} {done:,} of {total:,} cells{left}")

    return on_cells


def _span(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
