"""Choose the gene panel of a lineage from its first stage, and the genes that later stages add."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import csr_matrix

from canal.config.sections import Panel
from canal.core.errors import ConfigError, DataError
from canal.core.files import read_json, write_json
from canal.core.packages import install_hint
from canal.data.prepared import PreparedCells

if TYPE_CHECKING:
    import pandas as pd

FORMAT = 1
MIN_GENES = 8
_BINS = 20
_NATURAL = float(np.log(2))


@dataclass(frozen=True)
class ChosenPanel:
    """Genes, best first, and the rule that chose each."""

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
    candidates = _candidates(cells.genes, expression, panel.min_expressed)
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
    matrix, labels = csr_matrix(expression[:, candidates]), train["cell_type"].to_numpy(dtype=str)
    return _best(matrix, labels, symbols, _rules(panel), size)


def choose_more(
    cells: PreparedCells, split: pd.DataFrame, panel: Panel, genes: Collection[str], size: int
) -> ChosenPanel:
    """Return at most ``size`` genes that a later stage's types need, beside the ``genes`` of its parent.

    They are chosen as `choose_panel` chooses, on that stage's training cells alone, among the genes that the
    parent does not read. Where the stage has one type, which cannot be compared, variance alone decides.

    Raises
    ------
    DataError
        If there is no such gene.
    """
    train = split[split["set"] == "train"]
    expression = cells.expression_csr(train["cell_id"].tolist())
    candidates = _candidates(cells.genes, expression, panel.min_expressed)
    candidates = candidates[[cells.genes[i] not in genes for i in candidates]]
    if not len(candidates):
        raise DataError(
            f"panel.grow asks for {size} more genes, but of the {len(cells.genes)} genes of {cells.path} "
            f"each is among the parent's {len(genes)} or expressed in at most {panel.min_expressed:g} of the "
            f"{expression.shape[0]} training cells: leave panel.grow out of the stage"
        )
    labels = train["cell_type"].to_numpy(dtype=str)
    names = _rules(panel) if len(set(labels)) > 1 else ("variance",)
    symbols = [cells.genes[i] for i in candidates]
    return _best(csr_matrix(expression[:, candidates]), labels, symbols, names, size)


ADOPTED = "adopted"
"""The rule of a panel that another lineage chose."""


def adopted_panel(genes: Sequence[str]) -> ChosenPanel:
    """Return the panel of another lineage's basis."""
    return ChosenPanel(tuple(genes), dict.fromkeys(genes, ADOPTED))


def write_panel(
    path: Path, chosen: ChosenPanel, panel: Panel, split_sha256: str, basis: str | None = None
) -> None:
    """Write the panel as JSON with the rule, the stage and the split that it was chosen on.

    ``basis`` is the digest of the basis whose genes they are, where that was adopted.
    """
    document = {
        "format": FORMAT,
        "genes": list(chosen.genes),
        "origin": chosen.origin,
        "rule": panel.rule if basis is None else ADOPTED,
        "size": len(chosen.genes),
        "split_sha256": split_sha256,
        "stage": panel.stage,
    }
    write_json(path, document if basis is None else {**document, "basis": basis})


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
    matrix = expression.astype(np.float64)
    mean = np.asarray(matrix.mean(axis=0)).ravel()
    square = np.asarray(matrix.multiply(matrix).mean(axis=0)).ravel()
    spread = np.maximum(square - mean**2, 0.0)
    log_variance = np.log(np.maximum(spread, np.finfo(np.float32).tiny))
    scores = np.empty(len(mean))
    for group in np.array_split(np.argsort(mean, kind="stable"), min(_BINS, len(mean))):
        scores[group] = log_variance[group] - np.median(log_variance[group])
    return scores


def dispersion(expression: csr_matrix, labels: np.ndarray) -> np.ndarray:
    """Return the normalised dispersion of each gene: the published rule (Satija et al. 2015, by scanpy).

    Raises
    ------
    ConfigError
        If scanpy is not installed.
    """
    import anndata

    try:
        import scanpy
    except ModuleNotFoundError as error:
        raise ConfigError(
            "panel.rule: dispersion, the published choice of genes, is computed by scanpy, which is not "
            f"installed: {install_hint('published')}, or another rule: mixed, f_statistic or variance"
        ) from error

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


def _rules(panel: Panel) -> tuple[str, ...]:
    """Return the rules that take turns."""
    return ("f_statistic", "variance") if panel.rule == "mixed" else (panel.rule,)


def _candidates(genes: Sequence[str], expression: csr_matrix, floor: float) -> np.ndarray:
    """Return the columns of genes expressed in more than a share ``floor`` of the cells, by symbol."""
    share = np.diff(expression.tocsc().indptr) / max(1, expression.shape[0])
    order = np.argsort(np.array(genes, dtype=str), kind="stable")
    result: np.ndarray = order[share[order] > floor]
    return result


def _best(
    matrix: csr_matrix, labels: np.ndarray, symbols: Sequence[str], names: Sequence[str], size: int
) -> ChosenPanel:
    """Return the first ``size`` genes that the rules called ``names`` bring in turn, none twice."""
    rankings = {name: _ranked(RULES[name](matrix, labels), symbols) for name in names}
    origin: dict[str, str] = {}
    queues = {rule: iter(ranking) for rule, ranking in rankings.items()}
    wanted = min(size, len(next(iter(rankings.values()))))
    while len(origin) < wanted:
        for rule, queue in queues.items():
            gene = next((gene for gene in queue if gene not in origin), None)
            if gene is not None and len(origin) < wanted:
                origin[gene] = rule
    return ChosenPanel(tuple(origin), origin)


def _ranked(scores: np.ndarray, symbols: Sequence[str]) -> list[str]:
    """Return ``symbols`` (sorted) by descending score; a score that is no number comes last."""
    worst = np.where(np.isnan(scores), -np.inf, scores)
    return [symbols[i] for i in np.argsort(-worst, kind="stable")]
