"""An imported backbone: the beginning of a lineage that was not learned here, and what keeps it provable.

``backbones/<name>`` holds the weights with a key of their own. ``models/backbone`` holds the same bytes under
``model/`` and that key as ``imported.json``, so that sync can rebuild the import from what DVC pulled.
"""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from canal.core.digests import file_digest, json_digest
from canal.registry.key import KEY_FILE, read_key
from canal.registry.publish import Publication, publish, published, whole_key
from canal.registry.store import Store, Version
from canal.registry.tracking import parent_run

IMPORTED = "imported"
"""What the key and the tag ``canal.stage`` of an import say instead of a stage's name."""

IMPORT_KEY = "imported.json"
_MODEL = "model"


def import_facts(checkpoint: str, genes: str, gene_vectors: str | None) -> dict[str, Any]:
    """Return what an import's key says beside the digests of its own files: those of the files it came from.

    No code and no place: an import computes nothing, it renames tensors, and its own files' digests say what
    came of it. So the same files give the same key with any version of canal.
    """
    request = {"stage": IMPORTED, "checkpoint": checkpoint, "genes": genes, "gene_vectors": gene_vectors}
    return {"stage": IMPORTED, "branch": 1, "request": request, "request_digest": json_digest(request)}


def adopt_import(folder: Path, target: Path) -> None:
    """Fill ``target``, the future ``models/backbone``, from the folder of an import."""
    (target / _MODEL).mkdir()
    for name in read_key(folder)["files"]:
        shutil.copyfile(folder / name, target / _MODEL / name)
    shutil.copyfile(folder / KEY_FILE, target / IMPORT_KEY)


def register_import(store: Store, folder: Path) -> tuple[Version, bool]:
    """Return the version of an import, and whether it was made now; the caller holds the registry's lock.

    Raises
    ------
    RegistryError
        If the folder does not hold what its key says.
    """
    model, key = store.names.backbone, whole_key(folder)
    if version := published(store, model, key):
        return version, False
    run_id = parent_run(store, IMPORTED, key)
    return publish(store, Publication(model, folder, run_id, None, {}, pyfunc=False)), True


def register_adopted(store: Store, backbone: Path) -> tuple[Version, bool] | None:
    """Return `register_import` of what ``models/backbone`` was adopted from, or None where it was learned."""
    path = backbone / IMPORT_KEY
    if not path.is_file():
        return None
    if version := published(store, store.names.backbone, file_digest(path)):
        return version, False
    whole_key(backbone)
    with tempfile.TemporaryDirectory(prefix="canal-import-") as scratch:
        return register_import(store, import_of(backbone, Path(scratch)))


def import_of(backbone: Path, scratch: Path) -> Path:
    """Return a folder below ``scratch`` with the import that ``models/backbone`` was adopted from."""
    folder = scratch / IMPORTED
    shutil.copytree(backbone / _MODEL, folder)
    shutil.copyfile(backbone / IMPORT_KEY, folder / KEY_FILE)
    return folder
