"""Two versions side by side: what differs between them, and what they say differently of a file."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from canal.app.api import load_annotator
from canal.app.project import Project
from canal.core.errors import RegistryError
from canal.registry.provenance.diff import difference

if TYPE_CHECKING:
    from canal.annotation.changes import Changes
    from canal.annotation.options import Options


@dataclass(frozen=True)
class Difference:
    """What differs; ``document`` is JSON, ``cells`` are a file's, where one was given."""

    document: dict[str, Any]
    cells: "Changes | None" = None

    def to_json(self) -> dict[str, Any]:
        """Return a JSON document."""
        return {**self.document, "file": None if self.cells is None else self.cells.to_json()}


def diff(
    project: Project,
    before: str,
    after: str,
    file: Path | None = None,
    options: "Options | None" = None,
    notice: Callable[[str], None] = lambda message: None,
) -> Difference:
    """Return what differs between two versions, and the cells of a file that they label differently.

    Raises
    ------
    RegistryError
        If there is no such ready version, both are one, or a version is damaged.
    DataError
        If the file cannot be labelled; see `canal.annotation.annotate`.
    """
    old, new = project.store.version(before), project.store.version(after)
    if old.number == new.number:
        raise RegistryError(f"{before} and {after} are both version {old.number}; name two")
    document = difference(project.store, old, new)
    if file is None:
        return Difference(document)
    from canal.annotation.annotate import label_h5ad
    from canal.annotation.changes import label_changes

    tables = []
    for version in (old, new):
        notice(f"version {version.number} ({version.stage}) labels {file.name}")
        tables.append(label_h5ad(load_annotator(project, version), file, options, notice))
    return Difference(document, label_changes(file.name, *tables))
