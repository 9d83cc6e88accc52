"""`canal who`: which version labelled a file, when and how, and how the registry sees that version today."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from canal.annotating import readable
from canal.errors import CanalError
from canal.project import Project

if TYPE_CHECKING:
    from canal.annotation.records import Record
    from canal.data.h5ad import H5adFile

Document = dict[str, Any]

LABELS = "canal_cell_type"
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
    if LABELS not in file.obs_columns:
        return {"as_written": False, "n_cells": file.n_cells, "why": f"obs has no column {LABELS} any more"}
    counts = dict(Counter(file.obs_column(LABELS)))
    why = ""
    if file.n_cells != record["n_cells"]:
        why = f"it holds {file.n_cells:,} cells, {record['n_cells']:,} were labelled"
    elif counts != record["cell_types"]:
        wrong = [name for name in {**counts, **record["cell_types"]} if _differs(name, counts, record)]
        why = f"other numbers of cells of {len(wrong)} types than were written, such as {sorted(wrong)[:3]}"
    return {"as_written": not why, "n_cells": file.n_cells, "why": why}


def _differs(name: str, counts: dict[str, int], record: "Record") -> bool:
    return bool(counts.get(name, 0) != record["cell_types"].get(name, 0))


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
