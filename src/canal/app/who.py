"""`canal who`: which version labelled a file, when and how, and how the registry sees that version today."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from canal.app.annotating import readable
from canal.app.project import Project
from canal.core.errors import CanalError

if TYPE_CHECKING:
    from canal.annotation.records import Log, Record

Document = dict[str, Any]

CHAMPION = "champion"


def who(file: Path, root: Path | None = None) -> Document:
    """Return the annotation record of a labelled file, and how it stands today.

    ``record`` is what the file says; a CSV file says nothing, and the project's log is asked for it.
    ``genuine`` is whether the record is as it was written (None: its format cannot tell); ``labels`` whether
    the labels are still those that it counts. ``registry`` is what the project's registry says of the
    version, or None, and then ``not_checked`` says why.

    Raises
    ------
    DataError
        If the file cannot be read, or no `canal annotate` wrote it.
    """
    from canal.annotation.labelled import read_noted
    from canal.annotation.records import genuine

    project, log, why_not = _asked(root)
    noted = read_noted(file, log)
    why = noted.misfit()
    found: Document = {
        "file": readable(str(file)),
        "record": noted.record,
        "genuine": genuine(noted.record),
        "labels": {"as_written": not why, "n_cells": noted.n_cells, "why": why},
        "registry": None,
        "not_checked": why_not,
    }
    if project is None or log is None:
        return found
    try:
        found["registry"] = _standing(project, noted.record, log)
    except CanalError as error:
        found["not_checked"] = str(error)
    return found


def _asked(root: Path | None) -> tuple[Project | None, "Log | None", str | None]:
    """Return a project and its log of annotations, or why there is none."""
    from canal.annotation.records import read_log

    try:
        project = Project.open(root)
    except CanalError as error:
        return None, None, str(error)
    return project, read_log(project.layout.annotations), None


def _standing(project: Project, record: "Record", log: "Log") -> Document:
    """Return what a registry says of the version that a record names; it is found by its key."""
    store, said = project.store, record["model"]
    versions = [one for one in store.versions() if one.ready]
    version = next((one for one in versions if one.key and one.key == said.get("key")), None)
    champion = next((one.number for one in versions if CHAMPION in one.aliases), None)
    return {
        "model": store.names.model,
        "known": version is not None,
        "version": version.number if version else None,
        "same_number": version is not None and version.number == said.get("version"),
        "same_record": version.record == said["record"] if version and "record" in said else None,
        "aliases": list(version.aliases) if version else [],
        "retired": version.retired if version else None,
        "champion": champion,
        "logged": any(one.get("id") == record.get("id") for one in log.records) if "id" in record else None,
    }
