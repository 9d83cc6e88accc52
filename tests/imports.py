"""Imports made small: a checkpoint of preset tiny, the folder of an import, a project that wants one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from canal.app.project import Project
from canal.model.storage import PRESETS
from canal.registry.manifest.version_folder import key_digest, write_key
from canal.registry.versions.publish import import_facts
from tests.make import gene_names, make_document
from tests.model.make import make_backbone
from tests.model.published import published_state, save_checkpoint

VOCABULARY = gene_names(120)[20:80]
"""Sixty of the genes of `tests.make.make_adata`: a published model never knows all genes of a data set."""


def write_params(root: Path, **changes: Any) -> None:
    """Write params.yaml, with a comment, into a new or old project folder."""
    root.mkdir(parents=True, exist_ok=True)
    yaml = YAML()
    yaml.width = 10_000
    with (root / "params.yaml").open("w", encoding="utf-8") as stream:
        stream.write("# a comment that must stay\n")
        yaml.dump(make_document(**changes), stream)


def write_published(folder: Path, **beside: Any) -> tuple[Path, Path]:
    """Write a checkpoint of preset tiny and the list of its genes."""
    genes = folder / "genes.txt"
    genes.write_text("\n".join(VOCABULARY) + "\n")
    state = published_state(PRESETS["tiny"].backbone, len(VOCABULARY))
    return save_checkpoint(folder / "Panglao pretrain.pth", state, **beside), genes


def project_with_import(root: Path, **changes: Any) -> Project:
    """Return a project whose backbones/x is an import, named by params.yaml; nothing is registered."""
    folder = root / "backbones" / "x"
    make_backbone(n_genes=20).save(folder)
    write_key(folder, import_facts("1" * 64, "2" * 64, None), parent=None)
    named = {"preset": "tiny", "imported": {"path": "backbones/x", "key": key_digest(folder)}}
    write_params(root, backbone=named | changes)
    return Project.open(root)
