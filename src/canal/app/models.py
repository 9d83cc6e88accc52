"""Which model labels cells: a version of the project, a bundle's file or folder, or a model on the shelf.

All that a bundle claims is proven before any of it is used.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from canal.app.project import Project
from canal.config.layout import Layout
from canal.core.errors import DataError, Doubt, RegistryError, no_such_file
from canal.core.files import scratch_folder
from canal.core.packages import lazy_module
from canal.core.progress import doing
from canal.model.load import CellAnnotator, Effort, load_model, sums_alone
from canal.registry.ledger.ledger_rules import CHAMPION
from canal.registry.manifest.version_folder import KEY_FILE, check_files, key_digest, read_key
from canal.registry.provenance.registered import LABELS
from canal.registry.store.database import LOGGED, Version
from canal.registry.store.store import require_rebuilt
from canal.registry.transfer.bundle import MANIFEST, VERSION, Manifest
from canal.registry.versions.history import verified
from canal.runtime.startup import quiet_libraries

if TYPE_CHECKING:
    from canal.app import shelf
else:  # it brings the audit, which a version of the project does not need
    shelf = lazy_module("canal.app.shelf")

Document = dict[str, Any]
Notice = Callable[[str], None]

_REGISTERED = "models:/"
_MOST_DIGITS = 9
"""Of a version's number: databases refuse far larger ones in words of their own."""


@dataclass(frozen=True)
class FoundModel:
    """A model that labels cells.

    Attributes
    ----------
    provenance : dict
        Which version it is, JSON values for an annotation record.
    load : callable
        Returns its annotator.
    project : Project, optional
        The project whose version it is: its log takes the records of annotations.
    """

    provenance: Document
    load: Callable[[], CellAnnotator]
    project: Project | None = None

    @property
    def name(self) -> str:
        """Which model it is, in words: "version 2 (second) of canal-annotator"."""
        about = self.provenance
        if about["version"] is None:
            return f"the model of {about['stage']}, key {about['key'][:8]}"
        return f"version {about['version']} ({about['stage']}) of {about['model']}"


def find_model(model: str | Path | None, root: Path | None, effort: Effort, notice: Notice) -> FoundModel:
    """Return the model that labels cells; what comes from outside of the project is proven here.

    Parameters
    ----------
    model
        A number or alias of the project's versions; the name of a model on the shelf; a file of `canal
        export` or a folder with its content; a folder ``models/STAGE``; or ``models:/NAME/VERSION`` of
        MLflow. By default the champion of the project, else its newest version; without a project the only
        model on the shelf.
    root
        The project folder; by default the working directory, which need not be a project.
    notice
        Receives messages: which model was taken, what could not be checked.

    Raises
    ------
    CanalError
        If there is none, it was changed, or does not prove what it claims.
    """
    wanted = None if model is None else str(model)
    if wanted is not None and wanted.startswith(_REGISTERED):
        return _from_mlflow(wanted, root, effort, notice)
    if wanted is not None and (isinstance(model, Path) or shelf.is_path(wanted)):
        return _from_path(Path(wanted).expanduser(), effort, notice)
    if (project := project_here(root)) is not None:
        versions, number = project.store.versions() if wanted else [], (wanted or "").removeprefix("v")
        known = any(number == str(one.number) or wanted in one.aliases for one in versions)
        if wanted is None or known or not shelf.on_shelf(wanted):
            return _from_project(project, wanted, effort, notice)
        notice(
            f"{wanted} is no version of this project: the model of that name on the shelf labels the cells"
        )
    if wanted is None:
        names = shelf.shelf_names()
        if len(names) != 1:
            there = f"the shelf holds {len(names)} models" if names else "the shelf holds no model"
            raise RegistryError(
                f"which model labels the cells? There is no project here (no params.yaml in "
                f"{Path.cwd()}), and {there}: name one with --model FILE.zip or --model NAME "
                "(`canal models list`)"
            )
        wanted = names[0]
        notice(f"{wanted}, the only model on the shelf, labels the cells")
    return _from_shelf(wanted, effort, notice)


def find_model_of(
    record: Document, model: str | Path | None, root: Path | None, effort: Effort, notice: Notice
) -> FoundModel:
    """Return the model that labelled a file: the one whose key the file's record names.

    Parameters
    ----------
    record
        The annotation record of the file.
    model
        As `find_model` takes it. By default the version of the project that has the key (numbers differ
        between registries), else the model on the shelf that has it.
    root, effort, notice
        As `find_model` takes them.

    Raises
    ------
    RegistryError
        If no model has the key, or the one that is named has another; if the version was retired.
    CanalError
        As `find_model` does.
    """
    key = record["model"].get("key")
    if model is not None:
        found = find_model(model, root, effort, notice)
        if found.provenance["key"] != key:
            raise RegistryError(
                f"the file was labelled by {named_model(record['model'])}, and {model} is "
                f"{named_model(found.provenance)}: name the model that labelled it, or label the file again "
                "by this one"
            )
        return found
    project = project_here(root)
    if project is not None and (version := version_of_key(project, key)) is not None:
        return _from_project(project, str(version.number), effort, notice)
    if key and (name := shelf.shelf_name_of(key)) is not None:
        notice(f"{name}, the model on the shelf that labelled the file, is read")
        return _from_shelf(name, effort, notice)
    there = "there is no project here" if project is None else "this project's registry does not hold it"
    raise RegistryError(
        f"the file was labelled by {named_model(record['model'])}; {there}, and no model on the shelf has "
        "this key: name its file with --model FILE.zip, or its project with --root, import it with "
        "`canal import`, or label the file again"
    )


