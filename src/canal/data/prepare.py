"""Prepare a source: write its canonical h5ad file with unique symbols, mapped labels and cell ids."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import csr_matrix

from canal.config.stage_sections import Source
from canal.core.digests import canonical_json, file_digest, json_digest
from canal.core.errors import DataError, SourceError, tell
from canal.core.files import new_folder, write_json
from canal.core.progress import doing
from canal.data.genes import EXAMPLES, GeneMap, map_genes
from canal.io.blocks import Matrix
from canal.io.h5ad import H5adFile, open_h5ad
from canal.io.hdf5 import compression_of, read_whole
from canal.io.writer import H5adWriter

if TYPE_CHECKING:
    import pandas as pd

FORMAT = 1
CELLS = "cells.h5ad"
SUMMARY = "prepared.json"
_TABLE = ("cell_type", "cell_type_original", "batch", "source")


@dataclass(frozen=True)
class PrepareSettings:
    """The settings of preparation besides the declaration."""

    min_genes: int
    """A cell with fewer expressed genes is dropped."""
    chunk_cells: int
    """Rows held in memory at a time."""


@dataclass(frozen=True)
class Prepared:
    """The content of prepared.json."""

    source: str
    available: bool
    declaration_digest: str
    source_sha256: str
    sha256: str | None
    n_cells: int
    n_genes: int
    repairs: dict[str, Any]


@doing("reading and preparing the cells")
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
            if (found := file_digest(raw)) != source.file_sha256:
                raise SourceError(
                    f"{raw}: sources.{name} declares sha256 {source.file_sha256}, found {found}; fetch the "
                    "source again"
                )
            n_cells, n_genes, repairs = _write_cells(file, name, source, settings, folder / CELLS)
        prepared = Prepared(
            source=name,
            available=True,
            declaration_digest=json_digest(source.declaration()),
            source_sha256=source.file_sha256,
            sha256=file_digest(folder / CELLS),
            n_cells=n_cells,
            n_genes=n_genes,
            repairs=repairs,
        )
        _write_summary(folder, prepared)
    if few := repairs.get("dropped_by_min_genes"):
        whole, bound = few["n"] + n_cells, f"--min-genes, or sources.{name}.min_genes of params.yaml"
        tell(
            f"{name}: {few['n']:,} of {whole:,} cells express fewer than {few['min_genes']} genes and are "
            f"left out; {bound}, sets another bound"
        )
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


def _write_summary(folder: Path, prepared: Prepared) -> None:
    write_json(folder / SUMMARY, {key: value for key, value in asdict(prepared).items() if value is not None})


def _write_cells(
    file: H5adFile, name: str, source: Source, settings: PrepareSettings, path: Path
) -> tuple[int, int, Repairs]:
    """Write the canonical file; return its numbers of cells and genes, and the repairs."""
    import pandas as pd

    matrix = file.matrix(source.layer)
    none = file.not_genes(source.layer)
    column = source.gene_column
    names = file.var_names(source.layer) if column is None else list(file.var_column(source.layer, column))
    genes = map_genes(names, source.duplicates, none)
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
    obs = table[list(_TABLE)].astype(str).astype("category")
    obs.index = table["cell_id"].to_numpy(dtype=object)
    obs.insert(0, "cell_id", table["cell_id"].to_numpy(dtype=object))
    obs["cell_digest"] = np.array(digests, dtype=object)
    return obs


# The cells of a source that the declaration keeps, with everything but expression.

Repairs = dict[str, Any]


_NO_LABELS = ": name that of cell types (--label, in params.yaml label); without labels: canal annotate"


def describe_cells(file: H5adFile, name: str, source: Source) -> tuple[pd.DataFrame, Repairs]:
    """Return a table of the cells that the declaration keeps, and what was repaired or left out.

    The table's columns are row (position in the file), cell_id, cell_type, cell_type_original, batch and
    source. Blanks at the ends of a label are left out where the map has the label without them; other labels
    outside the map stay as they are and null labels are ``""``: the gate judges both.

    Raises
    ------
    DataError
        If the file lacks the column of labels, of batches, or one that ``where`` filters on.
    """
    import pandas as pd

    names = file.obs_names()
    unique, repeated = unique_names(names)
    labels = pd.Series([""] * file.n_cells, dtype=object)  # of a source that only pre-trains
    if source.label is not None:
        labels = file.obs_column(source.label, _NO_LABELS)
    original, stripped = _stripped(labels, source.label_map)
    types = {label: (source.label_map or {}).get(label, label) for label in original.unique()}
    batch, unnamed = _batches(file, name, source)
    table = pd.DataFrame(
        {
            "row": np.arange(file.n_cells),
            "cell_id": [f"{name}:{cell}" for cell in unique],
            "cell_type": original.map(types | {"": ""}).astype(object),  # None where the map drops a label
            "cell_type_original": original,
            "batch": batch,
            "source": name,
        }
    )
    kept, repairs = _kept(file, names, table, source)
    if repeated:
        repairs["duplicated_cell_ids"] = {"n": len(repeated), "examples": repeated[:EXAMPLES]}
    if stripped:
        repairs["labels_with_blanks"] = {"n": len(stripped), "examples": stripped[:EXAMPLES]}
    if unnamed:
        repairs["cells_without_batch"] = {"n": unnamed, "done": f"batch set to {name}"}
    return table[kept].reset_index(drop=True), repairs


def without_cells(
    raw: Path, into: Path, leaving: Sequence[tuple[str, Source, Collection[str], str | None]]
) -> int:
    """Write a raw file without some cells; return how many left. All else stays, as anndata has it.

    Parameters
    ----------
    leaving
        Of each source that reads the file: its name, its declaration, ids of cells (``SOURCE:NAME``), and a
        batch of which every cell leaves, also those that were never prepared. Neither ids nor a batch: all
        its cells.

    Raises
    ------
    DataError
        If the file cannot be read, or still names a cell in what is no table of cells (``uns``).
    """
    with open_h5ad(raw) as file:
        names = file.obs_names()
        leaves = np.zeros(len(names), dtype=bool)
        for name, source, ids, batch in leaving:
            own = np.ones(len(names), dtype=bool)
            for column, allowed in source.where.items():
                own &= file.obs_column(column).isin(allowed).to_numpy()
            chosen = np.isin([f"{name}:{cell}" for cell in unique_names(names)[0]], list(ids))
            if batch is not None:
                chosen |= (_batches(file, name, source)[0] == batch).to_numpy()
            leaves |= own & (chosen if ids or batch is not None else True)
    cells = read_whole(raw)[~leaves].copy()
    gone = {cell for cell, leaves_ in zip(names, leaves, strict=True) if leaves_}
    if still := gone.intersection(_texts(cells.uns)):
        raise DataError(
            f"{raw}: uns names {len(still)} of the cells that are to leave, so it cannot be rewritten "
            "without them. Set available: false for its source, then the file goes as a whole"
        )
    cells.write_h5ad(into, compression=compression_of(raw))
    return int(leaves.sum())


def _texts(value: Any) -> Iterator[str]:
    """Yield every text in what uns may hold."""
    if isinstance(value, Mapping):
        for name, one in value.items():
            yield from (str(name), *_texts(one))
    elif isinstance(value, str):
        yield value
    elif hasattr(value, "columns"):
        yield from map(str, value.index)
        for name in value.columns:
            yield from _texts(value[name].to_numpy())
    elif isinstance(value, np.ndarray) and value.dtype.kind in "OUS":
        yield from map(str, value.ravel())
    elif isinstance(value, np.ndarray) and value.dtype.names:
        for name in value.dtype.names:
            yield from _texts(value[name])


def unique_names(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return ``names`` made unique with -1, -2, ..., and the sorted names that stood more than once."""
    taken = set(names)
    if len(taken) == len(names):
        return list(names), []
    seen: dict[str, int] = {}
    unique = []
    for name in names:
        if name not in seen:
            seen[name] = 0
            unique.append(name)
            continue
        while (candidate := f"{name}-{seen[name] + 1}") in taken:
            seen[name] += 1
        seen[name] += 1
        taken.add(candidate)
        unique.append(candidate)
    counts = {name for name, extra in seen.items() if extra}
    return unique, sorted(counts)


