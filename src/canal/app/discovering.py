"""`canal novel`, `explain`, `markers`, stages from a sheet: analyse a labelled file, or a version itself."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from canal.annotation.clusters import ComputeOptions as ComputeOptions
from canal.annotation.columns import UNASSIGNED
from canal.annotation.labelled import Labelled, open_labelled
from canal.annotation.markers import ExplainOptions as ExplainOptions
from canal.annotation.markers import Explanation, model_markers, write_explanations, write_markers
from canal.annotation.markers import explain as explain_types
from canal.annotation.naming import Naming as Naming
from canal.annotation.novel import GroupingOptions as GroupingOptions
from canal.annotation.novel import Novel, group_novel
from canal.annotation.output import check_new, check_target
from canal.annotation.records import Record
from canal.annotation.sheet import (
    BATCH,
    LABEL,
    Sheet,
    StageFile,
    check_sheet,
    read_sheet,
    write_sheet,
    write_stage_file,
)
from canal.app.declaring import Addition, declare, propose_stage
from canal.app.models import find_model, find_model_of, load_annotator, named_model, version_of_key
from canal.app.origins import digest_of, readable
from canal.app.project import Project
from canal.config.sections import check_name
from canal.core.errors import ConfigError, DataError, RegistryError, no_such_file
from canal.core.progress import doing
from canal.data.prepare import is_no_type, spelling
from canal.io.formats import Fingerprint
from canal.model.load import CellAnnotator, Effort, network_installed
from canal.registry.ledger.ledger import plain_name

Notice = Callable[[str], None]


@dataclass(frozen=True)
class LabelledFile:
    """A file that `canal annotate` wrote, and where the model that labelled it is found.

    Attributes
    ----------
    path : Path
    model : str or None
        As `canal.app.models.find_model_of` takes it; by default the one of the record's key, in the project
        or on the shelf.
    root : Path or None
        The project folder; by default the working directory, which need not be a project.
    """

    path: Path
    model: str | None = None
    root: Path | None = None


def novel(
    file: LabelledFile, sheet: Path | None, options: GroupingOptions, overwrite: bool, notice: Notice
) -> Novel:
    """Group the novel cells of a labelled file, and write a sheet in which a person names them.

    Parameters
    ----------
    file
        The file and its model.
    sheet
        The sheet to write; None for no sheet.
    options
        How cells are grouped.
    overwrite
        Whether an existing sheet may be replaced.
    notice
        Receives messages: progress, and which model was taken.

    Raises
    ------
    CanalError
        If the file was not labelled, its model is not found, or the sheet may not be written.
    """
    if sheet is not None:
        check_sheet(sheet, overwrite)
    fingerprint = Fingerprint.of(file.path)
    with _opened(file, options.key, notice) as (labelled, annotator):
        groups = group_novel(annotator, labelled, options, notice)
        if sheet is not None:
            sha256 = digest_of(file.path)
            fingerprint.check()
            write_sheet(sheet, labelled, sha256, groups, options)
    return groups


def explain(
    file: LabelledFile, target: Path | None, options: ExplainOptions, overwrite: bool, notice: Notice
) -> Sequence[Explanation]:
    """Return the marker genes of each cell type in a labelled file, and write them to ``target``.

    Raises
    ------
    CanalError
        If the file was not labelled, its model is not found, or ``target`` may not be written.
    """
    if target is not None:
        check_target(file.path, target, overwrite)
    with _opened(file, options.key, notice) as (labelled, annotator):
        explanations = explain_types(annotator, labelled, options, notice)
    if target is not None:
        write_explanations(target, explanations)
    return explanations


def markers(
    model: str | None,
    target: Path | None,
    top: int,
    overwrite: bool,
    notice: Notice,
    root: Path | None = None,
) -> "Document":
    """Return the genes that carry each type in a version itself, and write them to ``target``.

    Parameters
    ----------
    model
        As `canal.app.models.find_model` takes it: a version, a bundle, or the name of a model on the shelf.
    target
        A CSV file to write; None for none.
    top
        Most genes of a type.
    overwrite
        Whether an existing file may be replaced.
    notice
        Receives messages: which model was taken.
    root
        The project folder; by default the working directory, which need not be a project.

    Raises
    ------
    CanalError
        If there is no such model, its files are not those of its key, or ``target`` may not be written.
    """
    if target is not None:
        if target.is_dir():
            raise DataError(f"{target} is a folder: give the name of a CSV file")
        check_new(target, overwrite)
    # A version's sums tell their markers without the network where PyTorch is not installed.
    chosen = find_model(model, root, "full" if network_installed() else "fast", notice)
    found = model_markers(chosen.load(), top)
    if target is not None:
        write_markers(target, found)
    return {"model": chosen.provenance, "cell_types": [one.to_json() for one in found]}


@contextmanager
def _opened(file: LabelledFile, key: str | None, notice: Notice) -> Iterator[tuple[Labelled, CellAnnotator]]:
    """Open a labelled file and load the model that labelled it.

    ``key`` is the ``--key-added`` of the labels; see `canal.annotation.labelled.open_labelled`.

    Raises
    ------
    DataError
        If the file was not labelled, or its labels were changed.
    RegistryError
        If its model is not found, or was retired.
    """
    with open_labelled(file.path, key) as labelled:
        effort = _effort_of(labelled.record)
        with doing("loading the model that labelled the file"):
            found = find_model_of(labelled.record, file.model, file.root, effort, notice)
            model = found.load()
        yield labelled, model


def _effort_of(record: Record) -> Effort:
    return "fast" if record.get("options", {}).get("effort") == "fast" else "full"


Document = dict[str, Any]


@dataclass(frozen=True)
class SheetOptions:
    """The options of a stage that is made from a sheet.

    Attributes
    ----------
    sheet : Path
        The sheet, filled in.
    file : Path or None
        The labelled file; by default its path when the sheet was written.
    naming : Naming
        The tables of gene names that the file was labelled with.
    parent : str or None
        Stage to learn on; by default the last.
    fixed : bool
        Whether the stage is not tuned though params.yaml has a section ``tuning``.
    min_genes : int or None
        Expressed genes a cell must have; by default ``prepare.min_genes``.
    grow : int
        How many genes the stage may add to its parent's panel.
    """

    sheet: Path
    file: Path | None
    naming: Naming
    parent: str | None = None
    fixed: bool = False
    min_genes: int | None = None
    grow: int = 0


def propose_from_novel(name: str, options: SheetOptions, root: Path | None = None) -> Addition:
    """Write the cells that a sheet names to ``novel/NAME.h5ad``, declare them as a source, and run the gate.

    The file is kept only if the gate passes; params.yaml is not changed, see `canal.app.declaring.add_stage`.

    Raises
    ------
    CanalError
        If the sheet is not filled in or does not fit the labelled file, a name is invalid, the version that
        labelled the file is not in the registry, or the declaration breaks a rule.
    """
    project = Project.open(root)
    target = _target(project, name)
    stage_file, about = _write(project, target, options)
    try:
        declared = {
            "label": LABEL,
            "values": stage_file.values,
            "batch": BATCH if stage_file.batch else None,
            "min_genes": options.min_genes,
            "citation": _citation(about),
        }
        source = declare(target, declared, None, project.layout.root)
        addition = propose_stage(name, source, options.parent, root, options.fixed, options.grow)
    except BaseException:
        _remove_stage_file(target)
        raise
    if not addition.verdict.passed:
        _remove_stage_file(target)
    return addition


def _remove_stage_file(target: Path) -> None:
    """Remove a stage file, and its folder if that is empty then."""
    target.unlink(missing_ok=True)
    with suppress(OSError):  # the folder holds other files
        target.parent.rmdir()


def _target(project: Project, name: str) -> Path:
    """Return the path of a new stage file, after checking that the stage's name is free."""
    try:
        check_name(name)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if name in project.config.stages or name in project.config.sources:
        raise ConfigError(f"{name} exists already in params.yaml; choose another name")
    target = project.layout.stage_file(name)
    if target.exists():
        raise DataError(
            f"{target} exists already, though no source of params.yaml is called {name}; another branch "
            "of the project may need it: choose another name, or move the file away"
        )
    return target


