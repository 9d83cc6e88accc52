"""`canal.record`: the annotation record of a labelled AnnData or file, as a dict, and whether it holds."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from canal.annotation.labelled import CSV, read_back, read_back_adata
from canal.annotation.query import check_adata
from canal.annotation.records import genuine, read_log
from canal.app.project import Project

if TYPE_CHECKING:
    from anndata import AnnData


def record(
    labelled: "AnnData | str | Path", key: str | None = None, root: Path | None = None
) -> dict[str, Any]:
    """Return the annotation record of a labelled AnnData or file: which version labelled it, and how.

    ``uns`` holds the record as a text, since an h5ad file could not hold all of it as a mapping; a table that
    `canal.annotate` returns has it in ``attrs["canal"]``. Nothing is asked of a registry: `canal who` does
    that.

    Parameters
    ----------
    labelled : AnnData, str or Path
        What was labelled: an AnnData, or an h5ad file, zarr store, Parquet or CSV file.
    key : str, optional
        The ``key_added`` of the labels; by default ``canal``, else the only one that has a record.
    root : Path, optional
        The project that labelled a CSV file, which cannot hold its record; by default the working directory.

    Returns
    -------
    dict
        The record, and two entries that no record has: ``genuine``, whether it is as it was written (None:
        its format cannot tell), and ``as_written``, whether cells and labels still are those it counted (an
        AnnData that was subset or relabelled since has others).

    Raises
    ------
    DataError
        If there is no record, or several of which none is under ``canal``.
    """
    if isinstance(labelled, str | Path):
        path = Path(labelled)
        log = read_log(Project.open(root).layout.annotations) if path.suffix == CSV else None
        found = read_back(path, log, key)
    else:
        check_adata(labelled)
        found = read_back_adata(labelled, key)
    return {**found.record, "genuine": genuine(found.record), "as_written": not found.mismatch()}
