"""`canal annotate` of many files, and `canal collect`: partitions by this process, by shards or by Dask.

What is labelled by what stands in the output folder's plan, so that a process on another machine needs that
folder, the inputs and the model alone. Inputs and folder are paths, or addresses in an object store.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from canal.annotation.naming import Naming
from canal.annotation.options import Callbacks, Options
from canal.annotation.output import TABLES
from canal.annotation.partitions import (
    PARTITION_CELLS,
    PLAN,
    Partition,
    Plan,
    collect,
    label_partitions,
    shared_plan,
)
from canal.app.annotating import record_logger
from canal.app.engines import dask_client, distributed
from canal.app.models import FoundModel, find_model, find_model_of, project_here
from canal.app.origins import Origin
from canal.core.digests import canonical_json
from canal.core.errors import CanalError, ConfigError, DataError
from canal.core.files import parse_json
from canal.core.progress import by_cells, count, doing
from canal.io.formats import Fingerprint
from canal.io.locations import Location, bytes_at, location, matching, resolved

if TYPE_CHECKING:
    from canal.model.load import CellAnnotator

Document = dict[str, Any]
Engine = Literal["local", "dask"]

_SHARD = re.compile(r"([1-9][0-9]*)/([1-9][0-9]*)")
_PER_RUN = (
    "overwrite",
    "resume",
    "only_obs",
    "model_name",
    "origin",
    "naming",
    "device",
    "key_added",
    "vote",
)
"""Options that say nothing of labels, or that have a place of their own in the plan."""


@dataclass(frozen=True)
class Spread:
    """How partitions are spread.

    Attributes
    ----------
    engine : str
        local: this process; dask: workers of Dask.
    shard : str or None
        ``i/n``: this process labels the ith of n shares of the partitions, and nothing is collected.
    scheduler : str or None
        Address of a Dask scheduler; by default workers of this machine.
    workers : int or None
        Workers of this machine; by default one for two cores.
    cells : int
        Cells of a partition.
    """

    engine: Engine = "local"
    shard: str | None = None
    scheduler: str | None = None
    workers: int | None = None
    cells: int = PARTITION_CELLS

    def __post_init__(self) -> None:
        if self.engine != "dask" and (self.scheduler or self.workers):
            raise ConfigError("--scheduler and --workers are of Dask: give --engine dask, too")
        if self.engine == "dask" and self.shard:
            raise ConfigError(
                "--shard is a share of another scheduler's job: leave it out with --engine dask"
            )
        if self.scheduler and self.workers:
            raise ConfigError("--workers are of this machine, --scheduler has its own: leave one out")
        _ = self.share

    @property
    def share(self) -> tuple[int, int]:
        """Which share of how many: (0, 1) is everything."""
        if self.shard is None:
            return 0, 1
        found = _SHARD.fullmatch(self.shard)
        if found is None or int(found[1]) > int(found[2]):
            raise ConfigError(
                f"--shard: expected i/n with i from 1 to n, such as 3/8, found {self.shard!r}; in a SLURM "
                "array: --shard $SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"
            )
        return int(found[1]) - 1, int(found[2])


def annotate_files(
    sources: Sequence[Location],
    folder: Location,
    options: Options,
    model: str | None,
    callbacks: Callbacks,
    spread: Spread,
    root: Path | None = None,
) -> Document:
    """Label the cells of many files into a folder, and put the labels together unless it is a shard.

    What an earlier run of the same plan has labelled is kept.

    Parameters
    ----------
    sources
        Files or folders of cells, or addresses of such, also with wildcards.
    folder
        The output folder, or its address; see `canal.annotation.partitions`.
    options, callbacks
        As for `canal.app.annotating.annotate_file`.
    model
        As `canal.app.models.find_model` takes it.
    spread
        Which partitions this process labels, and with what.
    root
        The project.

    Returns
    -------
    dict
        ``folder``, ``partitions``, ``labelled`` (by this run), ``missing`` and, once collected, ``inputs``:
        the summary of each by its folder.

    Raises
    ------
    CanalError
        If there is no such model, an input cannot be labelled, or the folder holds other labels.
    """
    if folder.suffix.lower() in (*TABLES, ".h5ad", ".zarr"):
        raise DataError(
            f"{folder}: labels of several files, or of a share, go into a folder, and this is the name of a "
            f"file: give a folder's, such as {str(folder).removesuffix(folder.suffix)}"
        )
    found = find_model(model, root, options.effort, callbacks.notice)
    annotator = found.load()
    given = _given(options, model, root)
    options = replace(options, model_name=found.provenance)
    with doing("planning partitions"):
        plan = shared_plan(annotator, matching(sources), folder, options, spread.cells, given)
        mine, of = spread.share
        waiting = [one for one in plan.missing() if one.number % of == mine]
    done = _Progress(plan, waiting, of, callbacks)
    if spread.engine == "dask" and waiting:
        labelled = _by_dask(plan, waiting, spread, root)
    else:
        labelled = label_partitions(plan, waiting, annotator, options)
    for n_cells in labelled:
        done.add(n_cells)
    result = {"folder": str(folder), "partitions": len(plan.partitions), "labelled": len(waiting)}
    if spread.shard is not None:
        return result | {"missing": len(plan.missing())}
    return result | {"missing": 0, "inputs": _collected(plan, found, annotator, options, callbacks, root)}


def collect_files(
    folder: Location, model: str | None, callbacks: Callbacks, root: Path | None = None
) -> Document:
    """Put together the labels of a folder whose shards are done: index and annotation records.

    Raises
    ------
    DataError
        If the folder is none of `canal annotate`, or partitions are missing.
    """
    plan, options, found = _planned(folder, model, root, callbacks.notice)
    inputs = _collected(plan, found, found.load(), options, callbacks, root)
    partitions = len(plan.partitions)
    return {"folder": str(folder), "partitions": partitions, "labelled": 0, "missing": 0, "inputs": inputs}


def _given(options: Options, model: str | None, root: Path | None) -> Document:
    """Return what another process needs to label by this plan, beside what determines labels."""
    naming = {
        name: str(Path(value).resolve()) if name != "species" else value
        for name in ("species", "orthologs", "aliases", "gene_map")
        if (value := getattr(options.naming, name)) is not None
    }
    plain = {one.name: getattr(options, one.name) for one in fields(options) if one.name not in _PER_RUN}
    path = model is not None and Path(model).expanduser().exists()
    return {
        "options": plain,
        "naming": naming,
        "model": str(Path(str(model)).expanduser().resolve()) if path else None,
        "root": None if (project := project_here(root)) is None else str(project.layout.root.resolve()),
    }


def _planned(
    folder: Location, model: str | None, root: Path | None, notice: Callable[[str], None]
) -> tuple[Plan, Options, FoundModel]:
    """Return the plan of a folder, and options and model for it."""
    path = folder / PLAN
    if not path.is_file():
        raise DataError(
            f"{folder} holds no {PLAN}: `canal annotate` of several files, with --shard or with --engine "
            "makes such a folder"
        )
    plan = Plan(folder, parse_json(bytes_at(path)))
    try:
        given = plan.document["given"]
        options = Options(**given["options"], naming=Naming(**given["naming"]))
        about = {"model": plan.document["model"]}
        root = root or (Path(given["root"]) if given["root"] else None)
        model = model or given["model"]
    except (LookupError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is damaged ({error}): label again into another folder") from error
    found = find_model_of(about, model, root, options.effort, notice)
    return plan, replace(options, model_name=found.provenance), found


class _Progress:
    """Cells that are labelled, of those of this share."""

    def __init__(self, plan: Plan, waiting: Sequence[Partition], of: int, callbacks: Callbacks) -> None:
        self._on_cells = callbacks.on_cells or by_cells(callbacks.notice)
        left = sum(one.stop - one.start for one in waiting)
        self._total = plan.n_cells if of == 1 else left
        self._done = self._total - left
        if kept := len(plan.partitions) - len(waiting) if of == 1 else 0:
            callbacks.notice(f"{count(kept, 'partition')} of {len(plan.partitions):,} are labelled already")
        self._on_cells(self._done, self._total)

    def add(self, n_cells: int) -> None:
        """Count the cells of a partition."""
        self._done += n_cells
        self._on_cells(self._done, self._total)


def _collected(
    plan: Plan,
    found: FoundModel,
    annotator: CellAnnotator,
    options: Options,
    callbacks: Callbacks,
    root: Path | None,
) -> Document:
    """Write index and records of a plan, log the records, and return the summaries by folder."""
    with ExitStack() as stack:
        origins = {
            one["path"]: stack.enter_context(Origin(location(one["path"]))) for one in plan.document["inputs"]
        }
        with doing("putting the partitions together"):
            records = collect(plan, annotator, options, origins)
    if (project := found.project or project_here(root)) is not None:
        log = record_logger(project, callbacks.notice)
        for one in records:
            log(canonical_json(one["record"]))
    return {one["folder"]: one["summary"] for one in records}


# Dask: workers label partitions, each with one copy of the model.


def _by_dask(plan: Plan, waiting: Sequence[Partition], spread: Spread, root: Path | None) -> Iterator[int]:
    """Yield the cells of each partition once a worker has labelled it."""
    place = None if root is None else str(root.resolve())
    with dask_client(spread.scheduler, spread.workers) as client:
        futures = [
            client.submit(
                _label, str(resolved(plan.folder)), one.number, place,
                key=f"canal-{plan.digest[:12]}-{one.number}", pure=False,
            )
            for one in waiting
        ]  # fmt: skip
        for future in distributed().as_completed(futures):
            if future.status == "error":
                error = future.exception()
                client.cancel(futures)
                if isinstance(error, CanalError):
                    raise error
                raise DataError(
                    f"a partition could not be labelled ({type(error).__name__}: {str(error)[:200]}): the "
                    "same command labels those that are missing"
                )
            yield future.result()
            future.release()


def _label(folder: str, number: int, root: str | None) -> int:
    """Label a partition in a worker."""
    files = Fingerprint.of(location(folder) / PLAN).files
    plan, options, annotator = _loaded(folder, root, files)
    partition = plan.partitions[number]
    if plan.is_done(partition):
        return partition.stop - partition.start
    return sum(label_partitions(plan, [partition], annotator, options))


@cache
def _loaded(folder: str, root: str | None, _: object) -> tuple[Plan, Options, CellAnnotator]:
    """Return plan, options and model, once a worker and plan."""
    plan, options, found = _planned(
        location(folder), None, None if root is None else Path(root), lambda _: None
    )
    return plan, options, found.load()
