"""Making a source canonical: one h5ad of symbols, labels and ids, in the units its declaration names."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import csr_matrix

from canal.config.sections import Source
from canal.core.digests import canonical_json, file_digest, json_digest
from canal.core.errors import SourceError
from canal.core.files import new_folder, write_json
from canal.data.genes import GeneMap, map_genes
from canal.data.h5ad import H5adFile, open_h5ad
from canal.data.h5ad_matrices import Matrix
from canal.data.raw_cells import Repairs, describe_cells
from canal.data.writing import H5adWriter

if TYPE_CHECKING:
    import pandas as pd

FORMAT = 1
CELLS = "cells.h5ad"
SUMMARY = "prepared.json"
_TABLE = ("cell_type", "cell_type_original", "batch", "source")


@dataclass(frozen=True)
class PrepareSettings:
    """What prepare needs besides the declaration."""

    min_genes: int
    """A cell with fewer expressed genes is dropped."""
    chunk_cells: int
    """Rows held in memory at a time."""


@dataclass(frozen=True)
class Prepared:
    """What prepared.json says of a source."""

    source: str
    available: bool
    declaration_digest: str
    source_sha256: str
    sha256: str | None
    n_cells: int
    n_genes: int
    repairs: dict[str, Any]


def prepare(raw: Path, name: str, source: Source, settings: PrepareSettings, into: Path) -> Prepared:
    """Write the canonical file of ``source`` and prepared.json into the folder ``into``, whole or not at all.

    Only what is declared is repaired, and all of it is written down; values are not judged (the gate does).
    Rows stream in blocks of ``chunk_cells``; of every cell only its names are held. Same input, same bytes.

    Parameters
    ----------
    raw
        The h5ad file that ingest fetched.

    Raises
    ------
    SourceError
        If ``raw`` is not the declared file.
    DataError
        If it is damaged, or lacks a layer or column that the declaration names.
    """
    with new_folder(into) as folder:
        with open_h5ad(raw) as file:
            _check_bytes(raw, name, source)
            n_cells, n_genes, repairs = _write_cells(file, name, source, settings, folder / CELLS)
        prepared = Prepared(
            source=name,
            available=True,
            declaration_digest=json_digest(source.declaration()),
            source_sha256=source.sha256,
            sha256=file_digest(folder / CELLS),
            n_cells=n_cells,
            n_genes=n_genes,
            repairs=repairs,
        )
        _write_summary(folder, prepared)
    return prepared


def prepare_absent(name: str, source: Source, into: Path) -> Prepared:
    """Write only prepared.json for a source that is declared ``available: false``."""
    prepared = Prepared(name, False, json_digest(source.declaration()), source.sha256, None, 0, 0, {})
    with new_folder(into) as folder:
        _write_summary(folder, prepared)
    return prepared


def cell_digests(block: csr_matrix, symbols: Sequence[str]) -> list[str]:
    """Return a digest of each cell's content: hex BLAKE2b-128 of its sorted symbols and their float32 values.

    It depends neither on the order of genes nor on genes that are zero. ``block`` is (n, len(symbols))
    without stored zeros.
    """
    rank = np.empty(len(symbols), dtype=np.int64)
    rank[sorted(range(len(symbols)), key=symbols.__getitem__)] = np.arange(len(symbols))
    names = np.array(symbols, dtype=object)
    digests = []
    for start, stop in zip(block.indptr[:-1], block.indptr[1:], strict=True):
        genes, values = block.indices[start:stop], block.data[start:stop]
        order = np.argsort(rank[genes])
        content = "\n".join(names[genes[order]]).encode() + b"\n\n" + values[order].astype("<f4").tobytes()
        digests.append(hashlib.blake2b(content, digest_size=16).hexdigest())
    return digests


def _check_bytes(raw: Path, name: str, source: Source) -> None:
    found = file_digest(raw)
    if found != source.sha256:
        raise SourceError(
            f"{raw}: sources.{name} declares sha256 {source.sha256}, found {found}; fetch the source again"
        )


def _write_summary(folder: Path, prepared: Prepared) -> None:
    write_json(folder / SUMMARY, {key: value for key, value in asdict(prepared).items() if value is not None})


def _write_cells(
    file: H5adFile, name: str, source: Source, settings: PrepareSettings, path: Path
) -> tuple[int, int, Repairs]:
    """Write the canonical file; return its numbers of cells and genes, and the repairs."""
    import pandas as pd

    matrix = file.matrix(source.layer)
    none = file.not_genes(source.layer)
    genes = map_genes(_gene_names(file, source), source.duplicates, none)
    table, repairs = describe_cells(file, name, source)
    with H5adWriter(path, len(genes.symbols)) as writer:
        digests = _write_rows(writer, matrix, genes, table["row"].to_numpy(), settings)
        kept = np.array([bool(digest) for digest in digests], dtype=bool)
        if dropped := int((~kept).sum()):
            repairs["dropped_by_min_genes"] = {"n": dropped, "min_genes": settings.min_genes}
        repairs |= genes.repairs
        obs = _obs(table[kept], [digest for digest in digests if digest])
        about = {"format": FORMAT, "source": name, "values": source.values, "repairs": repairs}
        var = pd.DataFrame(index=pd.Index(list(genes.symbols), dtype=object))
        writer.finish(obs, var, {"canal": canonical_json(about)})
    return len(obs), len(genes.symbols), repairs


def _gene_names(file: H5adFile, source: Source) -> list[str]:
    if source.gene_column is None:
        return file.var_names(source.layer)
    return list(file.var_column(source.layer, source.gene_column))


def _write_rows(
    writer: H5adWriter, matrix: Matrix, genes: GeneMap, rows: np.ndarray, settings: PrepareSettings
) -> list[str]:
    """Append the wanted ``rows``; return a digest for each, ``""`` where it has too few expressed genes."""
    digests: list[str] = []
    for start in range(0, matrix.shape[0], settings.chunk_cells):
        stop = min(start + settings.chunk_cells, matrix.shape[0])
        first, last = np.searchsorted(rows, (start, stop))
        if first == last:
            continue
        block = genes.apply(matrix.rows(start, stop)[rows[first:last] - start])
        rich = np.diff(block.indptr) >= settings.min_genes
        block = block[rich]
        writer.append(block)
        found = iter(cell_digests(block, genes.symbols))
        digests += [next(found) if keep else "" for keep in rich]
    return digests


def _obs(table: pd.DataFrame, digests: list[str]) -> pd.DataFrame:
    """Return obs, indexed by cell id; columns with few values are categorical, which keeps the file small."""
    import pandas as pd

    obs = table[list(_TABLE)].astype(str).astype("category")
    obs.index = pd.Index(table["cell_id"].to_numpy(dtype=object))
    obs.insert(0, "cell_id", table["cell_id"].to_numpy(dtype=object))
    obs["cell_digest"] = np.array(digests, dtype=object)
    return obs
