"""What a version stores of cells against the canonical cells themselves, where those are still there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from canal.config.layout import Layout
from canal.core.digests import file_digest
from canal.core.errors import CanalError
from canal.registry.checks.finding import Found, examples
from canal.registry.checks.member import BANK, PROBE, SPLIT, Member

if TYPE_CHECKING:
    import numpy as np

    from canal.continual.cells import StoredCells
    from canal.data.prepared import PreparedCells


class CellFiles:
    """The prepared files of a project that are the ones a version names, each looked at once."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._digests: dict[str, str | None] = {}
        self._opened: dict[str, PreparedCells] = {}
        self._read: dict[tuple[str, tuple[str, ...]], dict[str, np.ndarray]] = {}

    def of(self, member: Member) -> PreparedCells | None:
        """Return the canonical cells that a member was learned from; None where they are gone or others."""
        from canal.data.prepared import PreparedCells

        source, wanted = str(member.key["data"]["source"]), member.key["data"]["prepared_sha256"]
        path = self._layout.prepared(source) / "cells.h5ad"
        if source not in self._digests:
            self._digests[source] = file_digest(path) if path.is_file() else None
        if self._digests[source] != wanted:
            return None
        return self._opened.setdefault(source, PreparedCells(path))

    def expression(self, prepared: PreparedCells, ids: Sequence[str], genes: Sequence[str]) -> np.ndarray:
        """Return the expression of cells; what later versions store of them again is read once."""
        import numpy as np

        known = self._read.setdefault((str(prepared.path), tuple(genes)), {})
        if new := [cell for cell in dict.fromkeys(ids) if cell not in known]:
            known.update(zip(new, prepared.expression(new, genes), strict=True))
        return np.stack([known[cell] for cell in ids]) if ids else prepared.expression(ids, genes)


def check_values(chain: Sequence[Member], files: CellFiles, found: Found) -> None:
    """Check the labels, batches, digests and expression that the newest member of a chain stores."""
    newest = chain[-1]
    if not newest.taught:
        return
    stages = {member.stage: member for member in chain if member.taught}
    try:
        _check_split(newest, files.of(newest), found)
        for name, stored in ((BANK, newest.bank), (PROBE, newest.probe)):
            if stored is not None:
                _check_stored(newest, name, stored, stages, files, found)
    except CanalError as error:
        found.wrong(newest.name, "values", f"the prepared cells cannot be read: {error}")


def _check_split(newest: Member, prepared: PreparedCells | None, found: Found) -> None:
    if prepared is None:
        what = "the cells it was learned from are not in prepared/: its split and values were not compared"
        found.note(newest.name, "values", what)
        return
    if newest.split is None:
        return
    columns = ["cell_type", "batch", "cell_digest"]
    split = newest.split.set_index("cell_id")[columns]
    there = prepared.obs[columns].astype(str).reindex(split.index)
    wrong = [str(cell) for cell in split.index[(split != there).any(axis=1)]]
    if wrong:
        what = (
            f"{SPLIT}: {len(wrong)} cells are not in the prepared cells as they stand here: {examples(wrong)}"
        )
        found.wrong(newest.name, "values", what)


def _check_stored(
    newest: Member,
    name: str,
    stored: StoredCells,
    stages: dict[str, Member],
    files: CellFiles,
    found: Found,
) -> None:
    import numpy as np

    cells = stored.cells
    for stage in cells.stage_names:
        prepared = files.of(stages[stage]) if stage in stages else None
        if prepared is None:
            continue
        part = cells.of_stage(stage)
        known = set(prepared.obs.index)
        rows = [row for row, cell in enumerate(part.cell_ids) if cell in known]
        ids = [part.cell_ids[row] for row in rows]
        # What a stage after it added to the panel was not stored of its cells: there they hold zeros.
        own = stages[stage].genes or stored.genes
        there = np.pad(files.expression(prepared, ids, own), ((0, 0), (0, len(stored.genes) - len(own))))
        same = np.all(there == part.expression[rows], axis=1)
        if wrong := [cell for cell, right in zip(ids, same, strict=True) if not right]:
            what = f"{name}: {len(wrong)} cells have other values than the data of {stage}: {examples(wrong)}"
            found.wrong(newest.name, "values", what)
