"""Looking into a labelled file with the version that labelled it: novel cells, and what carries a type."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from canal.annotation.clusters import ComputeOptions as ComputeOptions
from canal.annotation.columns import UNASSIGNED
from canal.annotation.labelled import Labelled, open_labelled
from canal.annotation.markers import ExplainOptions as ExplainOptions
from canal.annotation.markers import Explanation, write_explanations
from canal.annotation.markers import explain as explain_types
from canal.annotation.naming import Naming as Naming
from canal.annotation.novel import GroupingOptions as GroupingOptions
from canal.annotation.novel import Novel, group_novel
from canal.annotation.output import check_target
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
from canal.app.annotating import digest_of, load_annotator, readable
from canal.app.declaring import Addition, declare, propose_stage
from canal.app.project import Project
from canal.config.sections import check_name
from canal.core.errors import ConfigError, DataError, RegistryError
from canal.data.prepare import is_no_type, spelling
from canal.io.formats import Fingerprint
from canal.model.load import CellAnnotator, Effort
from canal.registry import words
from canal.registry.store import Version

Notice = Callable[[str], None]


def novel(
    file: Path,
    sheet: Path | None,
    options: GroupingOptions,
    overwrite: bool,
    notice: Notice,
    root: Path | None = None,
) -> Novel:
    """Group the novel cells of a labelled file, and write a sheet in which a person names them.

    Parameters
    ----------
    file
        What `canal annotate` wrote.
    sheet
        Where the sheet goes; None writes none.
    options
        How cells are grouped.
    overwrite
        Whether a sheet that is there may be replaced.
    notice
        Is told how far it is.
    root
        The project folder; by default the working directory.

    Raises
    ------
    CanalError
        If the file was not labelled, or by a version that is not here; or the sheet may not be written.
    """
    if sheet is not None:
        check_sheet(sheet, overwrite)
    seen = Fingerprint.of(file)
    with opened(file, Project.open(root)) as (labelled, annotator):
        found = group_novel(annotator, labelled, options, notice)
        if sheet is not None:
            sha256 = digest_of(file)
            seen.check()
            write_sheet(sheet, labelled, sha256, found, options)
    return found


def explain(
    file: Path,
    target: Path | None,
    options: ExplainOptions,
    overwrite: bool,
    notice: Notice,
    root: Path | None = None,
) -> Sequence[Explanation]:
    """Return for each type of a labelled file the genes that carry it, and write them to ``target``.

    Raises
    ------
    CanalError
        If the file was not labelled, or by a version that is not here; or ``target`` may not be written.
    """
    if target is not None:
        check_target(file, target, overwrite)
    with opened(file, Project.open(root)) as (labelled, annotator):
        found = explain_types(annotator, labelled, options, notice)
    if target is not None:
        write_explanations(target, found)
    return found


@contextmanager
def opened(file: Path, project: Project) -> Iterator[tuple[Labelled, CellAnnotator]]:
    """Open a labelled file together with the version that labelled it, checked against its key.

    Raises
    ------
    DataError
        If the file was not labelled, or the labels are not those that were written.
    RegistryError
        If the registry does not hold the version, or it was retired.
    """
    with open_labelled(file) as labelled:
        effort: Effort = "fast" if labelled.record.get("options", {}).get("effort") == "fast" else "full"
        yield labelled, load_annotator(project, version_of(file, labelled.record, project), effort)


def version_of(file: Path, record: Record, project: Project) -> Version:
    """Return the version whose key a record names; a number alone may mean another one elsewhere.

    Raises
    ------
    RegistryError
        If the registry does not hold it, or it was retired.
    """
    said = record["model"]
    version = next(
        (one for one in project.store.versions() if one.ready and one.key == said.get("key")), None
    )
    if version is None:
        known = "records no key" if not said.get("key") else f"has key {said['key'][:12]}..."
        raise RegistryError(
            f"{file} was labelled by {said.get('model', 'a model')} version {said.get('version', '?')}, "
            f"which {known}, and this project's registry does not hold it: name its project with "
            "--root, bring the version with `canal import`, or label the file again"
        )
    return project.store.serving(str(version.number))


Document = dict[str, Any]


@dataclass(frozen=True)
class FromNovel:
    """What a person says of a stage that is made from a sheet.

    Attributes
    ----------
    sheet : Path
        The sheet, filled in.
    file : Path or None
        The labelled file; by default where it lay when the sheet was written.
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


