"""A project folder opened: its parameters, its files as cells, and its registry."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from canal.config import BACKBONE, Config, load_config
from canal.errors import DataError
from canal.files import read_json
from canal.layout import Layout

if TYPE_CHECKING:
    import pandas as pd

    from canal.continual.cells import LabelledCells
    from canal.data.prepared import PreparedCells
    from canal.registry.store import Store, Version

CellSet = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Project:
    """What every step, command and page begins with."""

    layout: Layout
    config: Config

    @classmethod
    def open(cls, root: Path | None = None) -> "Project":
        """Read the project in ``root`` (default: the working directory)."""
        layout = Layout((root or Path.cwd()).resolve())
        return cls(layout, load_config(layout.params))

    @cached_property
    def store(self) -> "Store":
        """The project's registry."""
        from canal.registry.store import Store

        return Store(self.layout, self.config.registry)

    def learned(self, stage: str) -> "Version | None":
        """Return the version that is what params.yaml asks ``stage`` to be; see `canal.registry.history`."""
        from canal.registry.history import learned

        return learned(self.store, self.config, stage)

    @property
    def panel(self) -> list[str]:
        """The genes of the lineage."""
        from canal.data.panel import read_panel

        return read_panel(self.layout.panel)

    def summary(self, stage: str) -> dict[str, Any]:
        """Return prepared.json of the stage's source."""
        summary: dict[str, Any] = read_json(self.layout.prepared(self._source(stage)) / "prepared.json")
        return summary

    def available(self, stage: str) -> bool:
        """Whether the stage's cells are there."""
        return (self.layout.prepared(self._source(stage)) / "cells.h5ad").is_file()

    def prepared(self, stage: str) -> "PreparedCells":
        """Return the canonical cells of the stage's source.

        Raises
        ------
        DataError
            If they are not there.
        """
        from canal.data.prepared import PreparedCells

        if not self.available(stage):
            raise DataError(f"the cells of stage {stage!r} are not there (source {self._source(stage)!r})")
        return PreparedCells(self.layout.prepared(self._source(stage)) / "cells.h5ad")

    def split(self, stage: str) -> "pd.DataFrame":
        """Return the table of a stage's cells with their sets."""
        from canal.data.split import read_split

        return read_split(self.layout.split(stage))

    def cells(self, stage: str, chosen: CellSet, genes: Sequence[str] | None = None) -> "LabelledCells":
        """Return one set of a stage's cells with their expression of ``genes`` (default: the panel)."""
        from canal.continual.cells import LabelledCells

        split = self.split(stage)
        rows = split[split["set"] == chosen]
        ids = tuple(rows["cell_id"])
        return LabelledCells(
            cell_ids=ids,
            expression=self.prepared(stage).expression(ids, self.panel if genes is None else genes),
            cell_types=tuple(rows["cell_type"]),
            stages=(stage,) * len(ids),
            sources=(self._source(stage),) * len(ids),
            batches=tuple(rows["batch"]),
        )

    def _source(self, stage: str) -> str:
        return self.config.stages[stage].source
