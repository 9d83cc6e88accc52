"""`canal annotate`, `canal who` and `canal.annotate`: label cells with a registered version, on record."""

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from threadpoolctl import threadpool_limits

from canal.annotation.annotate import annotate_adata, annotate_h5ad, annotate_path
from canal.annotation.labelled import CSV, read_back
from canal.annotation.naming import Naming as Naming
from canal.annotation.options import Callbacks as Callbacks
from canal.annotation.options import Options as Options
from canal.annotation.output import TABLES, Output, check_target
from canal.annotation.places import Places, check_free_adata
from canal.annotation.query import given_cells
from canal.annotation.records import Log, Record, genuine, key_of, read_log
from canal.annotation.summary import Summary
from canal.app.models import FoundModel, find_model, project_here
from canal.app.origins import Origin, cause_of, now, readable
from canal.app.project import Project
from canal.core.digests import canonical_json
from canal.core.errors import LOG, CanalError, DataError, Doubt, RegistryError, tell
from canal.core.files import append_line, scratch_folder
from canal.core.progress import doing
from canal.io.addresses import Address, has_wildcards
from canal.io.locations import Location, shown_as
from canal.io.locations import location as location
from canal.registry.ledger.ledger_rules import CHAMPION
from canal.registry.manifest.version_folder import read_key
from canal.registry.store.database import Version
from canal.registry.store.store import Store

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

Notice = Callable[[str], None]


def record_logger(project: Project, notice: Notice) -> Callable[[str], None]:
    """Return a function that appends a record to the project's log of annotations.

    Where the log cannot be written, as in a read-only folder, a notice says so; the labelled file still holds
    the record.
    """
    path = project.layout.annotations

    def log(record: str) -> None:
        try:
            with project.store.lock("annotations"):
                append_line(path, record)
        except (OSError, RegistryError) as error:
            notice(
                f"{path} cannot be written ({cause_of(error)}): the labelled file holds its record, but "
                "`canal impact` will not list the file"
            )

    return log


def annotate(
    adata: "AnnData | pd.DataFrame | str | Path",
    model: str | Path | None = None,
    root: Path | None = None,
    *,
    write: bool = False,
    options: Options | None = None,
) -> "pd.DataFrame":
    """Return the labels of an AnnData's cells, one row a cell, in its order.

    X, layers, var and the order of cells are never changed; without ``write`` nothing is. What makes labels
    less certain is a `UserWarning`; which model labels, and what a table was read as, goes to the logger
    ``canal``, level ``INFO``.

    Parameters
    ----------
    adata : AnnData, pandas.DataFrame, MuData, str or Path
        Cells with counts or log-normalised values in X, or in ``options.layer``; or such values as a table of
        cells by genes; or path or address of a file or folder that `canal annotate` reads. Of MuData the
        modality with expression is labelled, the only one or ``rna``.
    model : str or Path, optional
        A file of `canal export`, the name of a model on the shelf (`canal models`), or, in a project, number
        or alias of a version, such as ``"champion"``; see `canal.app.models.find_model`.
    root : Path, optional
        The project folder; by default the working directory, which need not be a project.
    write : bool
        Whether the columns are also written into ``adata.obs``, the record into ``adata.uns["canal"]`` (a
        text; `canal.record` gives it as a dict), a colour for each type into
        ``adata.uns["canal_cell_type_colors"]`` and, where they were asked for, all probabilities into
        ``adata.obsm["canal_probabilities"]`` and the model's embedding into ``adata.obsm["X_canal"]``;
        ``options.key_added`` takes the place of ``canal``.
    options : Options, optional
        How the AnnData is read; see `canal.annotation.options.Options`.

    Returns
    -------
    pandas.DataFrame
        The columns; ``attrs["canal"]`` is the record, a dict.

    Raises
    ------
    CanalError
        If there is no such version, or the cells cannot be labelled; with ``write`` also if there is no
        AnnData to write into, or columns under the key are there that canal did not write.
    """
    cells, options = given_cells(adata, write), options or Options()
    if write and not isinstance(cells, Path | Address):
        check_free_adata(cells, options.key_added)
    notices: list[str] = []
    found = find_model(model, root, options.effort, notices.append)
    annotator = found.load()
    for notice in notices:
        if isinstance(notice, Doubt):
            warnings.warn(notice, stacklevel=3)  # at its caller, behind what names missing packages
        else:
            LOG.info(notice)
    options = replace(options, model_name=found.provenance, origin={"time": now()})
    if isinstance(cells, Path | Address):
        with Origin(cells) as input_file:
            return annotate_path(annotator, cells, replace(options, origin=input_file), tell)
    table = annotate_adata(annotator, cells, options, tell)
    if write:
        Places.of(table, canonical_json(table.attrs["canal"])).write_into(cells)
    return table


