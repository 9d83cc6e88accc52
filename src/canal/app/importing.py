"""`canal backbone import`: published weights become a folder, a version, and a line of params.yaml."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from canal.app.project import Project
from canal.core.digests import file_digest
from canal.core.errors import DataError, HistoryError, RegistryError
from canal.core.files import new_folder
from canal.registry.key import KEY_FILE, key_digest, write_key

if TYPE_CHECKING:
    import numpy as np

    from canal.model.backbone import Backbone
    from canal.registry.ledger import Sign
    from canal.registry.store import Version


@dataclass(frozen=True)
class PublishedFiles:
    """What somebody published: weights, the genes of their rows, and perhaps the vectors of the genes."""

    checkpoint: Path
    genes: Path
    gene_vectors: Path | None = None

    @property
    def name(self) -> str:
        """The checkpoint's name as a folder's: letters, digits, ``-`` and ``_``."""
        return re.sub(r"[^a-z0-9_]+", "-", self.checkpoint.stem.lower()).strip("-_")[:64] or "published"


@dataclass(frozen=True)
class Imported:
    """What came of an import.

    ``conflict`` says why `make run` will refuse, where this branch of the backbone was learned otherwise.
    """

    backbone: "Backbone"
    folder: Path
    version: "Version"
    conflict: str | None


def import_published(project: Project, files: PublishedFiles, sign: "Sign | None" = None) -> Imported:
    """Bring published weights into the project; the same files a second time change nothing.

    The folder appears whole or not at all, then the version, then params.yaml names both by the key's digest:
    a kill between leaves what a second call completes.

    Raises
    ------
    ModelError
        If the checkpoint is refused (see `canal.model.published`) or does not fit ``backbone.preset``.
    DataError
        If genes or gene vectors cannot be read.
    ConfigError
        If params.yaml holds settings that an imported backbone excludes.
    RegistryError
        If the folder holds another import of that name.
    """
    from canal.config.edit import save, with_import
    from canal.registry.imported import register_import
    from canal.registry.moves import moving
    from canal.registry.registration import enter

    backbone = read_backbone(files, project.config.backbone.preset)
    folder = project.layout.imported(files.name)
    with new_folder(folder) as temporary:
        key = _write(backbone, files, temporary)
        if (folder / KEY_FILE).is_file() and (found := key_digest(folder)) != key:
            raise RegistryError(
                f"{folder} holds another import (key {found[:12]}..., this one has {key[:12]}...); give the "
                "checkpoint another file name, or remove the folder: the registry keeps its version"
            )
        before = project.layout.params.read_text(encoding="utf-8")
        text = with_import(before, folder.relative_to(project.layout.root).as_posix(), key)
    with moving(project.store) as ledger:
        version, _ = register_import(project.store, folder)
        enter(project.store, ledger, version, sign)
    if text != before:
        save(project.layout.params, text)
    return Imported(backbone, folder, version, _conflict(Project.open(project.layout.root)))


def read_backbone(files: PublishedFiles, preset: str) -> "Backbone":
    """Return what the files hold, all checks made; see `import_published` for what is raised."""
    from canal.data.gene_list import read_gene_list
    from canal.model.published import read_published, require_gene_vectors
    from canal.model.storage import require_preset

    backbone = read_published(files.checkpoint, read_gene_list(files.genes))
    require_preset(backbone.config, len(backbone.vocabulary), preset)
    if files.gene_vectors is not None:
        vectors = read_gene_vectors(files.gene_vectors, backbone)
        require_gene_vectors(backbone, vectors, files.gene_vectors)
    return backbone


def read_gene_vectors(path: Path, backbone: "Backbone") -> "np.ndarray":
    """Return the vectors of a backbone's genes: a .npy matrix in their order, or a .csv or .tsv by symbol.

    Raises
    ------
    DataError
        If the file is missing, of another kind (a pickle is never opened), or lacks a gene.
    """
    import numpy as np

    if path.suffix == ".npy":
        try:
            found = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path} is no matrix of numbers as numpy writes it ({error})") from error
        if not isinstance(found, np.ndarray) or not np.issubdtype(found.dtype, np.number):
            raise DataError(f"{path} holds no numbers; give gene vectors as .npy, .csv or .tsv")
        return found
    from canal.continual.pretraining import read_gene_embedding

    values, missing = read_gene_embedding(path, backbone.vocabulary, backbone.config.dim)
    if missing:
        raise DataError(f"{path} lacks {missing} of the {len(backbone.vocabulary)} genes of the checkpoint")
    return values


def _write(backbone: "Backbone", files: PublishedFiles, folder: Path) -> str:
    """Write the import with its key into ``folder`` and return the key's digest."""
    from canal.registry.imported import import_facts

    backbone.save(folder)
    vectors = None if files.gene_vectors is None else file_digest(files.gene_vectors)
    facts = import_facts(file_digest(files.checkpoint), file_digest(files.genes), vectors)
    write_key(folder, facts, parent=None)
    return key_digest(folder)


def _conflict(project: Project) -> str | None:
    from canal.config.sections import BACKBONE

    try:
        project.learned(BACKBONE)
    except HistoryError as error:
        return str(error)
    return None
