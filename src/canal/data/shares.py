"""Dividing cells among training, validation and test as near to the shares as whole cells allow."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_TIE = 9
"""Decimals at which two remainders count as equal."""


def largest_remainder(total: int, weights: Sequence[float]) -> np.ndarray:
    """Return integers that add up to ``total``, in proportion to ``weights``; ties go to the earlier."""
    exact = np.asarray(weights, dtype=np.float64)
    exact = exact / exact.sum() * total if exact.sum() > 0 else np.zeros(len(exact))
    whole: np.ndarray = np.floor(np.round(exact, _TIE)).astype(np.int64)
    order = np.argsort(-np.round(exact - whole, _TIE), kind="stable")
    whole[order[: total - int(whole.sum())]] += 1
    return whole


def remaining_quotas(shares: Sequence[float], total: int, placed: np.ndarray) -> np.ndarray:
    """Return how many of the cells not yet placed each set should get.

    Without a set that already holds more than its share, sets end exactly on the largest remainder of
    ``total``; otherwise what is left is divided in proportion to what the others still lack.
    """
    lacking = np.maximum(largest_remainder(total, shares) - placed, 0)
    return largest_remainder(total - int(placed.sum()), lacking)


def fill(sizes: Sequence[int], quotas: np.ndarray) -> np.ndarray:
    """Return the set of each indivisible piece: large ones first, each to the set that lacks most.

    Pieces of one size keep their order, so that shuffled pieces give a random division; where all sizes are
    1, the quotas are met exactly.
    """
    lacking = quotas.copy()
    chosen = np.zeros(len(sizes), dtype=np.int64)
    for piece in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        chosen[piece] = int(np.argmax(lacking))
        lacking[chosen[piece]] -= sizes[piece]
    return chosen


def divide_groups(counts: np.ndarray, shares: Sequence[float]) -> np.ndarray:
    """Return the set of each group such that every set has a group and types are near to their shares.

    Large groups are placed first, each where it fits best; then single moves and exchanges improve the
    division until none helps. The misfit of a division is the sum over types and sets of the squared
    difference between the share of the type's cells in the set and the wished one.

    Parameters
    ----------
    counts
        (n_groups, n_types) cells; at least as many groups as ``shares``.
    """
    division = _Division(counts / np.maximum(counts.sum(axis=0), 1), shares)
    order = np.argsort(-counts.sum(axis=1), kind="stable").tolist()
    for place, group in enumerate(order):
        empty = [s for s in range(len(shares)) if not division.members[s]]
        must = len(empty) == len(order) - place
        targets = empty if must else range(len(shares))
        division.move({group: min(targets, key=lambda target: division.misfit({group: target}))})  # noqa: B023
    while division.improve():
        pass
    return division.chosen


class _Division:
    """Groups in sets (-1: not placed yet), with the shares of types that each set holds."""

    def __init__(self, weights: np.ndarray, shares: Sequence[float]) -> None:
        self._weights = weights
        self._wished = np.asarray(shares)[:, None]
        self._held = np.zeros((len(shares), weights.shape[1]))
        self.chosen = np.full(len(weights), -1)
        self.members = np.zeros(len(shares), dtype=np.int64)

    def misfit(self, changes: dict[int, int]) -> float:
        """Return the misfit after ``changes``, {group: set}."""
        return float(((self._after(changes) - self._wished) ** 2).sum())

    def move(self, changes: dict[int, int]) -> None:
        """Make ``changes``."""
        self._held = self._after(changes)
        self.chosen[list(changes)] = list(changes.values())
        self.members = np.bincount(self.chosen[self.chosen >= 0], minlength=len(self.members))

    def improve(self) -> bool:
        """Try every move and every exchange once; return whether one lowered the misfit."""
        improved = False
        for group in range(len(self.chosen)):
            for target in range(len(self.members)):
                if self.members[self.chosen[group]] > 1:
                    improved |= self._attempt({group: target})
            for other in range(group):
                exchange = {group: int(self.chosen[other]), other: int(self.chosen[group])}
                improved |= self._attempt(exchange)
        return improved

    def _attempt(self, changes: dict[int, int]) -> bool:
        better = self.misfit(changes) < self.misfit({}) - 1e-12
        if better:
            self.move(changes)
        return better

    def _after(self, changes: dict[int, int]) -> np.ndarray:
        held = self._held.copy()
        for group, target in changes.items():
            if self.chosen[group] >= 0:
                held[self.chosen[group]] -= self._weights[group]
            held[target] += self._weights[group]
        return held