def _write(project: Project, target: Path, options: SheetOptions) -> tuple[StageFile, Document]:
    sheet = read_sheet(options.sheet)
    _check_types(sheet)
    file = options.file or sheet.labelled
    if not file.exists():
        raise DataError(no_such_file(file, f"{options.sheet} was made from it: give its path with --file"))
    fingerprint, digest, wanted = Fingerprint.of(file), digest_of(file), sheet.about["file"]["sha256"]
    if digest != wanted:
        raise DataError(
            f"{file} is not the file that {options.sheet} was made from, or was changed since (expected "
            f"sha256 {wanted[:12]}..., found {digest[:12]}...): give the file with --file, or write a new "
            "sheet with `canal novel`"
        )
    with open_labelled(file, sheet.about.get("key_added")) as labelled:
        model = labelled.record["model"]
        if (version := version_of_key(project, model.get("key"))) is None:
            raise RegistryError(
                f"{file} was labelled by {named_model(model)}, and this project's registry does not hold "
                "that version: name its project with --root, import it with `canal import`, or label "
                "the file again"
            )
        annotator = load_annotator(project, version, _effort_of(labelled.record))
        about = _about(sheet, file, labelled.record)
        stage_file = write_stage_file(
            target, labelled, labelled.reading(annotator, options.naming)[0], sheet, about
        )
    try:
        fingerprint.check()
    except DataError:
        _remove_stage_file(target)
        raise
    return stage_file, about


