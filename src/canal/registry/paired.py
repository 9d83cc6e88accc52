"""Two models on the same cells: lost and gained, with a paired bootstrap interval and McNemar's test."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


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

    def to_json(self) -> dict[str, Any]:
        """Return a JSON document."""
        return asdict(self)


@dataclass(frozen=True)
class Sampling:
    """How an interval is drawn: its confidence, the number of resamples, and the seed."""

    confidence: float
    resamples: int
    seed: int


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
    import numpy as np
    from scipy.stats import binomtest

    n = len(truth)
    if not n or not n == len(champion) == len(candidate):
        raise ValueError(f"expected the same cells thrice, found {n}, {len(champion)} and {len(candidate)}")
    right_before = [one == said for one, said in zip(truth, champion, strict=True)]
    right_after = [one == said for one, said in zip(truth, candidate, strict=True)]
    pairs = list(zip(right_before, right_after, strict=True))
    lost, gained = pairs.count((True, False)), pairs.count((False, True))
    generator = np.random.default_rng([sampling.seed, n, lost, gained])
    shares = np.array([lost, gained, n - lost - gained]) / n
    drawn = generator.multinomial(n, shares, size=sampling.resamples)
    tail = (1 - sampling.confidence) / 2
    low, high = np.quantile((drawn[:, 1] - drawn[:, 0]) / n, [tail, 1 - tail])
    p = binomtest(lost, lost + gained, 0.5).pvalue if lost + gained else 1.0
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
    )
