"""How well a type is noticed that was left out: what an annotator without it says, and its measures."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from canal.continual.measures import harmonic_mean
from canal.memory.novelty_rule import PartsRule

LEAST_CELLS = 5
"""Known cells of a type that is left out, and of all others: fewer tell nothing."""

Parts = tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Noticed:
    """Cells asked of an annotator that never learned one type; one entry a cell.

    Attributes
    ----------
    unknown : numpy.ndarray
        Whether a cell is of that type.
    score, novel : numpy.ndarray
        Its novelty, and whether that is Unassigned.
    right : numpy.ndarray
        Whether the likeliest type is the cell's.
    """

    unknown: np.ndarray
    score: np.ndarray
    novel: np.ndarray
    right: np.ndarray

    @property
    def accuracies(self) -> tuple[float, float]:
        """The share of known cells that are right and not Unassigned, and of unknown ones noticed."""
        known = float(np.mean((self.right & ~self.novel)[~self.unknown]))
        return known, float(np.mean(self.novel[self.unknown]))

    @property
    def h_score(self) -> float:
        """The harmonic mean of both."""
        return harmonic_mean(*self.accuracies)

    def document(self, name: str) -> dict[str, Any]:
        """Return what evaluation.json says of a type that was held out."""
        from sklearn.metrics import roc_auc_score

        known_accuracy, unknown_accuracy = self.accuracies
        return {
            "type": name,
            "n_known": int((~self.unknown).sum()),
            "n_unknown": int(self.unknown.sum()),
            "known_accuracy": known_accuracy,
            "unknown_accuracy": unknown_accuracy,
            "h_score": self.h_score,
            "auroc": float(roc_auc_score(self.unknown, self.score)),
        }


@dataclass(frozen=True, eq=False)
class AskedParts:
    """Parts of the novelty of known and of tested cells, before any of them are chosen.

    Attributes
    ----------
    known, test : dict
        Each part, ``(n_cells,)``; no known cell is of the type that was left out.
    unknown, right : numpy.ndarray
        Of each tested cell; as in `Noticed`.
    """

    known: Mapping[str, np.ndarray]
    test: Mapping[str, np.ndarray]
    unknown: np.ndarray
    right: np.ndarray

    def noticed(self, rule: type[PartsRule], parts: Sequence[str], share: float) -> Noticed:
        """Return how the tested cells look where novelty is made of some parts, set on the known cells."""
        fitted = rule.fitted(self.known, parts, share) if parts else None
        if fitted is None:
            nothing = np.zeros(len(self.unknown))
            return Noticed(self.unknown, nothing, nothing.astype(bool), self.right)
        score = fitted.score(self.test)
        return Noticed(self.unknown, score, fitted.is_novel(score), self.right)

    def h_scores(self, rule: type[PartsRule], choices: Sequence[Parts], share: float) -> dict[Parts, float]:
        """Return the H-score of each choice of parts."""
        return {parts: self.noticed(rule, parts, share).h_score for parts in choices}


def best_choice(found: Sequence[Mapping[Parts, float]], choices: Sequence[Parts], otherwise: Parts) -> Parts:
    """Return the choice with the highest mean H-score over types, of two alike the one of fewer parts.

    ``otherwise`` is returned where no type could be left out.
    """
    if not found:
        return otherwise
    return max(choices, key=lambda parts: (np.mean([one[parts] for one in found]), -len(parts)))


def can_be_left_out(name: str, labels: Collection[str], known: Sequence[str]) -> bool:
    """Whether enough types and known cells are left without a type, and enough cells of it."""
    n_others = sum(one != name and one in labels for one in known)
    return len(labels) > 2 and list(known).count(name) >= LEAST_CELLS and n_others >= LEAST_CELLS


def summary(measured: Sequence[Mapping[str, Any]], reasons: Mapping[str, str]) -> dict[str, Any]:
    """Return what evaluation.json says of all held-out types: each, their means, and why others were not."""
    return {
        "holdouts": list(measured),
        "h_score": float(np.mean([one["h_score"] for one in measured])) if measured else None,
        "auroc": float(np.mean([one["auroc"] for one in measured])) if measured else None,
        "not_measured": {name: reason for name, reason in reasons.items() if reason},
    }
