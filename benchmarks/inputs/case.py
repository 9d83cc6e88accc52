"""What a case is, and the cells that all cases are made of."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy.sparse import csr_matrix, diags

if TYPE_CHECKING:
    from anndata import AnnData

Outcome = Literal["labels", "warned", "refused", "passed"]


@dataclass(frozen=True)
class Case:
    """One input: how it is made, what is done with it, and what is right.

    Attributes
    ----------
    kind, name
        The row of the table, and what tells the case from others of its kind.
    make
        Writes the input into a folder, from cells of whole counts, and returns its path.
    right
        Outcomes that are right: ``labels`` as of the same cells given as counts; ``warned``, labelled with a
        message that holds ``words``; ``refused`` with such a message, nothing left behind; ``passed``, by the
        gate without an error.
    words
        Regular expression that a refusal or a warning must hold, in any case.
    options
        Fields of `canal.annotation.options.Options`.
    declared
        What a source of params.yaml declares: the case is for the gate.
    target
        Name of the output.
    agree
        Share of labels that have to be those of the counts.
    outside
        Files, by name in the folder, that must be as they were.
    """

    kind: str
    name: str
    make: "Callable[[AnnData, Path], Path]"
    right: tuple[Outcome, ...]
    words: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    declared: dict[str, Any] | None = None
    target: str = "labels.csv"
    agree: float = 0.95
    outside: tuple[str, ...] = ()


def write(adata: "AnnData", folder: Path, name: str = "in.h5ad") -> Path:
    """Write cells as an h5ad file."""
    adata.write_h5ad(folder / name)
    return folder / name


def with_x(adata: "AnnData", matrix: Any) -> "AnnData":
    """Return a copy with another X, float32."""
    other = adata.copy()
    other.X = matrix.astype(np.float32)
    return other


def totals(adata: "AnnData") -> np.ndarray:
    """Return the total of each cell."""
    return np.asarray(adata.X.sum(axis=1), dtype=np.float64).ravel()


def scaled(adata: "AnnData", depth: "float | np.ndarray" = 1e4) -> csr_matrix:
    """Return each cell's counts times a factor that makes its total ``depth``, float64."""
    return csr_matrix(diags(depth / totals(adata)) @ adata.X.astype(np.float64))


def of_values(matrix: csr_matrix, change: Callable[[np.ndarray], np.ndarray]) -> csr_matrix:
    """Return the matrix with its stored values changed."""
    other = matrix.copy()
    other.data = change(other.data)
    return other


def frequent(adata: "AnnData") -> "AnnData":
    """Return the cells of types with ten cells, the fewest that the gate and the split take as they are."""
    counts = adata.obs["cell_type"].value_counts()
    return adata[adata.obs["cell_type"].isin(counts.index[counts >= 10])].copy()