def _stripped(labels: pd.Series, label_map: dict[str, str | None] | None) -> tuple[pd.Series, list[str]]:
    """Return labels as the map spells them, and those that had blanks at their ends.

    A label that the map has as it is, and every label without a map, stays: it may have been learned so.
    """
    known = label_map or {}
    blank = {label: label.strip() for label in labels.unique() if label not in known}
    blank = {label: plain for label, plain in blank.items() if label != plain and plain in known}
    return (labels.replace(blank) if blank else labels), sorted(blank)


def _batches(file: H5adFile, name: str, source: Source) -> tuple[pd.Series, int]:
    """Return each cell's batch and how many cells had none; they are given the source's name."""
    import pandas as pd

    if source.batch is None:
        return pd.Series([name] * file.n_cells, dtype=object), 0
    batch = file.obs_column(source.batch)
    missing = batch == ""
    return batch.mask(missing, name), int(missing.sum())


def _kept(
    file: H5adFile, names: Sequence[str], table: pd.DataFrame, source: Source
) -> tuple[np.ndarray, Repairs]:
    """Return which cells stay, and for each rule that drops cells how many it dropped first."""
    import pandas as pd

    rules = {
        f"where_{column}": file.obs_column(column).isin(allowed) for column, allowed in source.where.items()
    }
    rules["label_map"] = table["cell_type"].notna()
    rules["exclude_batches"] = ~table["batch"].isin(source.exclude.batches)
    rules["exclude_cells"] = ~pd.Series(names, dtype=object).isin(source.exclude.cells)
    kept = np.ones(len(table), dtype=bool)
    repairs: Repairs = {}
    for rule, passes in rules.items():
        if dropped := int((kept & ~passes.to_numpy()).sum()):
            repairs[f"dropped_by_{rule}"] = {"n": dropped}
        kept &= passes.to_numpy()
    # Those that were erased are not found, and their names are written nowhere again.
    missing = sorted(set(source.exclude.cells) - set(names)) if source.rest is None else []
    if missing:
        repairs["exclude_cells_not_found"] = {"n": len(missing), "examples": missing[:EXAMPLES]}
    return kept, repairs


