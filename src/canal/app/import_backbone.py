"""The imported backbone that params.yaml names: found, proved to be the one that is meant, and adopted."""

from pathlib import Path

from canal.app.project import Project
from canal.config.sections import ImportedBackbone
from canal.core.digests import file_digest
from canal.core.errors import ModelError, RegistryError
from canal.core.files import read_json, write_json
from canal.registry.key import KEY_FILE, check_files, read_key


def imported_vocabulary(project: Project) -> frozenset[str] | None:
    """Return the genes of the imported backbone, or None where the project trains its own.

    Raises
    ------
    RegistryError
        If the import is not there, or not the one that params.yaml names.
    """
    wanted = project.config.backbone.imported
    if wanted is None:
        return None
    return frozenset(read_json(import_folder(project, wanted) / "vocabulary.json"))


def import_folder(project: Project, wanted: ImportedBackbone) -> Path:
    """Return the folder of an import after checking its key and every file; a lost one is restored.

    Raises
    ------
    RegistryError
        If it is neither on disk nor in the registry, or holds other bytes than those that are meant.
    """
    folder = project.layout.root / wanted.path
    if not folder.exists():
        _restore(project, wanted, folder)
    key = read_key(folder)
    if (found := file_digest(folder / KEY_FILE)) != wanted.key:
        raise RegistryError(
            f"backbone.imported: {folder} holds another import (key {found[:12]}...) than params.yaml names "
            f"({wanted.key[:12]}...); run `canal backbone import` again for the one that is meant"
        )
    check_files(folder, key["files"])
    return folder


def adopt(project: Project, wanted: ImportedBackbone, target: Path) -> None:
    """Fill ``target``, the future models/backbone, with the import instead of a trained network.

    Raises
    ------
    RegistryError
        As `import_folder`.
    ModelError
        If its shape is not the preset's, or a gene of the panel is not in its vocabulary.
    """
    from canal.model.storage import BackboneConfig, require_preset
    from canal.registry.imported import adopt_import

    folder = import_folder(project, wanted)
    vocabulary, panel = read_json(folder / "vocabulary.json"), project.panel
    shape = BackboneConfig.from_json(read_json(folder / "config.json")["backbone"])
    require_preset(shape, len(vocabulary), project.config.backbone.preset)
    if missing := sorted(set(panel) - set(vocabulary)):
        raise ModelError(
            f"{len(missing)} of {len(panel)} panel genes are not among the {len(vocabulary)} of the imported "
            f"backbone, such as {missing[:5]}: the panel was chosen without it; run `dvc repro --force panel`"
        )
    adopt_import(folder, target)
    write_json(target / "history.json", {"format": 1, "epochs": [], "best_epoch": 0, "imported": wanted.key})


def _restore(project: Project, wanted: ImportedBackbone, folder: Path) -> None:
    from canal.registry.history import restore_model

    for version in project.store.versions(project.config.registry.backbone):
        if version.ready and version.key == wanted.key:
            restore_model(project.store, version, folder)
            return
    raise RegistryError(
        f"backbone.imported: {folder} is not there, and no registered version has its key "
        f"({wanted.key[:12]}...); run `canal backbone import` with the same files again"
    )
