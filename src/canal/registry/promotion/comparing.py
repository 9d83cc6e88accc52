"""Candidate and champion on the same cells: lost and gained cells, by stage and by cell type.

Each difference comes with a paired bootstrap interval and McNemar's test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import bdtr, bdtrc, bdtrik

from canal.core.errors import RegistryError
from canal.core.progress import doing

if TYPE_CHECKING:
    import pandas as pd


FORMAT = 1
_UNLIKELY = 1e-12


@dataclass(frozen=True)
class Paired:
    """Champion and candidate on the same ``n`` cells.

    Attributes
    ----------
    n : int
    champion, candidate : float
        Accuracies.
    lost, gained : int
        Cells that only the champion, and only the candidate, labels right.
    difference, low, high : float
        Candidate minus champion, and the bounds of its bootstrap interval.
    p : float
        McNemar's exact two-sided test of lost against gained (McNemar 1947).
    power : float
        Probability that so many cells show a loss of ``Sampling.loss``; see `power_of`.
    """

    n: int
    champion: float
    candidate: float
    lost: int
    gained: int
    difference: float
    low: float
    high: float
    p: float
    power: float

    def to_json(self) -> dict[str, Any]:
        """Return a JSON document."""
        return asdict(self)


@dataclass(frozen=True)
class Sampling:
    """Settings of the bootstrap interval, and the loss that a comparison is to be able to see."""

    confidence: float
    resamples: int
    seed: int
    loss: float = 0.05


def power_of(n: int, gained: int, loss: float, confidence: float) -> float:
    """Return the probability that McNemar's exact test of ``n`` cells finds a true loss of such a share.

    Beside the loss as many cells are lost as are gained, and that is the share that was gained here. The test
    is two-sided at ``1 - confidence``. Summed over how many cells the models may differ in.
    """
    gained_share = min(gained / n, (1 - loss) / 2)
    apart = loss + 2 * gained_share
    differing = np.arange(1, n + 1)
    likely = bdtr(differing, n, apart) - bdtr(differing - 1, n, apart)
    differing, likely = differing[likely > _UNLIKELY], likely[likely > _UNLIKELY]
    by_chance = np.ceil(bdtrik((1 + confidence) / 2, differing, 0.5))
    found = np.where(by_chance < differing, bdtrc(by_chance, differing, (loss + gained_share) / apart), 0.0)
    return float(np.clip(likely @ found, 0, 1))


def compare_answers(
    truth: Sequence[str], champion: Sequence[str], candidate: Sequence[str], sampling: Sampling
) -> Paired:
    """Compare two models' labels of the same cells, given in the same order.

    The interval resamples cells, each with both its answers (percentile bootstrap, Efron 1979). A cell can
    only be lost, gained or neither, so a resample of cells is one multinomial draw.

    Raises
    ------
    ValueError
        If there is no cell, or the three sequences differ in length.
    """
    n = len(truth)
    if not n or not n == len(champion) == len(candidate):
        raise ValueError(f"expected the same cells thrice, found {n}, {len(champion)} and {len(candidate)}")
    right_before = [one == answer for one, answer in zip(truth, champion, strict=True)]
    right_after = [one == answer for one, answer in zip(truth, candidate, strict=True)]
    pairs = list(zip(right_before, right_after, strict=True))
    lost, gained = pairs.count((True, False)), pairs.count((False, True))
    generator = np.random.default_rng([sampling.seed, n, lost, gained])
    shares = np.array([lost, gained, n - lost - gained]) / n
    drawn = generator.multinomial(n, shares, size=sampling.resamples)
    tail = (1 - sampling.confidence) / 2
    low, high = np.quantile((drawn[:, 1] - drawn[:, 0]) / n, [tail, 1 - tail])
    p = min(1.0, 2 * bdtrc(max(lost, gained) - 1, lost + gained, 0.5)) if lost + gained else 1.0
    return Paired(
        n=n,
        champion=sum(right_before) / n,
        candidate=sum(right_after) / n,
        lost=lost,
        gained=gained,
        difference=(gained - lost) / n,
        low=float(low),
        high=float(high),
        p=float(p),
        power=power_of(n, gained, sampling.loss, sampling.confidence),
    )


@dataclass(frozen=True)
class StageComparison:
    """Both models on the test cells of one stage, or on a file.

    Attributes
    ----------
    whole : Paired
        All cells.
    types : dict
        Each type with at least the policy's number of cells.
    too_few : dict
        The other types, with their number of cells.
    """

    whole: Paired
    types: Mapping[str, Paired]
    too_few: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON document."""
        return {
            **self.whole.to_json(),
            "types": {name: pair.to_json() for name, pair in self.types.items()},
            "too_few_to_judge": dict(self.too_few),
        }


@dataclass(frozen=True)
class Comparison:
    """Candidate against champion, or against another version in its place.

    Attributes
    ----------
    champion, candidate : int
        Version numbers.
    stages : dict
        Stages (and files) that both were scored on.
    old : tuple of str
        Stages that the champion has learned, whose accuracy the candidate must keep.
    not_compared : dict
        The others, each with the reason.
    learned : tuple of str
        The stages whose versions champion and candidate are.
    loss : float
        The loss that each pair's ``power`` is about.
    """

    champion: int
    candidate: int
    stages: Mapping[str, StageComparison]
    not_compared: Mapping[str, str] = field(default_factory=dict)
    old: tuple[str, ...] = ()
    learned: tuple[str, str] = ("", "")
    loss: float = 0.05

    def to_json(self) -> dict[str, Any]:
        """Return a JSON document."""
        return {
            "format": FORMAT,
            "champion": self.champion,
            "candidate": self.candidate,
            "champion_stage": self.learned[0],
            "candidate_stage": self.learned[1],
            "loss_to_see": self.loss,
            "old": list(self.old),
            "stages": {name: one.to_json() for name, one in self.stages.items()},
            "not_compared": dict(self.not_compared),
        }


@doing("comparing the versions on the same test cells")
def compare_stage(
    champion: pd.DataFrame, candidate: pd.DataFrame, min_cells: int, sampling: Sampling
) -> StageComparison:
    """Compare two tables with ``cell_id``, ``truth`` and ``predicted`` on the cells that both hold.

    Raises
    ------
    RegistryError
        If they share no cell, or have different true types for a shared cell.
    """
    both = champion.merge(candidate, on="cell_id", suffixes=("_champion", "_candidate"))
    if both.empty:
        raise RegistryError("champion and candidate were scored on different cells; none is shared")
    unlike = both[both["truth_champion"] != both["truth_candidate"]]
    if len(unlike):
        first = unlike.iloc[0]
        raise RegistryError(
            f"{len(unlike)} of {len(both)} cells have another true type for the champion, such as "
            f"{first['cell_id']}: {first['truth_champion']} and {first['truth_candidate']}"
        )
    types, too_few = {}, {}
    for name, cells in both.groupby("truth_candidate", sort=True):
        if len(cells) < min_cells:
            too_few[str(name)] = len(cells)
        else:
            types[str(name)] = _pair(cells, sampling)
    return StageComparison(_pair(both, sampling), types, too_few)


def _pair(cells: pd.DataFrame, sampling: Sampling) -> Paired:
    return compare_answers(
        list(cells["truth_candidate"]),
        list(cells["predicted_champion"]),
        list(cells["predicted_candidate"]),
        sampling,
    )
