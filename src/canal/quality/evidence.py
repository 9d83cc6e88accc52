"""Gather the evidence that the rules are checked on: small tables, from one pass over the cells."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import csr_matrix, vstack

from canal.core.progress import doing
from canal.data.prepare import describe_cells, is_no_type, spelling
from canal.data.prepared import PreparedCells
from canal.data.units import (
    BASES,
    MAX_TOTAL,
    PER_TEN_THOUSAND,
    TELLING_GENES,
    Finding,
    judge_values,
    middle,
    undo,
    wholeness,
)
from canal.io.h5ad import H5adFile, NotGenes, open_h5ad
from canal.quality.symbols import symbol_columns
from canal.quality.verdict import Profile, Subject, chance_index, profile_of, stability_index

if TYPE_CHECKING:
    import pandas as pd

    from canal.config.sections import Values


_SAMPLE_CELLS = 200


@dataclass(frozen=True)
class Evidence:
    """Evidence about a stage.

    Attributes
    ----------
    tables
        ``file`` (one row), ``cell`` (of the source file, as declared), ``prepared cell``, ``cell type``,
        ``gene`` and ``panel gene``; each has a column ``name``. Where features of the file are no genes,
        ``feature``, too, and ``drawn type`` where each cell's set was drawn by itself.
    layers
        Matrices the source file holds, for hints.
    units
        The units that the values look like; None where that is unknown.
    profile
        The prepared cells over the panel.
    """

    tables: Mapping[str, pd.DataFrame]
    layers: tuple[str, ...]
    units: str | None
    profile: Profile

    def counts(self) -> dict[str, Any]:
        """Return how many cells, genes and cells of each type there are."""
        types = self.tables["cell type"]
        return {
            "cells_declared": len(self.tables["cell"]),
            "cells": len(self.tables["prepared cell"]),
            "genes": int(self.tables["gene"]["symbol"].nunique()),
            "panel_genes": len(self.tables["panel gene"]),
            "shared_panel_genes": int(self.tables["panel gene"]["shared"].sum()),
            "types": dict(zip(types["name"], types["cells"].astype(int).tolist(), strict=True)),
        }


@doing("measuring the cells for the gate")
def gather(subject: Subject, cells: Path, max_drift: float) -> Evidence:
    """Gather the evidence about a stage's source file and its prepared cells.

    Parameters
    ----------
    cells
        The prepared file.
    max_drift
        The least population stability index that counts as drift.

    Raises
    ------
    DataError
        If either file cannot be read as declared.
    """
    prepared = PreparedCells(cells)
    with open_h5ad(subject.raw) as file:
        measured, sample = _cells(file, subject)
        genes = _genes(file, subject)
        none = file.not_genes(subject.source.layer)
        layers = tuple(file.layers)
    units = None if sample is None else looks_like(sample)
    profile = profile_of(prepared, list(prepared.obs.index), subject.panel)
    tables = {
        "file": _file(subject, profile, _unit_evidence(subject, measured, sample, units)),
        "cell": measured,
        "prepared cell": _prepared_cells(prepared, subject),
        "cell type": _cell_types(prepared, subject),
        "gene": genes,
        "panel gene": _panel_genes(prepared, subject, profile, max_drift),
        **({"feature": _features(none)} if none.kinds else {}),
    }
    if subject.drawn is not None:  # a row a type: the sets that it lacks, in words
        lacks = np.array(list(subject.drawn.values()), dtype=object)
        tables["drawn type"] = new_table({"name": list(subject.drawn), "lacks": lacks})
    return Evidence(tables, layers, units, profile)


def new_table(data: Any, **how: Any) -> pd.DataFrame:
    """Return a table of pandas, which takes half a second to import: the gate itself is imported without."""
    import pandas as pd

    return pd.DataFrame(data, **how)


def _cells(file: H5adFile, subject: Subject) -> tuple[pd.DataFrame, csr_matrix | None]:
    """Return one row a cell that the declaration keeps, and the values of some, evenly spread."""
    import pandas as pd

    table, _ = describe_cells(file, subject.source_name, subject.source)
    rows = table["row"].to_numpy()
    names = np.array(file.obs_names(), dtype=object)[rows]
    matrix, none = file.matrix(subject.source.layer), file.not_genes(subject.source.layer)
    is_gene = np.flatnonzero(none.is_gene)
    blocks = [measure_cells(csr_matrix((0, matrix.shape[1]), dtype=np.float32), subject.source.values)]
    sample: list[csr_matrix] = []
    picked = np.unique(np.linspace(0, max(0, len(rows) - 1), _SAMPLE_CELLS).astype(np.int64))
    for start, block in matrix.chunks(subject.chunk_cells):
        first, last = np.searchsorted(rows, (start, start + block.shape[0]))
        if first == last:
            continue
        chosen = block[rows[first:last] - start]
        chosen = csr_matrix(chosen[:, is_gene]) if none.kinds else chosen
        blocks.append(measure_cells(chosen, subject.source.values))
        sample.append(chosen[picked[(picked >= first) & (picked < last)] - first])
    cells = new_table({"name": names, "cell_id": names})
    measures = pd.concat([block for block in blocks if len(block)] or blocks, ignore_index=True)
    return cells.join(measures), csr_matrix(vstack(sample)) if sample else None


def _unit_evidence(
    subject: Subject, cells: pd.DataFrame, sample: csr_matrix | None, units: str | None
) -> dict[str, str | None]:
    """Return the evidence of the values on their units; None each where a rule on single cells fails already.

    ``units`` is the base that they look like, ``contradiction`` the evidence against the declaration,
    ``doubt`` what makes it less certain.
    """
    nothing: dict[str, str | None] = {"units": None, "contradiction": None, "doubt": None}
    declared = subject.source.values
    wrong = (cells["nonfinite"] > 0) | (cells["negative"] > 0)
    if "total" in cells:
        wrong |= (cells["total"] > MAX_TOTAL) | (cells["fractional"] == 0)
    else:
        wrong |= cells["fractional"] > 0
    if sample is None or wrong.any():
        return nothing
    if declared != "counts" and units not in (None, declared, declared.removesuffix("_10k")):
        return nothing | {"units": units}
    sample.eliminate_zeros()
    finding = judge_values(sample)
    return {
        "units": None if declared == "counts" else units,
        "contradiction": contradiction(finding, declared),
        "doubt": doubt(finding, declared),
    }


def _genes(file: H5adFile, subject: Subject) -> pd.DataFrame:
    """Return one row a named gene; one row a symbol where duplicates are to be summed."""
    layer, column = subject.source.layer, subject.source.gene_column
    names = file.var_names(layer) if column is None else list(file.var_column(layer, column))
    symbols = [name.strip() for name in names if name.strip()]
    if subject.source.duplicates == "sum":
        symbols = list(dict.fromkeys(symbols))
    columns = {"name": symbols, "symbol": symbols, **symbol_columns(symbols)}
    return new_table(columns, columns=[*columns])


def _features(none: NotGenes) -> pd.DataFrame:
    """Return one row a feature of the file, with its kind where it is no gene."""
    kinds = np.full(len(none.is_gene), None, dtype=object)
    kinds[~none.is_gene] = [kind for kind, count in none.kinds.items() for _ in range(count)]
    return new_table({"name": [str(i) for i in range(len(kinds))], "no_gene": kinds})


def _prepared_cells(prepared: PreparedCells, subject: Subject) -> pd.DataFrame:
    """Return one row a prepared cell: its published label, and the earlier stage that tests on it."""
    tested: dict[str, str] = {}
    for stage, earlier in subject.earlier.items():
        digests = earlier.split.loc[earlier.split["set"] == "test", "cell_digest"]
        tested |= dict.fromkeys(digests, stage)
    obs, seen = prepared.obs, subject.pretrained or {}
    label = obs["cell_type_original"].astype(object).mask(obs["cell_type_original"] == "", None)
    return new_table(
        {
            "name": list(obs.index),
            "label": label.to_numpy(dtype=object),
            "tested_in": np.array([tested.get(digest) for digest in obs["cell_digest"]], dtype=object),
            "pretrained_in": np.array([seen.get(digest) for digest in obs["cell_digest"]], dtype=object),
        }
    )


def _cell_types(prepared: PreparedCells, subject: Subject) -> pd.DataFrame:
    """Return how many cells each mapped type has, and how many times fewer that is than the most.

    ``no_type`` is set where its name is a word for no type, ``twin`` where another type, of this source or
    of an earlier stage, has the same name but for case and blanks.
    """
    known, original = subject.source.label_map, prepared.obs["cell_type_original"]
    mapped = original != "" if known is None else original.isin(list(known))
    sizes = prepared.obs.loc[mapped, "cell_type"].value_counts().sort_index()
    counts = sizes.to_numpy(dtype=float)
    names = [str(name) for name in sizes.index]
    before = {
        str(name)
        for earlier in subject.earlier.values()
        if "cell_type" in earlier.split
        for name in earlier.split["cell_type"].unique()
    }
    return new_table(
        {
            "name": names,
            "cells": counts,
            "times_fewer": counts.max(initial=0.0) / counts,
            "no_type": np.array([name if is_no_type(name) else None for name in names], dtype=object),
            "twin": np.array([spelling_twin(name, {*names, *before}) for name in names], dtype=object),
        },
        columns=["name", "cells", "times_fewer", "no_type", "twin"],
    )


def spelling_twin(name: str, others: Collection[str]) -> str | None:
    """Return another name that differs in case or blanks alone, or the name without blanks at its ends."""
    same = sorted(other for other in others if other != name and spelling(other) == spelling(name))
    return same[0] if same else (None if name == name.strip() else name.strip())


def _panel_genes(
    prepared: PreparedCells, subject: Subject, profile: Profile, max_drift: float
) -> pd.DataFrame:
    """Return whether the source has each panel gene, and how far its tokens have drifted from before."""
    known = set(prepared.genes)
    now, before = profile.counts, np.zeros_like(profile.counts)
    for earlier in subject.earlier.values():
        before += earlier.profile.counts
    return new_table(
        {
            "name": list(subject.panel),
            "shared": [float(gene in known) for gene in subject.panel],
            "drift": stability_index(before, now),
            # np.maximum keeps the NaN of genes that cannot be compared.
            "drift_allowed": np.maximum(chance_index(before, now), max_drift),
        }
    )


def _file(subject: Subject, profile: Profile, units: Mapping[str, str | None]) -> pd.DataFrame:
    """Return the one row about the file: its units, and how its depth compares with the nearest before."""
    row = {"name": subject.source_name, **units, "depth": profile.depth}
    before = [earlier.profile.depth for earlier in subject.earlier.values()]
    both = [(min(profile.depth, depth), max(profile.depth, depth), depth) for depth in before if depth > 0]
    # How many times the larger is the smaller, at most a million.
    ratios = [(larger / max(smaller, larger * 1e-6), depth) for smaller, larger, depth in both]
    comparable = ratios and profile.counts.any()
    ratio, depth = min(ratios) if comparable else (np.nan, np.nan)
    return new_table([row | {"depth_before": depth, "depth_ratio": ratio}])


# Evidence for the units of a matrix, cell by cell.

_FITS = 0.9


def measure_cells(values: csr_matrix, declared: Values) -> pd.DataFrame:
    """Return one row a cell: how many of its values are expressed, impossible, or not whole numbers.

    Parameters
    ----------
    values
        ``(n_cells, n_genes)``, as the file has them.
    declared
        The declared units of the file.

    Returns
    -------
    pandas.DataFrame
        ``nonfinite`` (NaN or infinite values) and ``negative``; ``fractional`` (values that are no whole
        number) only for cells free of those, and for logarithms only for cells with enough genes to tell;
        ``total`` (counts per 10,000 in all) only for logarithms, and only where they are no whole numbers.
    """
    data = values.data.astype(np.float64)
    finite = np.isfinite(data)
    rows = np.repeat(np.arange(values.shape[0]), np.diff(values.indptr))
    nonfinite = _count(rows, ~finite, values.shape[0])
    negative = _count(rows, finite & (data < 0), values.shape[0])
    sound = (nonfinite == 0) & (negative == 0)
    fractional = _count(rows, finite & (data != np.rint(data)), values.shape[0])
    frame = new_table({"nonfinite": nonfinite, "negative": negative})
    if declared == "counts":
        return frame.assign(fractional=np.where(sound, fractional, np.nan))
    telling = sound & (_count(rows, data != 0, values.shape[0]) >= TELLING_GENES)
    totals = _totals(data, rows, values.shape[0], BASES[declared])
    return frame.assign(
        fractional=np.where(telling, fractional, np.nan),
        total=np.where(sound & (fractional > 0), totals, np.nan),
    )


def contradiction(finding: Finding, declared: Values) -> str | None:
    """Return the evidence against the declared units; None without any."""
    if declared == "counts":
        return finding.message if finding.kind == "binary" else None
    if finding.kind in ("zeros", "beyond"):  # other rules report these cell by cell
        return None
    if finding.kind == "unproven":
        if finding.dense:
            return f"hardly a value is 0, and {finding.message}"
        return f"{finding.message}, and {finding.totals_message}" if finding.too_low else None
    plain = finding.kind == "multiples" or finding.depth == PER_TEN_THOUSAND
    return None if plain and finding.logs == (BASES[declared],) else finding.message


def doubt(finding: Finding, declared: Values) -> str | None:
    """Return what makes the declared units uncertain where nothing contradicts them; None without doubt."""
    if declared == "counts" or contradiction(finding, declared) is not None:
        return None
    if finding.kind == "unproven":
        return finding.message
    return finding.totals_message if finding.kind == "multiples" and finding.low else None


def looks_like(values: csr_matrix) -> str | None:
    """Return the units that fit some cells: counts, parts, scaled, log1p_10k, log2p_10k, log1p, log2p, None.

    Undone with the right base, a cell's logarithms are whole multiples of one count's share, so of the
    smallest when some gene has one count; with the wrong base they are not. ``log1p`` and ``log2p`` are
    logarithms of that base whose totals are not per 10,000; ``parts`` are counts that were scaled to one
    total, as by `scanpy.pp.normalize_total`, without a logarithm behind it.
    """
    data = values.data[np.isfinite(values.data)].astype(np.float64)
    if (data < 0).any():
        return "scaled"
    if data.size == 0 or (data == np.rint(data)).all():
        return None if data.size == 0 else "counts"
    fits = {name: middle(wholeness(values, (base,))) for name, base in BASES.items()}
    name = max(fits, key=lambda key: fits[key])
    if fits[name] < _FITS or min(fits.values()) >= _FITS:
        return "parts" if _of_one_total(values) else None
    rows = np.repeat(np.arange(values.shape[0]), np.diff(values.indptr))
    totals = _totals(values.data.astype(np.float64), rows, values.shape[0], BASES[name])
    return name if np.nanmax(totals) <= MAX_TOTAL else name.removesuffix("_10k")


def _of_one_total(values: csr_matrix) -> bool:
    if not np.isfinite(values.data).all():
        return False
    finding = judge_values(values)
    return finding.kind == "one_depth" and not finding.logs


def _totals(data: np.ndarray, rows: np.ndarray, n_cells: int, base: float) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        return np.bincount(rows, weights=undo(data, (base,)), minlength=n_cells)


def _count(rows: np.ndarray, which: np.ndarray, n_cells: int) -> np.ndarray:
    return np.bincount(rows[which], minlength=n_cells)
