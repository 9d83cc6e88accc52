"""`canal who`: which version labelled a file, when and how, and how the registry sees that version today."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from canal.annotating import readable
from canal.errors import CanalError
from canal.project import Project

if TYPE_CHECKING:
    from canal.annotation.records import Record
    from canal.data.h5ad import H5adFile

Document = dict[str, Any]

CHAMPION = "champion"


def who(file: Path, root: Path | None = None) -> Document:
    """Return the annotation record of a labelled file, and how it stands today.

    ``record`` is what the file says. ``genuine`` is whether the record is as it was written (None: its format
    cannot tell); ``labels`` whether the labels are still those that it counts. ``registry`` is what the
    project's registry says of the version, or None, and then ``not_checked`` says why.

    Raises
    ------
    DataError
        If the file cannot be read, or no `canal annotate` wrote it.
    """
    from canal.annotation.records import genuine, read_record
    from canal.data.h5ad import open_h5ad

    with open_h5ad(file) as opened:
        record = read_record(opened)
        labels = _labels(opened, record)
    found: Document = {
        "file": readable(str(file)),
        "record": record,
        "genuine": genuine(record),
        "labels": labels,
        "registry": None,
        "not_checked": None,
    }
    try:
        found["registry"] = _standing(Project.open(root), record)
    except CanalError as error:
        found["not_checked"] = str(error)
    return found


def _labels(file: "H5adFile", record: "Record") -> Document:
    """Return whether a file's labels are those that its record counts, and how many cells it holds now."""
    from canal.annotation.labelled import misfit

    why = misfit(file, record)
    return {"as_written": not why, "n_cells": file.n_cells, "why": why}


def _standing(project: Project, record: "Record") -> Document:
    """Return what a registry says of the version that a record names; it is found by its key."""
    from canal.annotation.records import read_log

    store, said = project.store, record["model"]
    versions = [one for one in store.versions() if one.ready]
    version = next((one for one in versions if one.key and one.key == said.get("key")), None)
    champion = next((one.number for one in versions if CHAMPION in one.aliases), None)
    log = read_log(project.layout.annotations)
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
