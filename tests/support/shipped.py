"""The project of the shipped params.yaml, on synthetic cells that are labelled as its sources say."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML

from canal.core.digests import file_digest
from tests.pipeline.conftest import Line, begin, lay_out
from tests.support.cells import make_adata, write_adata
from tests.support.warm import REPOSITORY

if TYPE_CHECKING:
    from anndata import AnnData

PLACES = ("wheel", "url", "path")
"""Keys of a source that say where its bytes are from."""

GENES = 600
"""So that a cell expresses more genes than `prepare.min_genes` asks for."""

A_TYPE = 14
FEW: dict[str, dict[str, Any]] = {
    "backbone": {"preset": "tiny", "max_epochs": 1},
    "continual": {"max_epochs": 2, "patience": 1},
    "tuning": {"n_trials": 2, "epochs": 1},
    "novelty": {"mixtures": 20, "shadow_epochs": 2},
}
"""All that is not as it is shipped, beside the bytes of the sources: a small network and few epochs."""


def shipped() -> dict[str, Any]:
    """Return the shipped parameters, comments and all."""
    document: dict[str, Any] = YAML().load(REPOSITORY / "params.yaml")
    return document


def make_shipped(root: Path) -> Line:
    """Make the shipped project in a new folder, nothing learned yet."""
    line, document = lay_out(root), shipped()
    for seed, (name, source) in enumerate(document["sources"].items()):
        raw = write_adata(labelled_as(source, seed), root / "raw" / f"{name}.h5ad")
        for place in PLACES:
            source.pop(place, None)
        source["path"], source["sha256"] = f"raw/{name}.h5ad", file_digest(raw)
    for section, values in FEW.items():
        document.setdefault(section, {}).update(values)
    YAML().dump(document, root / "params.yaml")
    return begin(line)


def labelled_as(source: dict[str, Any], seed: int) -> AnnData:
    """Return cells that a source's declaration describes: its labels, units, layer and kept cells."""
    where = source.get("where", {})
    published = [str(one) for one in where.get(source["label"], source.get("label_map") or ("A", "B", "C"))]
    kinds = {label: (source.get("label_map") or {}).get(label) or label for label in published}
    adata = make_adata(dict.fromkeys(published, A_TYPE), GENES, seed, source["values"], kinds=kinds)
    adata.obs[source["label"]] = adata.obs["cell_type"]
    if source.get("batch"):
        adata.obs[source["batch"]] = adata.obs["batch"]
    for column, kept in where.items():
        if column != source["label"]:
            adata.obs[column] = kept[0]
    if source.get("layer") == "raw":
        adata.raw = adata.copy()
    elif source.get("layer", "X") != "X":
        adata.layers[source["layer"]] = adata.X
    return adata