def named_model(model: Document) -> str:
    """Return what a message calls the model of a record or of a provenance."""
    key = f"key {str(model['key'])[:12]}..." if model.get("key") else "no key on record"
    return f"{model.get('model') or 'a model'} version {model.get('version') or '?'} ({key})"


def version_of_key(project: Project, key: str | None) -> Version | None:
    """Return the ready version of a project that has this key; None where there is none.

    Raises
    ------
    RegistryError
        If it was retired.
    """
    of_key = (one for one in project.store.versions() if one.ready and one.key == key)
    version = next(of_key, None) if key else None
    return None if version is None else project.store.serving(str(version.number))


def model_names(root: Path | None = None) -> list[tuple[str, str]]:
    """Return what ``--model`` may be called here, each with a few words: for completion in a shell.

    The numbers and aliases of the project's versions, where there is a project, then the names on the shelf.
    """
    names = []
    if (project := project_here(root)) is not None:
        for one in project.store.versions():
            if one.ready and not one.retired:
                names += [
                    (str(one.number), one.stage),
                    *((alias, f"version {one.number}") for alias in one.aliases),
                ]
    return [*names, *((name, "on the shelf") for name in shelf.shelf_names())]


def project_here(root: Path | None) -> Project | None:
    """Return the project in ``root``, which has to be one, or in the working directory, which need not be."""
    return Project.open(root) if root is not None or Layout(Path.cwd()).params.exists() else None


def _from_project(project: Project, wanted: str | None, effort: Effort, notice: Notice) -> FoundModel:
    version = serving_version(project, wanted)
    if wanted is None and CHAMPION not in version.aliases:
        notice(f"no champion yet: version {version.number} ({version.stage}), the newest, labels the cells")
    return FoundModel(provenance(version), lambda: load_annotator(project, version, effort), project)


def serving_version(project: Project, model: str | None) -> Version:
    """Return the version that ``model`` names; by default the champion, else the newest ready version.

    Raises
    ------
    RegistryError
        If there is no such version, it was retired, the registry is empty, or its rebuilding is incomplete.
    """
    if model is not None:
        return project.store.serving(model)
    require_rebuilt(project.store)
    ready = [version for version in project.store.versions() if version.ready and not version.retired]
    if not ready:
        if (ledger := project.layout.ledger).is_file() and ledger.stat().st_size:
            raise RegistryError(
                f"{ledger.name} names versions, and {project.store.shown} holds none: `dvc pull` brings "
                "missing files, `canal registry rebuild` makes the registry again from them"
            )
        raise RegistryError("no version is registered yet; run `canal run` first, which registers at its end")
    champions = [version for version in ready if CHAMPION in version.aliases]
    return (champions or ready)[-1]


@doing("loading the version")
def load_annotator(project: Project, version: Version, effort: Effort = "full") -> CellAnnotator:
    """Return a version's annotator, after checking its files against its key.

    Raises
    ------
    ModelError
        If ``effort`` is fast and the version keeps no sums.
    """
    folder, _ = verified(project.store, version)
    return load_model(folder / "model", effort)


class LoadedModels:
    """The annotators of a project's versions, each loaded once, its files compared with its key."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self._loaded: dict[str, CellAnnotator] = {}

    def of(self, version: Version) -> CellAnnotator:
        """Return a version's annotator; see `load_annotator`."""
        if version.key not in self._loaded:
            self._loaded[version.key] = load_annotator(self.project, version)
        return self._loaded[version.key]


def provenance(version: Version) -> Document:
    """Return the provenance of a version, for an annotation record."""
    return {
        "model": version.model,
        "version": version.number,
        "key": version.key,
        "record": version.record,
        "stage": version.stage,
    }


