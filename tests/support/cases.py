"""Small stages for the gate: an earlier one, an intact one, and ways to break it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_matrix

from canal.config.sections import Gate
from canal.config.stage_sections import Source
from canal.data.prepare import PrepareSettings
from canal.quality.gate import judge_file
from canal.quality.verdict import EarlierStage, Subject, Verdict
from tests.support.cells import gene_names, make_adata, source_of, write_adata

TYPES = {"B": 30, "NK": 30, "Treg": 30}
PANEL = gene_names(120)[:60]
SETTINGS = PrepareSettings(min_genes=0, chunk_cells=32)
NO_SPLIT = pd.DataFrame({"set": [], "cell_digest": []}, dtype=object)


@dataclass
class StageCase:
    """A file to be, its declaration, and the gate it meets; tests change what they want to break."""

    adata: AnnData = field(default_factory=lambda: make_adata(TYPES, seed=1))
    declaration: dict[str, Any] = field(default_factory=dict)
    gate: dict[str, Any] = field(default_factory=dict)
    panel: list[str] = field(default_factory=lambda: list(PANEL))
    earlier: dict[str, EarlierStage] = field(default_factory=dict)
    drawn: dict[str, str | None] | None = None
    unlabelled: bool = False
    pretrained: dict[str, str] | None = None

    def subject(self, folder: Path) -> Subject:
        """Write the file and return the stage ``second`` that learns from it."""
        raw = write_adata(self.adata, folder / "second.h5ad")
        source: Source = source_of(raw, **self.declaration)
        subject = Subject("second", "second", source, raw, self.panel, earlier=self.earlier, drawn=self.drawn)
        return replace(subject, unlabelled=self.unlabelled, pretrained=self.pretrained)

    def judged(self, folder: Path, docs: Path | None = None) -> Verdict:
        """Return what the gate says of it."""
        return judge_file(self.subject(folder), SETTINGS, Gate(**self.gate), docs)


def failed(verdict: Verdict) -> list[str]:
    """Return the names of the rules that do not hold."""
    return [rule.rule for rule in verdict.rules if not rule.passed]


def changed(adata: AnnData, change: Any) -> AnnData:
    """Return a copy of ``adata`` with ``change`` applied to X as a dense array."""
    values = adata.X.toarray().astype(np.float64)
    result = adata.copy()
    result.X = csr_matrix(change(values).astype(np.float32))
    return result


def renamed(adata: AnnData, names: dict[str, str]) -> AnnData:
    """Return a copy of ``adata`` with genes renamed."""
    result = adata.copy()
    result.var_names = [names.get(name, name) for name in adata.var_names]
    return result


def relabelled(adata: AnnData, cells: slice, label: str | None) -> AnnData:
    """Return a copy of ``adata`` with another label for some cells."""
    result = adata.copy()
    labels = result.obs["cell_type"].astype(object).to_numpy().copy()
    labels[cells] = label
    result.obs["cell_type"] = pd.Categorical(labels)
    return result