def _check_types(sheet: Sheet) -> None:
    """Raise for names that no cell type may have, or that differ only in case or blanks."""
    spelled: dict[str, str] = {}
    for group, given in sheet.types.items():
        checked = plain_name(given, f"{sheet.path}: the cell_type of group {group}")
        if checked.casefold() == UNASSIGNED.casefold():
            raise DataError(
                f"{sheet.path}: group {group} is called {checked!r}, which is what canal says of cells of no "
                "known type: leave cell_type empty to leave the group out"
            )
        if is_no_type(checked):
            raise DataError(
                f"{sheet.path}: group {group} is called {checked!r}, which is no cell type: leave cell_type "
                "empty to leave the group out"
            )
        if spelled.setdefault(spelling(checked), checked) != checked:
            raise DataError(
                f"{sheet.path}: {spelled[spelling(checked)]!r} and {checked!r} differ in spelling alone and "
                "would be two types: write them alike"
            )


def _about(sheet: Sheet, file: Path, record: Mapping[str, Any]) -> Document:
    """Return the origin of a stage file's cells, as JSON values."""
    return {
        "format": 1,
        "sheet": {"name": readable(sheet.path.name), "sha256": sheet.sha256},
        "file": {"name": readable(file.name), "sha256": sheet.about["file"]["sha256"]},
        "input": record.get("input"),
        "model": record["model"],
        "record": record.get("id"),
        "layer": record["options"].get("layer", "X"),
        "asked": sheet.about["asked"],
        "groups": {str(group): name for group, name in sorted(sheet.types.items())},
    }


def _citation(about: Document) -> str:
    """Return the citation of the source in params.yaml."""
    model, given = about["model"], about["input"]
    origin = f", labelled from {given['name']} (sha256 {given['sha256']})" if given else ""
    return (
        f"novel cells of {about['file']['name']} (sha256 {about['file']['sha256']}){origin} by "
        f"{model.get('model')} version {model.get('version')} (key {model.get('key')}); types given in "
        f"{about['sheet']['name']} (sha256 {about['sheet']['sha256']})"
    )
