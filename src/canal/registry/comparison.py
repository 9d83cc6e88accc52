"""What the candidate does to the champion's cells, stage by stage and type by type: what the policy reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from canal.core.errors import RegistryError
from canal.registry.paired import Paired, Sampling, compare_answers

if TYPE_CHECKING:
    import pandas as pd

FORMAT = 1


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
        The other types, with their number of cells: too few to judge.
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
    """Candidate against champion.

    Attributes
    ----------
    champion, candidate : int
        Version numbers.
    stages : dict
        Stages (and files) that both were scored on.
    old : tuple of str
        Stages that the champion has learned: what the candidate is to keep.
    not_compared : dict
        The others, each with the reason.
    """

    champion: int
    candidate: int
    stages: Mapping[str, StageComparison]
    not_compared: Mapping[str, str] = field(default_factory=dict)
    old: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return a JSON document."""
        return {
            "format": FORMAT,
            "champion": self.champion,
            "candidate": self.candidate,
            "old": list(self.old),
            "stages": {name: one.to_json() for name, one in self.stages.items()},
            "not_compared": dict(self.not_compared),
        }


def compare_stage(
    champion: pd.DataFrame, candidate: pd.DataFrame, min_cells: int, sampling: Sampling
) -> StageComparison:
    """Compare two tables with ``cell_id``, ``truth`` and ``predicted`` on the cells that both hold.

    Raises
    ------
    RegistryError
        If they share no cell, or disagree on what a shared cell is.
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