def _from_path(path: Path, effort: Effort, notice: Notice) -> FoundModel:
    """Return the model of a bundle's file or folder, or of a folder ``models/STAGE``."""
    if not path.exists():
        raise DataError(no_such_file(path, shelf.OTHER_MODELS))
    if path.is_dir() and not (path / MANIFEST).is_file():
        notice(
            Doubt(
                f"{path} is no bundle of `canal export`: its files are compared with its {KEY_FILE}, but "
                "nothing proves how it was made"
            )
        )
        return _from_version_folder(path, {}, effort, notice)
    notice(f"proving {path.name}; `canal models add` keeps a proven model")
    with shelf.proven_bundle(path) as (folder, manifest, chain):
        annotator = _loaded(folder / VERSION, effort, notice)
        about = _handed(manifest, chain[-1].stage) | {"bundle": shelf.bundle_digest(path)}
        return FoundModel(about, lambda: annotator)


def _handed(manifest: Manifest, stage: str) -> Document:
    """Return the provenance of the version in a bundle."""
    named = manifest.model, manifest.version, manifest.key, manifest.record
    return provenance(replace(Version.unregistered(*named), stage=stage))


@doing("loading the model")
def _loaded(folder: Path, effort: Effort, notice: Notice) -> CellAnnotator:
    """Return the annotator of a version's folder."""
    if sums_alone(folder / "model", effort):
        what = "the sums label all cells, also those that the network would decide"
        notice(Doubt(f"torch is not installed: {what}"))
    return load_model(folder / "model", effort)


def _from_version_folder(folder: Path, expected: Document, effort: Effort, notice: Notice) -> FoundModel:
    """Return the model of a version's folder whose files are those of its key.json."""
    try:
        key = read_key(folder)
    except RegistryError as error:
        raise RegistryError(f"{folder} holds no model: neither {MANIFEST} nor a valid {KEY_FILE}") from error
    own = {name: one for name, one in key["files"].items() if name.startswith("model/")}
    check_files(folder, own)
    if more := shelf.unlisted(folder / "model", {name.removeprefix("model/") for name in own}):
        raise RegistryError(
            f"{folder / 'model'} holds files that {KEY_FILE} does not name: {shelf.examples(more)}"
        )
    if not (folder / LABELS).is_file():
        raise RegistryError(f"{folder} is the folder of {key['stage']!r}, which labels no cells")
    digest = key_digest(folder)
    if expected and expected["key"] != digest:
        raise RegistryError(
            f"{KEY_FILE} of {expected['model']} {expected['version']} has sha256 {digest[:12]}..., "
            f"registered was {expected['key'][:12]}..."
        )
    about = {"model": None, "version": None, "key": digest, "record": None, "stage": key["stage"]}
    annotator = _loaded(folder, effort, notice)
    return FoundModel(about | expected, lambda: annotator)


def _from_shelf(name: str, effort: Effort, notice: Notice) -> FoundModel:
    one = shelf.shelved(name)
    manifest = shelf.unchanged(one)
    stage = str(read_key(one.folder / VERSION)["stage"])
    about = _handed(manifest, stage) | {"bundle": one.sha256}
    return FoundModel(about, lambda: _loaded(one.folder / VERSION, effort, notice))


def _from_mlflow(address: str, root: Path | None, effort: Effort, notice: Notice) -> FoundModel:
    """Return a version by MLflow's own address: of the project's registry, or of MLFLOW_TRACKING_URI."""
    name, _, wanted = address.removeprefix(_REGISTERED).replace("@", "/").rpartition("/")
    if not name or not wanted:
        raise RegistryError(f"{address}: expected models:/NAME/VERSION or models:/NAME@ALIAS")
    by_number = wanted.isdecimal() and wanted.isascii()
    if by_number and len(wanted) > _MOST_DIGITS:
        raise RegistryError(
            f"{address}: no registry numbers versions that high: name a version that it has, or an alias"
        )
    project = project_here(root)
    if project is not None and name == project.store.names.model:
        return _from_project(project, wanted, effort, notice)
    quiet_libraries()
    mlflow = import_module("mlflow")
    uri = os.environ.get("MLFLOW_TRACKING_URI")  # not what this process may have set for another registry
    if not uri:
        raise RegistryError(f"{address}: of which MLflow? Set MLFLOW_TRACKING_URI to its address")
    with scratch_folder("model") as folder:
        try:
            client = mlflow.MlflowClient(uri, uri)  # canal registers where it tracks
            found = (
                client.get_model_version(name, wanted)
                if by_number
                else client.get_model_version_by_alias(name, wanted)
            )
            logged = client.get_logged_model(found.source.removeprefix(LOGGED))
            source = logged.artifact_location  # an address models:/ is one of this process's own registry
            place = mlflow.artifacts.download_artifacts(source, dst_path=str(folder), tracking_uri=uri)
        except mlflow.exceptions.MlflowException as error:
            raise RegistryError(f"{address}: {str(error)[:300]}") from error
        expected = {"model": name, "version": int(found.version), "key": found.tags.get("canal.key", "")}
        if not expected["key"]:
            raise RegistryError(f"{address} is no version of canal: it has no tag canal.key")
        return _from_version_folder(Path(place), expected, effort, notice)
