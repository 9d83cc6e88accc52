"""What to expect of a file's labels: known cells left Unassigned, and types that missing genes cost most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from canal.memory.answer import PROMISE

if TYPE_CHECKING:
    from canal.memory.prediction import Prediction
    from canal.model.load import CellAnnotator

_MOST_LIKE = 0.5
"""A file of which fewer cells lie among those of the learned studies is told to be of another kind."""


@dataclass
class Likeness:
    """How many of the cells looked at lie among the cells of the learned studies."""

    n_cells: int = 0
    n_like: int = 0

    def add(self, answer: Prediction) -> None:
        """Count the next cells, where their annotator can tell."""
        if answer.of_learned is not None:
            self.n_cells += len(answer.of_learned)
            self.n_like += int(answer.of_learned.sum())

    def to_json(self, about: Mapping[str, Any]) -> dict[str, Any]:
        """Return share of such cells, and the share of known cells to be expected Unassigned.

        Of cells like those of the learned studies the rule's promise is expected, of others what known cells
        of a learned study gave when the study was left out: lowest, mean and highest. Nothing is returned
        where the model was not measured in this way.

        Parameters
        ----------
        about
            What `canal.model.load.CellAnnotator.about` says.
        """
        strays = list(about.get("strays", {}).values())
        if not self.n_cells or not strays or not about.get("novelty"):
            return {}
        like = self.n_like / self.n_cells
        promise = float(about.get("false_unassigned", PROMISE))
        shares = (min(strays), sum(strays) / len(strays), max(strays))
        lowest, usual, highest = (round(like * promise + (1 - like) * one, 3) for one in shares)
        return {
            "like_learned": round(like, 4),
            "known_unassigned": {"lowest": lowest, "usual": usual, "highest": highest},
        }


def told(found: Mapping[str, Any]) -> str:
    """Return a warning where most cells lie outside of the learned studies, else nothing."""
    if not found or found["like_learned"] >= _MOST_LIKE:
        return ""
    expected = found["known_unassigned"]
    return (
        f"{1 - found['like_learned']:.0%} of the cells lie outside of the studies that were learned: the "
        f"whole file is shifted, and of cells of known types some {expected['usual']:.0%} may be Unassigned "
        f"({expected['lowest']:.0%} to {expected['highest']:.0%}, as learned studies were when they were "
        "left out); learn a part of it with `canal stage add`"
    )


# How much of what a model looks at for each type is lost with genes that a query does not have.

_TOLD = 5


def lost_weight(annotator: CellAnnotator, missing: Sequence[str]) -> dict[str, float]:
    """Return for each type the share of its weight that lies on ``missing`` genes, 0...1, largest first.

    Weights are those of `canal.model.load.CellAnnotator.gene_weights`, the same for every query.
    """
    weights = annotator.gene_weights()
    gone = np.isin(np.array(annotator.genes, dtype=object), list(missing))
    shares = weights[:, gone].sum(axis=1) / np.maximum(weights.sum(axis=1), np.finfo(float).tiny)
    found = {label: round(float(share), 4) for label, share in zip(annotator.labels, shares, strict=True)}
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def told_lost(lost: Mapping[str, float]) -> str:
    """Return the types that lose most, for a warning."""
    most = ", ".join(f"{label} {share:.0%}" for label, share in list(lost.items())[:_TOLD])
    return f"of what the model looks at, these types lose most with the missing genes: {most}"
