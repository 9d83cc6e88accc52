"""`canal backbone import`, `canal basis`: start a lineage from published weights or another lineage's basis.

Only sums on the same basis can be merged.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from canal.app.project import Project
from canal.config.layout import name_from
from canal.config.sections import BACKBONE, ImportedBackbone
from canal.config.yaml_file import save, with_basis, with_import
from canal.continual.pretraining import read_gene_embedding
from canal.core.digests import file_digest
from canal.core.errors import (
    DataError,
    HistoryError,
    ModelError,
    RegistryError,
    SumsError,
)
from canal.core.files import new_file, new_folder, read_json, write_json
from canal.data.genes import read_gene_list
from canal.memory.levels import Basis
from canal.model.storage import BackboneConfig, require_preset
from canal.registry.ledger.ledger import Sign
from canal.registry.manifest.version_folder import KEY_FILE, check_files, key_digest, read_key, write_key
from canal.registry.promotion.moves import moving
from canal.registry.promotion.promotion import register_entry
from canal.registry.store.database import Version
from canal.registry.versions.history import restore_model, verified
from canal.registry.versions.publish import adopt_import, import_facts, register_import

if TYPE_CHECKING:
    from canal.model.backbone import Backbone


@dataclass(frozen=True)
class PublishedFiles:
    """Published files: a checkpoint, the genes of its rows, and optionally the genes' vectors."""

    checkpoint: Path
    genes: Path
    gene_vectors: Path | None = None

    @property
    def name(self) -> str:
        """The name of the import's folder, from the checkpoint's: letters, digits, ``-`` and ``_``."""
        return name_from(self.checkpoint.stem, "published")


@dataclass(frozen=True)
class BackboneImport:
    """The result of an import.

    ``conflict`` says why `canal run` will fail, where this branch already has another backbone.
    """

    backbone: "Backbone"
    folder: Path
    version: Version
    conflict: str | None


def import_published(project: Project, files: PublishedFiles, sign: Sign | None = None) -> BackboneImport:
    """Import published weights into the project; importing the same files again changes nothing.

    The folder is written atomically, then the version is registered, then params.yaml names both by the key's
    digest: after a kill, a second call completes the import.

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
    backbone = read_backbone(files, project.config.backbone.preset)
    folder = project.layout.imported(files.name)
    with new_folder(folder) as temporary:
        key = _write(backbone, files, temporary)
        if (folder / KEY_FILE).is_file() and (digest := key_digest(folder)) != key:
            raise RegistryError(
                f"{folder} holds another import (key {digest[:12]}..., the new one has {key[:12]}...); "
                "rename the checkpoint's file, or remove the folder: the registry keeps its version"
            )
        before = project.layout.params.read_text(encoding="utf-8")
        text = with_import(before, folder.relative_to(project.layout.root).as_posix(), key)
    with moving(project.store) as ledger:
        version, _ = register_import(project.store, folder)
        register_entry(project.store, ledger, version, sign)
    if text != before:
        save(project.layout.params, text, before)
    project, conflict = Project.open(project.layout.root), None
    try:
        project.learned(BACKBONE)
    except HistoryError as error:
        conflict = str(error)
    return BackboneImport(backbone, folder, version, conflict)


def read_backbone(files: PublishedFiles, preset: str) -> "Backbone":
    """Return the backbone in the files, checked; raises as `import_published`."""
    from canal.model.published import read_published, require_gene_vectors

    backbone = read_published(files.checkpoint, read_gene_list(files.genes))
    require_preset(backbone.config, len(backbone.vocabulary), preset)
    if files.gene_vectors is not None:
        vectors = read_gene_vectors(files.gene_vectors, backbone)
        require_gene_vectors(backbone, vectors, files.gene_vectors)
    return backbone


def backbone_facts(name: str, backbone: "Backbone") -> dict[str, Any]:
    """Return where a backbone is imported to, its genes and its size, as a JSON document."""
    size = {"blocks": backbone.config.depth, "width": backbone.config.dim}
    return {"backbone": f"backbones/{name}", "genes": len(backbone.vocabulary), **size}


def read_gene_vectors(path: Path, backbone: "Backbone") -> np.ndarray:
    """Return the vectors of a backbone's genes: a .npy matrix in their order, or a .csv or .tsv by symbol.

    Raises
    ------
    DataError
        If the file is missing, has another format (a pickle is never opened), or lacks a gene.
    """
    if path.suffix == ".npy":
        try:
            vectors = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path} is no matrix of numbers as numpy writes it ({error})") from error
        if not isinstance(vectors, np.ndarray) or not np.issubdtype(vectors.dtype, np.number):
            raise DataError(f"{path} holds no numbers; give gene vectors as .npy, .csv or .tsv")
        return vectors

    values, missing = read_gene_embedding(path, backbone.vocabulary, backbone.config.dim)
    if missing:
        raise DataError(f"{path} lacks {missing} of the {len(backbone.vocabulary)} genes of the checkpoint")
    return values


def _write(backbone: "Backbone", files: PublishedFiles, folder: Path) -> str:
    """Write the import with its key into ``folder`` and return the key's digest."""
    backbone.save(folder)
    vectors = None if files.gene_vectors is None else file_digest(files.gene_vectors)
    facts = import_facts(file_digest(files.checkpoint), file_digest(files.genes), vectors)
    write_key(folder, facts, parent=None)
    return key_digest(folder)


