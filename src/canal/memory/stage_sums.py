"""The sums of a lineage, one file a stage in every model folder, and the classifier that they are solved to.

Streaming linear discriminant analysis (SLDA; Hayes & Kanan 2020) with more than one centroid a type, since
laboratories and chemistries differ and a type has its own centroid in each. docs/memory.md explains each
number and its measured effect, `docs/adr` why random features are not used.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from canal.core.digests import canonical_json
from canal.core.errors import SumsError
from canal.core.files import parse_json, read_json, write_json
from canal.memory.classifier import ExactClassifier
from canal.memory.levels import Basis, Linear, Whole, linear_scores, one_thread
from canal.memory.sums import Sums

SUMS = "sums"

OWN_BATCHES = "batches/own.safetensors"
"""In a model folder: sums by stage, and those of its own stage by batch and type."""

MISSING = "missing.json"
"""Beside the sums: for each stage the genes of the basis that its file lacks."""

BASIS = "model/exact/basis"
_LEAST_VARIANCE = 1e-9


@dataclass(frozen=True, eq=False)
class StageSums:
    """The sums of a lineage so far.

    Attributes
    ----------
    basis : Basis
    stages : dict
        Stage -> its sums, oldest first; a stage that was learned by the published method has none.
    missing : dict
        Stage -> genes of the basis that its file lacks.
    """

    basis: Basis
    stages: Mapping[str, Sums] = field(default_factory=dict)
    missing: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path, stages: Sequence[str]) -> StageSums | None:
        """Read the sums of a model folder, of some of the lineage's ``stages``; None where it keeps none.

        Raises
        ------
        SumsError
            If a file is damaged, or of a stage that is none of the lineage's.
        """
        files = {path.stem: path for path in sorted((folder / SUMS).glob("*.safetensors"))}
        if not files:
            return None
        if unknown := sorted(set(files) - set(stages)):
            raise SumsError(
                f"{folder / SUMS} holds sums of {', '.join(unknown[:5])}, which is no stage of this lineage "
                f"({', '.join(stages)}); restore the model"
            )
        basis = Basis.load(folder / BASIS)
        sums = {name: Sums.load(files[name]) for name in stages if name in files}
        return cls(basis, sums, _read_missing(folder / SUMS / MISSING, basis, sums))

    def save(self, folder: Path) -> None:
        """Write a file for each stage into ``sums/`` of a model folder."""
        for name, sums in self.stages.items():
            sums.save(folder / SUMS / f"{name}.safetensors")
        lacking = {name: list(genes) for name, genes in self.missing.items()}
        write_json(folder / SUMS / MISSING, lacking)

    def plus(self, stage: str, sums: Sums, missing: Collection[str] = ()) -> StageSums:
        """Return the sums with those of one more stage, whose file lacks the genes ``missing``."""
        return StageSums(self.basis, {**self.stages, stage: sums}, {**self.missing, stage: tuple(missing)})

    def without_stage(self, stage: str) -> StageSums:
        """Return the sums as if a stage had never been added."""
        rest = {name: sums for name, sums in self.stages.items() if name != stage}
        return StageSums(self.basis, rest, {name: self.missing.get(name, ()) for name in rest})

    def without_types(self, names: Collection[str]) -> StageSums:
        """Return the sums as if no cell of these types had ever been added."""
        rest = {stage: sums.without(names) for stage, sums in self.stages.items()}
        return StageSums(self.basis, rest, self.missing)

    @cached_property
    def types(self) -> tuple[str, ...]:
        """Cell types with at least one cell."""
        return tuple(sorted({name for sums in self.stages.values() for name in sums.types}, key=str.encode))

    def lacking(self, labels: Sequence[str]) -> tuple[str, ...]:
        """Return the labels of which the sums hold no cell."""
        return tuple(name for name in labels if name not in self.types)


def batch_and_type(batch: str, cell_type: str) -> str:
    """Return the name of the cells of a batch and type in the sums by batch."""
    return canonical_json([batch, cell_type])


def by_type(batches: Sums) -> Sums:
    """Return sums by batch and type as those by type."""
    return batches.renamed({name: str(parse_json(name)[1]) for name in batches.types})


def _read_missing(path: Path, basis: Basis, stages: Mapping[str, Sums]) -> dict[str, tuple[str, ...]]:
    try:
        missing = {str(name): tuple(map(str, genes)) for name, genes in read_json(path).items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise SumsError(f"{path} is missing or damaged ({error}); restore the model") from error
    fits = set(missing) == set(stages) and all(
        set(genes) <= set(basis.genes)
        and len(set(genes)) == len(genes)
        and not stages[name].totals[:, ~basis.present(genes)].any()
        for name, genes in missing.items()
    )
    if not fits:
        raise SumsError(
            f"{path} must name genes of the basis that have no sums, for each of {', '.join(stages)}; "
            "restore the model"
        )
    return missing


# The classifier that the sums make.


@dataclass(frozen=True)
class SolveSettings:
    """How sums become a classifier.

    Attributes
    ----------
    shrinkage : float
        Share by which covariances are shrunk to their diagonal, 0...1 (Friedman 1989).
    type_power : float
        A type of n cells has the weight n to this power in the covariance, so that no type dominates.
    few : float
        A stage's centroid of n cells keeps n / (n + few) of itself; the rest is the type's mean.
    stage_share : float
        Of a stage's own covariance among its types, times n / (n + genes).
    between : float
        How much of the scatter of a type's centroids between stages is added to the covariance for studies
        that were never learned.
    reliable : float
        A centroid of n cells has the weight n / (n + reliable) in that scatter.
    soft : float
        Inverse temperature of the log-sum-exp over stages in the scores for such studies.
    own : float
        Nats by which a cell is favoured as one of a learned study over one of a new study.
    """

    shrinkage: float = 0.4
    type_power: float = 0.5
    few: float = 3.0
    stage_share: float = 0.5
    between: float = 0.3
    reliable: float = 10.0
    soft: float = 0.03
    own: float = 1.5


class _Parts(NamedTuple):
    """All types of all stages, a row each: type, stage, n, mean and scatter of centred levels."""

    owners: np.ndarray
    origins: np.ndarray
    n: np.ndarray
    means: np.ndarray
    scatters: np.ndarray


def solve(sums: StageSums, settings: SolveSettings) -> ExactClassifier:
    """Return the classifier of the sums of some stages.

    Each cell's levels are centred by their mean over the genes that its file has; that is linear, so the sums
    are centred instead. The same sums give the same classifier on one platform, whatever the order of stages.

    Raises
    ------
    SumsError
        If there are fewer than two types.
    """
    stages = {name: sums.stages[name] for name in sorted(sums.stages, key=str.encode)}
    stages = {name: one for name, one in stages.items() if one.types}
    if len(sums.types) < 2:
        raise SumsError(f"a classifier needs cells of at least two types, found {len(sums.types)}")
    with one_thread():
        parts = _parts(stages, sums)
        weights = np.bincount(parts.owners, parts.n)[parts.owners] ** (settings.type_power - 1)
        pooled = _pooled(parts, weights, np.ones(len(parts.n), dtype=bool))
        covariance = _shrunk(pooled, pooled, settings.shrinkage)
        parts = parts._replace(means=parts.means * (np.diag(pooled) > _LEAST_VARIANCE))
        centroids = _centroids(parts, settings)
        apart = _apart(parts, settings)
        return ExactClassifier(
            basis=sums.basis,
            labels=sums.types,
            stages=tuple(stages),
            owners=parts.owners,
            origins=parts.origins,
            patterns=np.stack([sums.basis.present(sums.missing.get(name, ())) for name in stages]),
            own=Whole.of(linear_scores(centroids, covariance)),
            within=Whole.of(_within(parts, centroids, covariance, pooled, weights, settings)),
            new=Whole.of(linear_scores(parts.means, covariance + apart.T @ apart)) if len(apart) else None,
            centroids=centroids,
            covariance=covariance,
            apart=apart,
            soft=settings.soft,
            bonus=settings.own,
        )


def _parts(stages: Mapping[str, Sums], sums: StageSums) -> _Parts:
    rows = []
    for origin, (name, one) in enumerate(stages.items()):
        present = sums.basis.present(sums.missing.get(name, ())).astype(np.float64)
        for row, label in enumerate(one.types):
            n = int(one.counts[row])
            mean = one.totals[row].astype(np.float64) / n
            scatter = one.scatter(row) - n * np.outer(mean, mean)
            # As if each cell's levels had been centred by their mean over the present genes.
            scatter = scatter - np.outer(present, present @ scatter) / present.sum()
            scatter = scatter - np.outer(scatter @ present, present) / present.sum()
            rows.append((sums.types.index(label), origin, n, _centred(mean, present), scatter))
    owners, origins, sizes, means, scatters = zip(*rows, strict=True)
    return _Parts(
        np.array(owners),
        np.array(origins),
        np.array(sizes, dtype=np.float64),
        np.array(means),
        np.array(scatters),
    )


def _centred(mean: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Return a mean of levels less its mean over the genes that are present; others stay 0."""
    result: np.ndarray = mean * present - present * ((mean @ present) / present.sum())
    return result


