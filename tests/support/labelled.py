"""Labelled files whose labels are put right, on record: a small model knows next to nothing."""

from __future__ import annotations

import json
from pathlib import Path

import anndata

from canal.annotation.records import make_record
from canal.core.digests import canonical_json
from tests.support.cells import write_adata


def call_novel(path: Path, cell_type: str) -> Path:
    """Let the cells of one type be the novel ones of a labelled file; return its path."""
    cells = anndata.read_h5ad(path)
    cells.obs["canal_is_novel"] = (cells.obs["cell_type"] == cell_type).to_numpy()
    label = cells.obs["canal_best_type"].astype(str).mask(cells.obs["canal_is_novel"], "Unassigned")
    cells.obs["canal_cell_type"] = label.astype("category")
    record = json.loads(cells.uns["canal"])
    del record["id"], record["format"]
    cells.uns["canal"] = canonical_json(make_record(record | {"cell_types": label.value_counts().to_dict()}))
    return write_adata(cells, path)