def imported_vocabulary(project: Project) -> frozenset[str] | None:
    """Return the genes of the imported backbone, or None where the project trains its own.

    Raises
    ------
    RegistryError
        If the import is missing, or is not the one that params.yaml names.
    """
    wanted = project.config.backbone.imported
    if wanted is None:
        return None
    return frozenset(read_json(import_folder(project, wanted) / "vocabulary.json"))


def import_folder(project: Project, wanted: ImportedBackbone) -> Path:
    """Return the folder of an import, after checking its key and files; a missing folder is restored.

    Raises
    ------
    RegistryError
        If the import is neither on disk nor in the registry, or its key differs from that in params.yaml.
    """
    folder = project.layout.root / wanted.path
    if not folder.exists():
        _restore(project, wanted, folder)
    key = read_key(folder)
    if (found := file_digest(folder / KEY_FILE)) != wanted.key:
        raise RegistryError(
            f"backbone.imported: {folder} holds another import (key {found[:12]}...) than params.yaml names "
            f"({wanted.key[:12]}...); run `canal backbone import` again with the files of the latter"
        )
    check_files(folder, key["files"])
    return folder


def adopt_backbone(project: Project, wanted: ImportedBackbone, target: Path) -> None:
    """Fill ``target``, the future models/backbone, with the import instead of a trained network.

    Raises
    ------
    RegistryError
        As `import_folder`.
    ModelError
        If its shape is not the preset's, or a gene of the panel is not in its vocabulary.
    """
    folder = import_folder(project, wanted)
    vocabulary, panel = read_json(folder / "vocabulary.json"), project.panel
    shape = BackboneConfig.from_json(read_json(folder / "config.json")["backbone"])
    require_preset(shape, len(vocabulary), project.config.backbone.preset)
    if missing := sorted(set(panel) - set(vocabulary)):
        raise ModelError(
            f"{len(missing)} of {len(panel)} panel genes are not among the {len(vocabulary)} of the imported "
            f"backbone, such as {missing[:5]}: the panel was chosen before the import; run `dvc repro "
            "--force panel`"
        )
    adopt_import(folder, target)
    write_json(target / "history.json", {"format": 1, "epochs": [], "best_epoch": 0, "imported": wanted.key})


def _restore(project: Project, wanted: ImportedBackbone, folder: Path) -> None:
    for version in project.store.versions(project.config.registry.backbone):
        if version.ready and version.key == wanted.key:
            restore_model(project.store, version, folder)
            return
    raise RegistryError(
        f"backbone.imported: {folder} does not exist, and no registered version has its key "
        f"({wanted.key[:12]}...); run `canal backbone import` with the same files again"
    )


_IN_VERSION = "model/exact/basis/basis.json"