def _pooled(parts: _Parts, weights: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the weighted covariance within types of some rows."""
    degrees = (weights[rows] * (parts.n[rows] - 1)).sum()
    result: np.ndarray = np.tensordot(weights[rows], parts.scatters[rows], 1) / max(degrees, 1e-9)
    return result


def _shrunk(covariance: np.ndarray, pooled: np.ndarray, share: float) -> np.ndarray:
    """Return a covariance shrunk to its diagonal; genes that are constant in ``pooled`` get variance 1."""
    result = (1 - share) * covariance
    np.fill_diagonal(result, np.diag(covariance))
    still = np.diag(pooled) <= _LEAST_VARIANCE
    result[still, :] = 0.0
    result[:, still] = 0.0
    result[still, still] = 1.0
    return result


def _centroids(parts: _Parts, settings: SolveSettings) -> np.ndarray:
    """Return a centroid a row; one of few cells is shrunk to the mean of all cells of its type."""
    types = np.array(
        [
            np.average(parts.means[parts.owners == one], axis=0, weights=parts.n[parts.owners == one])
            for one in range(parts.owners.max() + 1)
        ]
    )
    kept = (parts.n / (parts.n + settings.few))[:, None]
    result: np.ndarray = kept * parts.means + (1 - kept) * types[parts.owners]
    return result


def _within(
    parts: _Parts,
    centroids: np.ndarray,
    covariance: np.ndarray,
    pooled: np.ndarray,
    weights: np.ndarray,
    settings: SolveSettings,
) -> Linear:
    """Return scores of each stage's centroids under a covariance that is partly the stage's own."""
    made, bias = np.zeros_like(centroids), np.zeros(len(centroids))
    for origin in range(parts.origins.max() + 1):
        rows = parts.origins == origin
        cells = parts.n[rows].sum()
        share = settings.stage_share * cells / (cells + len(covariance))
        own = _shrunk(_pooled(parts, weights, rows), pooled, settings.shrinkage)
        linear = linear_scores(centroids[rows], (1 - share) * covariance + share * own)
        made[rows], bias[rows] = linear.weights, linear.bias
    return Linear(made, bias)


def _apart(parts: _Parts, settings: SolveSettings) -> np.ndarray:
    """Return how far stages are apart: rows whose products are added to the covariance for new studies.

    ``(n_rows, n_genes)``: the centroids of each type with several, less their mean; none without such types.
    """
    reliable = parts.n / (parts.n + settings.reliable)
    rows, total, n_types = [np.zeros((0, parts.means.shape[1]))], 0.0, 0
    for one in range(parts.owners.max() + 1):
        own = parts.owners == one
        if own.sum() < 2:
            continue
        middle = np.average(parts.means[own], axis=0, weights=reliable[own])
        rows.append((parts.means[own] - middle) * np.sqrt(reliable[own])[:, None])
        total, n_types = total + reliable[own].sum(), n_types + 1
    made = np.concatenate(rows)
    if not len(made) or not settings.between:
        return rows[0]
    degrees = max(total * (1 - n_types / len(made)), 0.5)
    result: np.ndarray = made * np.sqrt(settings.between / degrees)
    return result
