"""Read the canonical cells of a source by cell id: their table, genes and expression."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import csr_matrix, vstack

from canal.config.sections import Values
from canal.core.errors import DataError
from canal.data.expression import align, to_expression
from canal.data.prepare import cell_digests
from canal.io.arrays import EXAMPLES, listed, reading
from canal.io.h5ad import open_h5ad

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd

OBS_COLUMNS = ("cell_id", "cell_type", "cell_type_original", "batch", "source", "cell_digest")
_CHUNK_CELLS = 2000


class PreparedCells:
    """The cells of ``prepared/<source>/cells.h5ad``; rows are read on demand, a block at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def obs(self) -> pd.DataFrame:
        """The cells, index cell_id; cell_type, cell_type_original, batch, source and cell_digest as str."""
        import pandas as pd

        with open_h5ad(self.path) as file:
            columns = {name: file.obs_column(name) for name in OBS_COLUMNS}
        table = pd.DataFrame(columns)
        table.index = pd.Index(table["cell_id"].to_numpy(dtype=object))
        return table

    @cached_property
    def genes(self) -> list[str]:
        """Gene symbols, in the order of the file."""
        with open_h5ad(self.path) as file:
            return file.var_names("X")

    def missing(self, genes: Sequence[str]) -> tuple[str, ...]:
        """Return those of some genes that the file lacks, in their order."""
        there = set(self.genes)
        return tuple(gene for gene in genes if gene not in there)

    @cached_property
    def about(self) -> dict[str, Any]:
        """What prepare wrote down: format, source, values, repairs."""
        with open_h5ad(self.path) as file, reading(self.path, "uns/canal"):
            document: dict[str, Any] = json.loads(file.note("canal"))
            return document

    @property
    def values(self) -> Values:
        """The units of the file: counts, log1p_10k or log2p_10k."""
        values: Values = self.about["values"]
        return values

    def expression(self, cell_ids: Sequence[str], genes: Sequence[str]) -> np.ndarray:
        """Return expression of ``cell_ids``, in their order, for ``genes``: (n_cells, n_genes) float32.

        Units are log2(1 + counts per 10,000 of all genes of the file); a gene the file lacks is zero.

        Raises
        ------
        DataError
            If a cell is not in the file.
        """
        result = np.zeros((len(cell_ids), len(genes)), dtype=np.float32)
        for places, block in self._blocks(cell_ids):
            result[places] = align(block, self.genes, genes)
        return result

    def chunks(self, cell_ids: Sequence[str], genes: Sequence[str]) -> Iterator[tuple[list[str], np.ndarray]]:
        """Yield (ids, expression) of ``cell_ids`` in the order of the file, some cells at a time.

        Expression is as `expression` returns it; memory does not grow with the number of cells.
        """
        names = np.array(cell_ids, dtype=object)
        for places, block in self._blocks(cell_ids):
            yield names[places].tolist(), align(block, self.genes, genes)

    def expression_csr(self, cell_ids: Sequence[str]) -> csr_matrix:
        """Return expression of ``cell_ids``, in their order, for all ``genes``: (n_cells, n_genes) CSR."""
        parts = list(self._blocks(cell_ids))
        if not parts:
            return csr_matrix((0, len(self.genes)), dtype=np.float32)
        order = np.argsort(np.concatenate([places for places, _ in parts]))
        return csr_matrix(vstack([block for _, block in parts], format="csr")[order])

    def digests(self, cell_ids: Sequence[str]) -> dict[str, str]:
        """Return the digest of each cell's content, computed anew; see `canal.data.prepare.cell_digests`.

        Raises
        ------
        DataError
            If a cell is not in the file.
        """
        found: dict[str, str] = {}
        for places, block in self._stored(cell_ids):
            found |= zip((cell_ids[place] for place in places), cell_digests(block, self.genes), strict=True)
        return found

    def _blocks(self, cell_ids: Sequence[str]) -> Iterator[tuple[np.ndarray, csr_matrix]]:
        """Yield (places in ``cell_ids``, expression of those cells), reading the file from front to back."""
        return ((places, to_expression(block, self.values)) for places, block in self._stored(cell_ids))

    def _stored(self, cell_ids: Sequence[str]) -> Iterator[tuple[np.ndarray, csr_matrix]]:
        """Yield as `_blocks` does, in the units of the file."""
        rows = self._rows(cell_ids)
        order = np.argsort(rows, kind="stable")
        with open_h5ad(self.path) as file:
            matrix = file.matrix("X")
            for start in range(0, file.n_cells, _CHUNK_CELLS):
                stop = min(start + _CHUNK_CELLS, file.n_cells)
                first, last = np.searchsorted(rows[order], (start, stop))
                if first < last:
                    places = order[first:last]
                    yield places, matrix.rows(start, stop)[rows[places] - start]

    def _rows(self, cell_ids: Sequence[str]) -> np.ndarray:
        import pandas as pd

        rows: np.ndarray = self.obs.index.get_indexer(pd.Index(list(cell_ids), dtype=object))
        unknown = [cell for cell, row in zip(cell_ids, rows, strict=True) if row < 0]
        if unknown:
            raise DataError(
                f"{self.path}: {len(unknown)} of {len(cell_ids)} cells are not in this file, such as "
                f"{listed(unknown, EXAMPLES)}; was the split made from another version of it?"
            )
        return rows
