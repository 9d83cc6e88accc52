"""The gene panel of a lineage: chosen once, on the training cells of its first stage alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import csr_matrix

from canal.config import Panel
from canal.data.prepared import PreparedCells
from canal.errors import DataError
from canal.files import read_json, write_json

if TYPE_CHECKING:
    import pandas as pd

FORMAT = 1
MIN_GENES = 8
_BINS = 20
_NATURAL = float(np.log(2))


@dataclass(frozen=True)
class ChosenPanel:
    """Genes, best first, and the rule that brought each in."""

    genes: tuple[str, ...]
    origin: dict[str, str]


def choose_panel(
    cells: PreparedCells,
    split: pd.DataFrame,
    panel: Panel,
    size: int,
    vocabulary: Collection[str] | None = None,
) -> ChosenPanel:
    """Return the ``size`` best genes by ``panel.rule``, or all candidates where there are fewer.

    Only cells that ``split`` lets train are looked at; a candidate is expressed in more than
    ``panel.min_expressed`` of them. Equal scores are ordered by symbol. ``mixed`` takes turns between the F
    statistic, which knows the types seen so far, and the variance, which leaves room for types to come.
    ``vocabulary`` names the genes that a backbone knows which was not trained here; no other is a candidate.

    Raises
    ------
    DataError
        If fewer than `MIN_GENES` genes qualify, or the rule needs two types and there is one.
    """
    train = split[split["set"] == "train"]
    expression = cells.expression_csr(train["cell_id"].tolist())
    share = np.diff(expression.tocsc().indptr) / max(1, expression.shape[0])
    order = np.argsort(np.array(cells.genes, dtype=str), kind="stable")
    candidates = order[share[order] > panel.min_expressed]
    if vocabulary is not None:
        candidates = candidates[[cells.genes[i] in vocabulary for i in candidates]]
    if len(candidates) < MIN_GENES:
        known = "" if vocabulary is None else f" and known to the imported backbone ({len(vocabulary)} genes)"
        raise DataError(
            f"the panel needs at least {MIN_GENES} genes expressed in more than {panel.min_expressed:g} "
            f"of the {expression.shape[0]} training cells of {panel.stage}{known}, found {len(candidates)} "
            f"of {len(cells.genes)}; lower panel.min_expressed or check the source's layer and gene_column"
        )
    symbols = [cells.genes[i] for i in candidates]
    names = ("f_statistic", "variance") if panel.rule == "mixed" else (panel.rule,)
    matrix, labels = csr_matrix(expression[:, candidates]), train["cell_type"].to_numpy(dtype=str)
    rankings = {name: _ranked(RULES[name](matrix, labels), symbols) for name in names}
    return _take_turns(rankings, size)


def write_panel(path: Path, chosen: ChosenPanel, panel: Panel, split_sha256: str) -> None:
    """Write the panel as JSON with the rule, the stage and the split that it was chosen on."""
    document = {
        "format": FORMAT,
        "genes": list(chosen.genes),
        "origin": chosen.origin,
        "rule": panel.rule,
        "size": len(chosen.genes),
        "split_sha256": split_sha256,
        "stage": panel.stage,
    }
    write_json(path, document)


def read_panel(path: Path) -> list[str]:
    """Return the genes of a panel, in order; raises `DataError` if the file is missing or no panel."""
    if not path.is_file():
        raise DataError(f"{path}: no such panel; make it first (dvc repro panel)")
    try:
        document = read_json(path)
        found, genes = document["format"], document["genes"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no panel ({type(error).__name__}: {error}); make it again") from error
    if found != FORMAT or not all(isinstance(gene, str) for gene in genes) or len(set(genes)) != len(genes):
        raise DataError(f"{path}: expected a panel of format {FORMAT} with unique genes; make it again")
    return list(genes)


def f_statistic(expression: csr_matrix, labels: np.ndarray) -> np.ndarray:
    """Return the F statistic of each gene between the types, as of a one-way analysis of variance."""
    from sklearn.feature_selection import f_classif

    types = sorted(set(labels))
    if len(types) < 2:
        raise DataError(
            f"panel.rule f_statistic and mixed compare types; training cells have {len(types)} "
            f"({', '.join(types)}): set panel.rule: variance"
        )
    with np.errstate(divide="ignore", invalid="ignore"):
        scores: np.ndarray = f_classif(expression, labels)[0]
    return scores


def variance(expression: csr_matrix, labels: np.ndarray) -> np.ndarray:
    """Return how far each gene's log variance stands above that of genes of like mean.

    Genes are put into 20 bins of equal number by mean expression; the score is the distance from the
    bin's median.
    """
    del labels  # a rule that ignores labels leaves room for types to come
    mean, spread = _moments(expression)
    log_variance = np.log(np.maximum(spread, np.finfo(np.float32).tiny))
    scores = np.empty(len(mean))
    for group in np.array_split(np.argsort(mean, kind="stable"), min(_BINS, len(mean))):
        scores[group] = log_variance[group] - np.median(log_variance[group])
    return scores


def dispersion(expression: csr_matrix, labels: np.ndarray) -> np.ndarray:
    """Return the normalised dispersion of each gene: the published rule (Satija et al. 2015, by scanpy)."""
    import anndata
    import scanpy

    del labels
    cells = anndata.AnnData(X=csr_matrix(expression * _NATURAL))
    table = scanpy.pp.highly_variable_genes(cells, flavor="seurat", n_bins=_BINS, inplace=False)
    scores: np.ndarray = table["dispersions_norm"].to_numpy(dtype=np.float64)
    return scores


RULES: dict[str, Callable[[csr_matrix, np.ndarray], np.ndarray]] = {
    "f_statistic": f_statistic,
    "variance": variance,
    "dispersion": dispersion,
}
"""Each gives a score a gene, the higher the better, from expression (n_cells, n_genes) and labels."""


def _moments(expression: csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and variance of each gene, in double precision."""
    matrix = expression.astype(np.float64)
    mean = np.asarray(matrix.mean(axis=0)).ravel()
    square = np.asarray(matrix.multiply(matrix).mean(axis=0)).ravel()
    return mean, np.maximum(square - mean**2, 0.0)


def _ranked(scores: np.ndarray, symbols: Sequence[str]) -> list[str]:
    """Return ``symbols`` (sorted) by descending score; a score that is no number comes last."""
    worst = np.where(np.isnan(scores), -np.inf, scores)
    return [symbols[i] for i in np.argsort(-worst, kind="stable")]


def _take_turns(rankings: dict[str, list[str]], size: int) -> ChosenPanel:
    """Return the first ``size`` genes that the rankings bring in turn, none twice."""
    origin: dict[str, str] = {}
    queues = {rule: iter(ranking) for rule, ranking in rankings.items()}
    wanted = min(size, len(next(iter(rankings.values()))))
    while len(origin) < wanted:
        for rule, queue in queues.items():
            gene = next((gene for gene in queue if gene not in origin), None)
            if gene is not None and len(origin) < wanted:
                origin[gene] = rule
    return ChosenPanel(tuple(origin), origin)
