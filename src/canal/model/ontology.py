"""Cell Ontology ids of a model's labels: ``ontology.json``, which only models that know any have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from canal.core.errors import ModelError
from canal.model.storage import read_document

ONTOLOGY = "ontology.json"


def read_ontology(folder: Path, labels: Sequence[str]) -> dict[str, str]:
    """Return the ids of a model folder by label, none where it has no file of them.

    Raises
    ------
    ModelError
        If the file holds anything but ids of ``labels``.
    """
    if not (folder / ONTOLOGY).is_file():
        return {}
    ids = read_document(folder, ONTOLOGY)
    if not isinstance(ids, dict) or not all(isinstance(one, str) and one for one in ids.values()):
        raise ModelError(f"{folder / ONTOLOGY} must map labels to Cell Ontology ids; restore the model")
    if unknown := sorted(set(ids) - set(labels)):
        raise ModelError(
            f"{folder / ONTOLOGY} names {len(unknown)} type(s) that are no label, such as {unknown[:5]}; "
            "restore the model"
        )
    return ids