def into_folder(sources: Sequence[Location], output: Location) -> bool:
    """Return whether labels go into a folder: of several inputs, or at an address of no file's name."""
    if len(sources) > 1 or any(isinstance(one, Address) and has_wildcards(one) for one in sources):
        return True
    return isinstance(output, Address) and output.suffix.lower() not in (*TABLES, ".h5ad", ".zarr")


def annotate_file(
    source: Location,
    target: Location,
    options: Options,
    model: str | None,
    callbacks: Callbacks,
    root: Path | None = None,
) -> Summary:
    """Label the cells of a file into a new one, on record; see `canal.annotation.annotate`.

    ``model`` is as in `canal.app.models.find_model`. The project, where there is one, logs the record, too,
    wherever the model comes from. What lies at an address is copied into the folder of temporary files first;
    an output at an address is made there, and put once it is whole.
    """
    if options.resume and (away := next((one for one in (source, target) if isinstance(one, Address)), None)):
        raise DataError(
            f"--resume goes on with files on a disk, and {away} is none: leave it out, or label into a "
            "folder (--partition-cells), where what is done is kept"
        )
    found = find_model(model, root, options.effort, callbacks.notice)
    with ExitStack() as stack:
        if isinstance(source, Address):
            folder = stack.enter_context(scratch_folder("cells"))
            with doing(f"fetching {source}"):
                copy = source.fetch(folder)
            stack.enter_context(shown_as(copy, source))
            source = copy
        if isinstance(target, Address):
            return _annotate_to(found, source, target, options, callbacks, root)
        return annotate_by(found, source, target, options, callbacks, root)


def _annotate_to(
    found: FoundModel,
    source: Path,
    target: Address,
    options: Options,
    callbacks: Callbacks,
    root: Path | None,
) -> Summary:
    """Label the cells of a file into an object; its record is logged once it is there."""
    if target.suffix.lower() not in (*TABLES, ".h5ad"):
        raise DataError(
            f"{target}: one object is written at once, .parquet, .csv or .h5ad: give such a name, or label "
            "into a folder (--partition-cells)"
        )
    if target.is_file() and not options.overwrite:
        raise DataError(f"{target} exists already: remove it, give another output, or use --overwrite")
    records: list[str] = []
    log = _log_for(found, target, callbacks, root)
    with scratch_folder("labels") as folder:
        written = folder / target.name
        told = replace(
            callbacks,
            notice=lambda text: callbacks.notice(text.replace(str(written), str(target))),
            on_record=records.append,
        )
        with shown_as(written, target):
            summary = annotate_by(found, source, written, options, told, root)
        target.put(written)
    if log is not None:
        for record in records:
            log(record)
    return summary


def annotate_by(
    found: FoundModel,
    source: Path,
    target: Path,
    options: Options,
    callbacks: Callbacks,
    root: Path | None = None,
) -> Summary:
    """Label the cells of a file by a model that was found already; see `annotate_file`."""
    check_target(source, target, options.overwrite)
    output = Output.find(source, target, options.only_obs)  # raises before the input is read for its digest
    with Origin(source) as input_file:
        options = replace(options, model_name=found.provenance, origin=input_file)
        if callbacks.on_record is None:
            callbacks = replace(callbacks, on_record=_log_for(found, target, callbacks, root))
        summary = annotate_h5ad(found.load(), source, output, options, callbacks)
    callbacks.notice(f"{target}: labelled by {found.name}")
    return summary


