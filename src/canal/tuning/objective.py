"""How good an attempt is: what was learned and what was kept, and one number of both.

Only validation cells of the new stage and probe sets of the earlier ones are looked at.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from canal.continual.cells import LabelledCells
    from canal.model.annotator import Annotator


@dataclass(frozen=True)
class Score:
    """Two aims of a stage, each in 0...1.

    Attributes
    ----------
    accuracy : float
        Balanced accuracy on the new stage's validation cells: the mean recall of its types.
    retention : float
        Share of the teacher's accuracy on its probe set that an earlier stage keeps, averaged over all
        earlier stages, so that a stage long past counts as much as the last one (Renate#58).
    """

    accuracy: float
    retention: float

    @property
    def harmonic_mean(self) -> float:
        """High only where both are: neither can be bought with the other."""
        total = self.accuracy + self.retention
        return 2 * self.accuracy * self.retention / total if total else 0.0

    def value(self, price: float) -> float:
        """Return the one number that is maximised: the harmonic mean less the price of the replayed bank."""
        return self.harmonic_mean - price

    def to_json(self) -> dict[str, float]:
        """Return a JSON document."""
        return asdict(self) | {"harmonic_mean": self.harmonic_mean}


@dataclass(frozen=True)
class Attempt:
    """What came of an attempt.

    Attributes
    ----------
    score : Score
        Of the epoch that a training would keep.
    value : float
        The one number of it that is maximised.
    epoch : int
    n_replay : int
        Bank cells that were replayed.
    """

    score: Score
    value: float
    epoch: int
    n_replay: int


Report = Callable[[int, Score, float], None]
"""Told an epoch's number, score and value; may raise to end the attempt."""


def score(epoch: Mapping[str, Any], teacher: Mapping[str, float]) -> Score:
    """Return the score of an epoch's record (`canal.continual.trainer`) beside the teacher's accuracies."""
    return Score(epoch["validation_balanced_accuracy"], retention(epoch["probe_accuracy"], teacher))


def retention(student: Mapping[str, float], teacher: Mapping[str, float]) -> float:
    """Return the mean share of the teacher's accuracy that is kept, over its stages; 1 where there is none.

    A stage counts 1 at most, so that what is gained on one hides no loss on another, and 1 where the teacher
    knew nothing.
    """
    shares = [min(1.0, student[stage] / accuracy) if accuracy else 1.0 for stage, accuracy in teacher.items()]
    return float(np.mean(shares)) if shares else 1.0


def effective_cells(types: Sequence[str]) -> float:
    """Return the number of cells of which an accuracy is as uncertain as the balanced one of these.

    Where K types with n_k cells have equal recalls p, their mean has the variance p(1 - p) / K² · Σ 1/n_k,
    an accuracy of n cells p(1 - p) / n: n = K² / Σ 1/n_k. A type of two cells is as heavy as one of a
    hundred, so this is far below the number of cells. ``types``: one entry a cell; 0.0 for none.
    """
    counts = Counter(types).values()
    return len(counts) ** 2 / sum(1 / n for n in counts) if counts else 0.0


def accuracy_by_stage(annotator: Annotator, cells: LabelledCells) -> dict[str, float]:
    """Return the share of each stage's cells that an annotator names right."""
    found = {}
    for stage in cells.stage_names:
        part = cells.of_stage(stage)
        right = np.array(annotator.predict(part.expression).labels) == np.array(part.cell_types)
        found[stage] = float(right.mean())
    return found
