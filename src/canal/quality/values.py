"""What the numbers of a matrix say about their units, cell by cell."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import csr_matrix

from canal.data.units import (
    BASES,
    MAX_TOTAL,
    PER_TEN_THOUSAND,
    TELLING_GENES,
    Finding,
    middle,
    undo,
    wholeness,
)

if TYPE_CHECKING:
    import pandas as pd

    from canal.config.sections import Values

_FITS = 0.9


def measure_cells(values: csr_matrix, declared: Values) -> pd.DataFrame:
    """Return one row a cell: how many of its values are expressed, impossible, or not whole numbers.

    Parameters
    ----------
    values
        ``(n_cells, n_genes)``, as the file has them.
    declared
        The units the file is said to hold.

    Returns
    -------
    pandas.DataFrame
        ``nonfinite`` (NaN or infinite values) and ``negative``; ``fractional`` (values that are no whole
        number) only for cells free of those, and for logarithms only for cells with enough genes to tell;
        ``total`` (counts per 10,000 in all) only for logarithms, and only where they are no whole numbers.
    """
    import pandas as pd

    data = values.data.astype(np.float64)
    finite = np.isfinite(data)
    rows = np.repeat(np.arange(values.shape[0]), np.diff(values.indptr))
    nonfinite = _count(rows, ~finite, values.shape[0])
    negative = _count(rows, finite & (data < 0), values.shape[0])
    sound = (nonfinite == 0) & (negative == 0)
    fractional = _count(rows, finite & (data != np.rint(data)), values.shape[0])
    frame = pd.DataFrame({"nonfinite": nonfinite, "negative": negative})
    if declared == "counts":
        return frame.assign(fractional=np.where(sound, fractional, np.nan))
    telling = sound & (_count(rows, data != 0, values.shape[0]) >= TELLING_GENES)
    totals = _totals(data, rows, values.shape[0], BASES[declared])
    return frame.assign(
        fractional=np.where(telling, fractional, np.nan),
        total=np.where(sound & (fractional > 0), totals, np.nan),
    )


def contradiction(finding: Finding, declared: Values) -> str | None:
    """Return what speaks against the units that are declared; None where nothing does."""
    if declared == "counts":
        return finding.told if finding.kind == "binary" else None
    if finding.kind in ("zeros", "beyond"):  # told cell by cell
        return None
    if finding.kind == "unproven":
        if finding.dense:
            return f"hardly a value is 0, and {finding.told}"
        return f"{finding.told}, and {finding.told_totals}" if finding.too_low else None
    plain = finding.kind == "multiples" or finding.depth == PER_TEN_THOUSAND
    return None if plain and finding.logs == (BASES[declared],) else finding.told


def doubt(finding: Finding, declared: Values) -> str | None:
    """Return what makes units uncertain that nothing contradicts; None where nothing does."""
    if declared == "counts" or contradiction(finding, declared) is not None:
        return None
    if finding.kind == "unproven":
        return finding.told
    return finding.told_totals if finding.kind == "multiples" and finding.low else None


def looks_like(values: csr_matrix) -> str | None:
    """Return the units that fit some cells: counts, scaled, log1p_10k, log2p_10k, log1p, log2p or None.

    Undone with the right base, a cell's logarithms are whole multiples of one count's share, so of the
    smallest when some gene has one count; with the wrong base they are not. ``log1p`` and ``log2p`` are
    logarithms of that base whose totals are not per 10,000.
    """
    data = values.data[np.isfinite(values.data)].astype(np.float64)
    if (data < 0).any():
        return "scaled"
    if data.size == 0 or (data == np.rint(data)).all():
        return None if data.size == 0 else "counts"
    fits = {name: middle(wholeness(values, (base,))) for name, base in BASES.items()}
    name = max(fits, key=lambda key: fits[key])
    if fits[name] < _FITS or min(fits.values()) >= _FITS:
        return None
    rows = np.repeat(np.arange(values.shape[0]), np.diff(values.indptr))
    totals = _totals(values.data.astype(np.float64), rows, values.shape[0], BASES[name])
    return name if np.nanmax(totals) <= MAX_TOTAL else name.removesuffix("_10k")


def _totals(data: np.ndarray, rows: np.ndarray, n_cells: int, base: float) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        return np.bincount(rows, weights=undo(data, (base,)), minlength=n_cells)


def _count(rows: np.ndarray, which: np.ndarray, n_cells: int) -> np.ndarray:
    return np.bincount(rows[which], minlength=n_cells)