# Labels that are no cell type, and spellings of one type.

RESERVED = "unassigned"
"""The label of cells of no known type, in lower case."""

NO_TYPES = frozenset(
    {
        *("", "-", "?", ".", "na", "n/a", "nan", "<na>", "none", "null", "nil", "empty", "missing"),
        *("unknown", "unclassified", "undefined", "undetermined", "unlabeled", "unlabelled", RESERVED),
        *("unannotated", "not annotated", "not assigned", "not available", "no label", "no annotation"),
        *("doublet", "doublets", "multiplet", "multiplets", "filtered", "filtered out", "removed"),
        *("low quality", "lowquality", "failed qc", "debris", "empty droplet", "empty droplets"),
    }
)
_PARTING = re.compile(r"[\s_]+|(?<=\w)-(?=\w)")


def is_no_type(label: str) -> bool:
    """Return whether a label says that a cell's type is not known, or that it is no cell to learn from.

    Letters may be large or small, and blanks, ``_`` and ``-`` stand for each other.
    """
    return _PARTING.sub(" ", _folded(label).strip()) in NO_TYPES


def spelling(label: str) -> str:
    """Return a key that is equal for labels that differ only in case or blanks."""
    return "".join(_folded(label).split())


def _folded(label: str) -> str:
    return unicodedata.normalize("NFKC", label).casefold()