@dataclass(frozen=True)
class Adopted:
    """The result of adopting a basis: its folder, digest, number of genes, and the stages that chose it."""

    path: str
    digest: str
    genes: int
    seen: dict[str, str]
    changed: bool

    def to_json(self) -> dict[str, Any]:
        """Return a JSON document."""
        return dict(self.__dict__)


def export_basis(project: Project, wanted: str, output: Path) -> Path:
    """Write the basis of a version to a file, or into a folder as ``basis.json``; return the file.

    Raises
    ------
    RegistryError
        If there is no such version, it keeps no sums, or ``output`` exists and differs.
    """
    version = project.store.version(wanted)
    folder, key = verified(project.store, version)
    if _IN_VERSION not in key["files"]:
        raise RegistryError(
            f"version {version.number} ({version.stage}) keeps no sums, so it has no basis: "
            f"`canal sums backfill {version.stage}` adds them"
        )
    content = (folder / _IN_VERSION).read_bytes()
    target = output if output.suffix == ".json" else output / "basis.json"
    if target.exists() and (not target.is_file() or target.read_bytes() != content):
        raise RegistryError(f"{target} exists already with other content: give another output")
    with new_file(target) as temporary:
        temporary.write_bytes(content)
    return target


def adopt_basis(project: Project, source: Path, dry_run: bool = False) -> Adopted:
    """Adopt another lineage's basis in a project without a backbone; adopting it again changes nothing.

    ``dry_run`` only returns what it would be.

    The basis is copied to ``bases/NAME``, then params.yaml names it: after a kill, a second call completes
    the adoption.

    Raises
    ------
    SumsError
        If the file is missing, damaged, or no basis.
    HistoryError
        If the lineage has started on a basis of its own.
    RegistryError
        If another basis of that name was adopted.
    """
    path = source / "basis.json" if source.is_dir() else source
    basis, layout, adopted = Basis.read(path), project.layout, project.config.memory.basis
    folder = layout.basis(_name(path))
    relative = folder.relative_to(layout.root).as_posix()
    if adopted is None or adopted.digest != basis.digest:
        _require_unlearned(project)
    elif adopted.path != relative and adopted_basis(project) is not None:
        return Adopted(adopted.path, basis.digest, basis.size, basis.seen, changed=False)
    if (folder / "basis.json").is_file() and Basis.load(folder).digest != basis.digest:
        raise RegistryError(
            f"{folder} holds another basis; give the file another name, or remove that folder"
        )
    changed = adopted is None or adopted.digest != basis.digest
    if dry_run:
        return Adopted(relative, basis.digest, basis.size, basis.seen, changed)
    basis.save(folder)
    if changed:
        before = layout.params.read_text(encoding="utf-8")
        save(layout.params, with_basis(before, relative, basis.digest), before)
    return Adopted(relative, basis.digest, basis.size, basis.seen, changed)


def adopted_basis(project: Project) -> Basis | None:
    """Return the basis that params.yaml names; None where the lineage chooses its own.

    Raises
    ------
    SumsError
        If the basis is missing, or its digest differs from that in params.yaml.
    """
    wanted = project.config.memory.basis
    if wanted is None:
        return None
    basis = Basis.load(project.layout.root / wanted.path)
    if basis.digest != wanted.digest:
        raise SumsError(
            f"memory.basis: {wanted.path} holds the basis {basis.digest[:12]}..., params.yaml names "
            f"{wanted.digest[:12]}...: run `canal basis adopt` with the latter"
        )
    return basis


def _require_unlearned(project: Project) -> None:
    """Raise where the backbone was learned: another basis would change the request of every stage."""
    try:
        learned = project.learned(BACKBONE) is not None
    except HistoryError:
        learned = True
    if learned:
        raise HistoryError(
            "this lineage has started on a basis of its own; another basis would change the request of every "
            "stage, and learned stages are never changed. Adopt the basis in a new project folder before its "
            "first `canal run`, or start a new branch here: `canal stage relearn backbone`, then adopt it"
        )


def _name(path: Path) -> str:
    """Return the name of a basis's folder, from its file's name or the folder of a ``basis.json``."""
    stem = path.resolve().parent.name if path.name == "basis.json" else path.stem
    return name_from(stem, "basis")
