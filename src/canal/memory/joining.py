"""Put the sums of two lineages together, tell whether a name means the same in both, and what sums reveal.

Sums are whole numbers: those of both lineages are what one lineage has that learned from the cells of both,
in any order. Whether two laboratories mean the same by a name is told by where its cells lie among other
types.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from canal.core.errors import SumsError
from canal.memory.stage_sums import StageSums
from canal.memory.sums import Sums, total

MOST_RATIO = 1.35
"""Of one name's two centroids, the most that they may be apart in distances to the nearest other type.

On the embedded stream it is at most 1.25 between the same types of two studies, and at least 1.44 where the
names of two types that both know are exchanged; `benchmarks/meanings.py`.
"""


def joined(own: StageSums, other: StageSums, names: Mapping[str, str]) -> StageSums:
    """Return the sums of both lineages; the other's stages come before the newest one of the own lineage.

    Parameters
    ----------
    own, other
        On one basis.
    names
        Stage of the other lineage -> its name in the result; other stages are left out.

    Raises
    ------
    SumsError
        If they are of two bases, or numbers would grow beyond what 64 bits hold.
    """
    if own.basis.digest != other.basis.digest:
        raise SumsError(
            f"the sums are of two bases, {own.basis.digest[:12]}... here and {other.basis.digest[:12]}... "
            "there, and only sums of one basis add up. A lineage adopts the basis of another before it "
            "begins: `canal basis export VERSION -o basis.json` there, `canal basis adopt basis.json` here "
            "before the first `canal run`; one that has begun first starts a new branch, `canal stage "
            "relearn backbone`"
        )
    *older, newest = own.stages
    added = {name: other.stages[stage] for stage, name in names.items()}
    stages = {name: own.stages[name] for name in older} | added | {newest: own.stages[newest]}
    missing = {name: other.missing.get(stage, ()) for stage, name in names.items()}
    result = StageSums(own.basis, stages, {name: {**own.missing, **missing}.get(name, ()) for name in stages})
    all_sums(result)
    return result


def all_sums(sums: StageSums) -> Sums:
    """Return the sums of all stages together, whose digest depends on neither order nor names of stages."""
    return total(sums.stages.values(), sums.basis)


def with_names(sums: StageSums, names: Mapping[str, str]) -> StageSums:
    """Return the sums with cell types under other names; types that come to share one are added up."""
    stages = {stage: one.renamed(names) for stage, one in sums.stages.items()}
    return StageSums(sums.basis, stages, sums.missing)


@dataclass(frozen=True)
class Meaning:
    """How far the cells of one name are apart in two lineages.

    Attributes
    ----------
    distance : float
        Of the two centroids of centred levels, less what their numbers of cells explain and, where two or
        more other names are shared, less the shift between the studies, which is the median of theirs.
    spread : float
        Within types: the root of the sum of the genes' variances.
    nearest : str
        The other type that is nearest to one of them in the other lineage.
    ratio : float
        ``distance`` in units of that to the nearest other type.
    exchanged : str
        A shared type with which this one seems to have changed its name; empty without one: the difference
        of the two types points the other way in the other lineage.
    """

    distance: float
    spread: float
    nearest: str
    ratio: float
    exchanged: str

    @property
    def differs(self) -> bool:
        """Whether the name seems to mean other cells in the other lineage."""
        return bool(self.exchanged) or self.ratio > MOST_RATIO

    def to_json(self) -> dict[str, Any]:
        """Return a JSON document."""
        rounded = {name: round(getattr(self, name), 3) for name in ("distance", "spread", "ratio")}
        return {**rounded, "nearest": self.nearest, "exchanged": self.exchanged}


@dataclass(frozen=True)
class _Centroids:
    """Mean levels of the types of a lineage over some genes, centred, with their numbers of cells."""

    means: Mapping[str, np.ndarray]
    counts: Mapping[str, int]
    scatter: np.ndarray
    degrees: int

    @classmethod
    def of(cls, sums: StageSums, present: np.ndarray) -> _Centroids:
        together = all_sums(sums)
        totals = together.totals[:, present].astype(np.float64)
        means = totals / together.counts[:, None]
        within, degrees = np.zeros(int(present.sum())), 0
        for one in sums.stages.values():
            squares = one.products[:, _diagonal(one.size)][:, present].astype(np.float64)
            rest = squares - one.totals[:, present].astype(np.float64) ** 2 / one.counts[:, None]
            within, degrees = within + rest.sum(axis=0), degrees + int((one.counts - 1).sum())
        centred = means - means.mean(axis=1, keepdims=True)
        counts = dict(zip(together.types, together.counts.tolist(), strict=True))
        return cls(dict(zip(together.types, centred, strict=True)), counts, within, degrees)


def meanings(own: StageSums, other: StageSums) -> dict[str, Meaning]:
    """Return by type how far its cells are apart, for the types that both lineages have.

    Empty where neither has another type to compare with, or no gene is in the files of both.
    """
    gone = {gene for sums in (own, other) for genes in sums.missing.values() for gene in genes}
    present = own.basis.present(gone)
    if not present.any() or len({*own.types, *other.types}) < 2:
        return {}
    here, there = _Centroids.of(own, present), _Centroids.of(other, present)
    spread = float(((here.scatter + there.scatter) / max(here.degrees + there.degrees, 1)).sum())
    shared = [name for name in own.types if name in other.types]
    return {name: _meaning(name, shared, (here, there), spread) for name in shared}


def _meaning(
    name: str, shared: Collection[str], sides: tuple[_Centroids, _Centroids], variance: float
) -> Meaning:
    here, there = sides
    mine, theirs = here.means[name], there.means[name]
    rest = [one for one in shared if one != name]
    shift = np.zeros(len(mine))
    if len(rest) > 1:
        shift = np.median([there.means[one] - here.means[one] for one in rest], axis=0)
    by_chance = variance * (1 / here.counts[name] + 1 / there.counts[name])
    distance = float(np.sqrt(max(np.square(theirs - shift - mine).sum() - by_chance, 0.0)))
    others = [(float(np.linalg.norm(theirs - shift - one)), key) for key, one in here.means.items()]
    others += [(float(np.linalg.norm(one - shift - mine)), key) for key, one in there.means.items()]
    far, nearest = min(one for one in others if one[1] != name)
    opposite = [
        (float((mine - here.means[one]) @ (theirs - there.means[one])), one)
        for one in rest
        if (mine - here.means[one]) @ (theirs - there.means[one]) < 0
    ]
    return Meaning(
        distance,
        float(np.sqrt(variance)),
        nearest,
        distance / max(far, 1e-12),
        min(opposite)[1] if opposite else "",
    )


def _diagonal(size: int) -> np.ndarray:
    """Return the positions of the diagonal in the upper triangle by rows."""
    rows = np.arange(size)
    result: np.ndarray = rows * size - rows * (rows - 1) // 2
    return result


# What sums give away: the cells that can be computed from the sums of their type, exactly and by hand.


def recovered_cells(sums: Sums, row: int) -> np.ndarray:
    """Return the levels of the cells of one type that its sums give away, int64 ``(n_recovered, n_genes)``.

    This is the simplest attack, and no bound on what a better one finds.
    """
    n, total = int(sums.counts[row]), sums.totals[row].copy()
    products = sums.scatter(row).astype(np.int64)  # whole numbers below 2**53 but for billions of cells
    found: list[np.ndarray] = []
    while n > 1:
        alone = np.flatnonzero((total > 0) & (total**2 == np.diag(products)))
        if not len(alone):
            break
        gene = int(alone[0])
        found.append(products[gene] // total[gene])
        total, products, n = total - found[-1], products - np.outer(found[-1], found[-1]), n - 1
    if n == 1:
        found.append(total)
    elif n == 2:  # noqa: PLR2004 - the difference of two cells is known but for its sign
        apart = 2 * products - np.outer(total, total)
        gene = int(np.diag(apart).argmax())
        width = int(round(float(apart[gene, gene]) ** 0.5))
        difference = apart[gene] // max(width, 1)
        found += [(total + difference) // 2, (total - difference) // 2]
    return np.array(found, dtype=np.int64).reshape(len(found), sums.size)


def n_recovered(sums: Sums) -> dict[str, int]:
    """Return by type how many cells `recovered_cells` finds."""
    return {name: len(recovered_cells(sums, row)) for row, name in enumerate(sums.types)}
