"""Looking into a labelled file with the version that labelled it: novel cells, and what carries a type."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from canal.app.annotating import digest_of
from canal.app.project import Project
from canal.core.errors import RegistryError

if TYPE_CHECKING:
    from canal.annotation.explain import Asked, Explanation
    from canal.annotation.labelled import Labelled
    from canal.annotation.novel import Novel, Wishes
    from canal.annotation.records import Record
    from canal.model.load import CellAnnotator, Effort
    from canal.registry.store.database import Version

Notice = Callable[[str], None]


def novel(
    file: Path,
    sheet: Path | None,
    wishes: "Wishes",
    overwrite: bool,
    notice: Notice,
    root: Path | None = None,
) -> "Novel":
    """Group the novel cells of a labelled file, and write a sheet in which a person names them.

    Parameters
    ----------
    file
        What `canal annotate` wrote.
    sheet
        Where the sheet goes; None writes none.
    wishes
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
    from canal.annotation.novel import group_novel
    from canal.annotation.sheet import check_sheet, write_sheet
    from canal.annotation.unchanged import Fingerprint

    if sheet is not None:
        check_sheet(sheet, overwrite)
    seen = Fingerprint.of(file)
    with opened(file, Project.open(root)) as (labelled, annotator):
        found = group_novel(annotator, labelled, wishes, notice)
        if sheet is not None:
            sha256 = digest_of(file)
            seen.check()
            write_sheet(sheet, labelled, sha256, found, wishes)
    return found


def explain(
    file: Path, target: Path | None, asked: "Asked", overwrite: bool, notice: Notice, root: Path | None = None
) -> "Sequence[Explanation]":
    """Return for each type of a labelled file the genes that carry it, and write them to ``target``.

    Raises
    ------
    CanalError
        If the file was not labelled, or by a version that is not here; or ``target`` may not be written.
    """
    from canal.annotation.explain import explain as look
    from canal.annotation.explain import write_explanations
    from canal.annotation.output import check_target

    if target is not None:
        check_target(file, target, overwrite)
    with opened(file, Project.open(root)) as (labelled, annotator):
        found = look(annotator, labelled, asked, notice)
    if target is not None:
        write_explanations(target, found)
    return found


@contextmanager
def opened(file: Path, project: Project) -> "Iterator[tuple[Labelled, CellAnnotator]]":
    """Open a labelled file together with the version that labelled it, checked against its key.

    Raises
    ------
    DataError
        If the file was not labelled, or the labels are not those that were written.
    RegistryError
        If the registry does not hold the version, or it was retired.
    """
    from canal.annotation.labelled import open_labelled
    from canal.app.api import load_annotator

    with open_labelled(file) as labelled:
        effort: Effort = "fast" if labelled.record.get("options", {}).get("effort") == "fast" else "full"
        yield labelled, load_annotator(project, version_of(file, labelled.record, project), effort)


def version_of(file: Path, record: "Record", project: Project) -> "Version":
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
