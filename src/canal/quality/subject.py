"""What the gate is asked about: a stage's source, its prepared cells, and the stages before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from canal.config.sections import Source
from canal.quality.profile import Profile

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class EarlierStage:
    """What is left of a stage learned before, whether its source is still there or not.

    Attributes
    ----------
    split
        Its cells, columns ``set`` and ``cell_digest``.
    profile
        Its cells in numbers: of its prepared cells, or kept in its verdict where those are gone.
    """

    split: pd.DataFrame
    profile: Profile


@dataclass(frozen=True)
class Subject:
    """One stage before its gate.

    Attributes
    ----------
    raw
        The source's file as it was published.
    panel
        The genes of the lineage; empty where there is none yet.
    prepared
        The folder that prepare made of it; None where it has not been prepared.
    split_sha256
        Digest of the stage's own split table; None when a file is only looked at.
    earlier
        The stages it builds on, by name; empty for the first.
    chunk_cells
        Rows of the raw file held in memory at a time.
    """

    stage: str
    source_name: str
    source: Source
    raw: Path
    panel: Sequence[str]
    prepared: Path | None = None
    split_sha256: str | None = None
    earlier: Mapping[str, EarlierStage] = field(default_factory=dict)
    chunk_cells: int = 2000