def propose_from_novel(name: str, wish: FromNovel, root: Path | None = None) -> Addition:
    """Write the cells that a sheet names to ``novel/NAME.h5ad``, declare them as a source, and run the gate.

    The file stays only if the gate passes; params.yaml is not changed, see `canal.app.declaring.add_stage`.

    Raises
    ------
    CanalError
        If the sheet is not filled in or does not fit the labelled file, a name is none, the version that
        labelled is not here, or the declaration breaks a rule.
    """
    project = Project.open(root)
    target = _target(project, name)
    stage_file, about = _write(project, target, wish)
    try:
        options = {
            "label": LABEL,
            "values": stage_file.values,
            "batch": BATCH if stage_file.batch else None,
            "min_genes": wish.min_genes,
            "citation": _citation(about),
        }
        source = declare(target, options, None, project.layout.root)
        addition = propose_stage(name, source, wish.parent, root, wish.fixed, wish.grow)
    except BaseException:
        _remove_stage_file(target)
        raise
    if not addition.verdict.passed:
        _remove_stage_file(target)
    return addition


def _remove_stage_file(target: Path) -> None:
    """Remove a lesson, and its folder where it was the only one."""
    target.unlink(missing_ok=True)
    with suppress(OSError):  # others lie in it
        target.parent.rmdir()


def _target(project: Project, name: str) -> Path:
    """Return where a lesson goes, if the name of its stage is free."""
    try:
        check_name(name)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if name in project.config.stages or name in project.config.sources:
        raise ConfigError(f"{name} exists already in params.yaml; choose another name")
    target = project.layout.stage_file(name)
    if target.exists():
        raise DataError(
            f"{target} is there already, though no source of params.yaml is called {name}; another branch "
            "of the project may need it: choose another name, or move it away"
        )
    return target


def _write(project: Project, target: Path, wish: FromNovel) -> tuple[StageFile, Document]:
    sheet = read_sheet(wish.sheet)
    _check_types(sheet)
    file = wish.file or sheet.labelled
    if not file.exists():
        raise DataError(
            f"{file}: the labelled file of {wish.sheet} is not there; say where it is with --file"
        )
    seen, found, wanted = Fingerprint.of(file), digest_of(file), sheet.about["file"]["sha256"]
    if found != wanted:
        raise DataError(
            f"{file} is not the file that {wish.sheet} was made for, or was changed since (expected sha256 "
            f"{wanted[:12]}..., found {found[:12]}...): name that file with --file, or write a new sheet "
            "with `canal novel`"
        )
    with opened(file, project) as (labelled, annotator):
        about = _about(sheet, file, labelled.record)
        stage_file = write_stage_file(
            target, labelled, labelled.reading(annotator, wish.naming), sheet, about
        )
    try:
        seen.check()
    except DataError:
        _remove_stage_file(target)
        raise
    return stage_file, about


def _check_types(sheet: Sheet) -> None:
    """Refuse names that no type may have, or that differ in case or blanks alone."""
    spelled: dict[str, str] = {}
    for group, given in sheet.types.items():
        checked = words.name(given, f"{sheet.path}: the cell_type of group {group}")
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
    """Return where the cells of a lesson are from, as JSON values."""
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
    """Return what params.yaml says of where the cells are from."""
    model, given = about["model"], about["input"]
    origin = f", labelled from {given['name']} (sha256 {given['sha256']})" if given else ""
    return (
        f"novel cells of {about['file']['name']} (sha256 {about['file']['sha256']}){origin} by "
        f"{model.get('model')} version {model.get('version')} (key {model.get('key')}); types given in "
        f"{about['sheet']['name']} (sha256 {about['sheet']['sha256']})"
    )