def _log_for(
    found: FoundModel, target: Location, callbacks: Callbacks, root: Path | None
) -> Callable[[str], None] | None:
    """Return what takes the record of an output: the project's log, where there is a project."""
    if (project := found.project or _logging_project(root, callbacks.notice)) is not None:
        return record_logger(project, callbacks.notice)
    if target.suffix.lower() == CSV:
        callbacks.notice(
            f"{target} cannot hold its record, and no project keeps it: `canal who` will not know the "
            "file; h5ad, zarr and Parquet hold theirs"
        )
    return None


def _logging_project(root: Path | None, notice: Notice) -> Project | None:
    """Return the project whose log takes the record of a model from elsewhere; None where there is none."""
    try:
        return project_here(root)
    except CanalError as error:
        notice(f"no project's log takes the record ({error})")
        return None


def use_machine(threads: int | None, options: Options, notice: Notice) -> None:
    """Limit the cores that annotation uses, and warn where the chosen precision is slow on this machine."""
    if threads is not None:
        import numpy  # noqa: F401 - only libraries that are loaded can be limited

        os.environ["OMP_NUM_THREADS"] = str(threads)  # torch reads it when it is imported
        threadpool_limits(threads)
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(threads)
    if options.dtype == "float32":
        return
    from canal.model.compute import bfloat16_speed, find_device

    if (speed := bfloat16_speed(find_device(options.device))) < 1:
        notice(
            f"bfloat16 is {1 / speed:.0f} times slower than float32 on this machine, which has no "
            "instructions for it; leave --dtype out"
        )


Document = dict[str, Any]


def who(file: Path, root: Path | None = None, key: str | None = None) -> Document:
    """Return the annotation record of a labelled file, checked against the file and the registry.

    ``record`` is from the file, or for a CSV file from the project's log. ``genuine`` is whether the record
    is unedited (None: its format has no id); ``labels`` whether the labels agree with the record's counts.
    ``registry`` is the registry's view of the version, or None, and then ``not_checked`` says why. Where a
    file is labelled under several keys, ``key`` chooses (by default ``canal``); ``others`` are the rest of
    them.

    Raises
    ------
    DataError
        If the file cannot be read, or `canal annotate` did not write it.
    """
    project: Project | None = None
    log: Log | None = None
    why_not = None
    try:
        project = Project.open(root)
    except CanalError as error:
        why_not = str(error)
    else:
        log = read_log(project.layout.annotations)
    labels = read_back(file, log, key)
    why = labels.mismatch()
    document: Document = {
        "file": readable(str(file)),
        "record": labels.record,
        "key_added": key_of(labels.record),
        "others": list(labels.others),
        "genuine": genuine(labels.record),
        "labels": {"as_written": not why, "n_cells": labels.n_cells, "why": why},
        "registry": None,
        "not_checked": why_not,
    }
    if project is None or log is None:
        return document
    try:
        document["registry"] = _registry_view(project, labels.record, log)
    except CanalError as error:
        document["not_checked"] = str(error)
    return document


def _merged(store: Store, version: Version, versions: Sequence[Version]) -> Document:
    """Return the two parents of a merged version, by number, and what its sums equal; nothing for others."""
    try:
        key = read_key(store.artifacts(version))
    except CanalError:  # its files are gone; the rest is still told
        return {}
    if (merged := key.get("merged")) is None:
        return {}
    numbers = {one.key: one.number for one in versions}
    parents = [numbers.get(one, one[:12]) for one in (key["parent"], merged["other"])]
    return {"merged": {"of": parents, "equals": merged["equals"]}}


def _registry_view(project: Project, record: Record, log: Log) -> Document:
    """Return the registry's view of the version that a record names by its key."""
    store, model = project.store, record["model"]
    versions = [one for one in store.versions() if one.ready]
    version = next((one for one in versions if one.key and one.key == model.get("key")), None)
    champion = next((one.number for one in versions if CHAMPION in one.aliases), None)
    return {
        "model": store.names.model,
        "known": version is not None,
        "version": version.number if version else None,
        "same_number": version is not None and version.number == model.get("version"),
        "same_record": version.record == model["record"] if version and "record" in model else None,
        "aliases": list(version.aliases) if version else [],
        "retired": version.retired if version else None,
        "erased": version.erased if version else None,
        "champion": champion,
        "logged": any(one.get("id") == record.get("id") for one in log.records) if "id" in record else None,
        **(_merged(store, version, versions) if version else {}),
    }
