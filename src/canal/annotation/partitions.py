"""Label many files in partitions: planned once, labelled by any number of processes, put together at last.

The output folder holds ``_plan.json`` (what is labelled by what, cut into partitions of cells), a Parquet
file for each partition below a folder for each input and, once all are there, ``_records.json`` (an
annotation record for each input) and ``_index.parquet``. A partition's file is written atomically, under a
name that its number gives, with the digest of the plan: however often it is labelled, by whichever process,
each cell has one row. Readers of Parquet data sets pass over names that begin with ``_``. Inputs and folder
lie on a disk or in an object store, where a partition is read in place: see `canal.io.formats`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from itertools import chain, count, groupby
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet

from canal.annotation.annotate import decisive_options, label_block, make_annotation_record
from canal.annotation.clusters import ComputeOptions, computing
from canal.annotation.columns import KEY, ONTOLOGY_ID, join_blocks
from canal.annotation.drift import DEPTH
from canal.annotation.options import Options
from canal.annotation.output import RECORDS
from canal.annotation.query import query_file
from canal.annotation.reading import Block, reading_for
from canal.annotation.summary import Depth, Likeness, summarise
from canal.core.digests import canonical_json, json_digest
from canal.core.errors import DataError
from canal.core.files import parse_json, write_json
from canal.io import locations
from canal.io.addresses import Address
from canal.io.formats import Fingerprint, open_cells
from canal.io.locations import Location, bytes_at, bytes_below, location, new_at, resolved
from canal.io.writer import writing

if TYPE_CHECKING:
    from canal.model.load import CellAnnotator

PLAN, INDEX = "_plan.json", "_index.parquet"
FORMAT = 1
PARTITION_CELLS = 50_000

_META = b"canal.partition"
_SHOWN = 8
"""Partitions that a message names."""

Document = dict[str, Any]


@dataclass(frozen=True)
class Partition:
    """Some cells of an input, one after the other.

    Attributes
    ----------
    number : int
        Among all partitions of the plan.
    source : Path or Address
        The input.
    file : str
        The partition's own file, relative to the output folder.
    start, stop : int
        The first of its cells, and the first one after it.
    """

    number: int
    source: Location
    file: str
    start: int
    stop: int


@dataclass(frozen=True)
class Plan:
    """What is labelled into an output folder.

    Attributes
    ----------
    folder : Path or Address
    document : dict
        ``inputs`` (path, folder, bytes, time of change, cells and, of objects, ETag of each), ``cells`` of a
        partition, the ``model``, the digest of its ``answers``, the ``options`` that determine labels.
    """

    folder: Location
    document: Document

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the document: each partition's file names it."""
        return json_digest(self.document)

    @cached_property
    def partitions(self) -> tuple[Partition, ...]:
        """All partitions, in the order of inputs and cells."""
        made: list[Partition] = []
        size = int(self.document["cells"])
        for one in self.document["inputs"]:
            for index, start in enumerate(range(0, one["n_cells"], size)):
                file = f"{one['folder']}/part-{index:06d}.parquet"
                stop = min(start + size, one["n_cells"])
                made.append(Partition(len(made), location(one["path"]), file, start, stop))
        return tuple(made)

    @property
    def n_cells(self) -> int:
        """Cells of all inputs."""
        return sum(int(one["n_cells"]) for one in self.document["inputs"])

    def missing(self) -> list[Partition]:
        """Return the partitions without a file of this plan."""
        rows = locations.read_footers(self.folder, [one.file for one in self.partitions])
        return [one for one in self.partitions if not self._is_of(one, next(rows))]

    def is_done(self, partition: Partition) -> bool:
        """Whether a partition's file is there, of this plan and with all of its rows."""
        return self._is_of(partition, next(locations.read_footers(self.folder, [partition.file])))

    def _is_of(self, partition: Partition, rows: Any) -> bool:
        try:
            about = parse_json((rows.metadata or {}).get(_META, b"{}")) if rows else {}
        except ValueError:
            return False
        expected = {"plan": self.digest, "start": partition.start, "stop": partition.stop}
        said = {name: about.get(name) for name in expected}
        return said == expected and int(rows.num_rows) == partition.stop - partition.start


def shared_plan(
    annotator: CellAnnotator,
    sources: Sequence[Location],
    folder: Location,
    options: Options,
    cells: int,
    given: Document,
) -> Plan:
    """Return the plan of an output folder: that of its `_plan.json`, which the first process writes.

    Parameters
    ----------
    annotator
        The model.
    sources
        The inputs, in any order.
    folder
        The output folder; what it holds of the same plan is kept.
    options
        How cells are read and labelled. Labels under another plan are replaced where it says ``overwrite``.
    cells
        Cells of a partition.
    given
        JSON values that another process needs to label by the plan, too.

    Raises
    ------
    DataError
        If an input cannot be read or is named twice, labels are asked for that need all cells of a file at
        once, or the folder holds something else, or labels under another plan.
    """
    _require_partitionable(options)
    document = {
        "format": FORMAT,
        "inputs": list(_inputs(annotator, sources)),
        "cells": cells,
        "model": dict(options.model_name),
        "answers": annotator.digest(),
        "options": decisive_options(options),
        "given": given,
    }
    plan = Plan(folder, parse_json(canonical_json(document)))
    path = folder / PLAN
    if not path.is_file():
        _require_ours(folder)
        with writing(folder), suppress(FileExistsError), locations.first_at(path) as temporary:
            write_json(temporary, plan.document)  # unless another process was first
    found = parse_json(bytes_at(path))
    if found == plan.document:
        return plan
    if not options.overwrite:
        differ = [name for name in plan.document if found.get(name) != plan.document[name]]
        raise DataError(
            f"{folder} holds labels under another plan (it differs in {', '.join(differ)}): name the same "
            "inputs, model and options, another folder, or --overwrite once to start again"
        )
    with writing(folder), new_at(path) as temporary:
        write_json(temporary, plan.document)
    return plan


def _require_partitionable(options: Options) -> None:
    """Raise for labels that a partition cannot have."""
    if options.vote is not None:
        raise DataError(
            "--vote needs all cells of a file at once, which no partition has: leave it out, or label each "
            "file by itself"
        )
    if options.key_added != KEY:
        raise DataError(
            "--key-added names labels beside others in a file; partitions hold labels alone: leave it out"
        )


def _require_ours(folder: Location) -> None:
    """Raise unless a folder is new, empty, or one in which another process is about to write its plan."""
    if isinstance(folder, Address):
        strange = folder.names()
        if not strange or PLAN in strange:
            return
    elif folder.is_dir():
        strange = [one.name for one in folder.iterdir() if not one.name.startswith(".")]
        if not strange or (folder / PLAN).is_file():
            return
    elif not folder.exists():
        return
    raise DataError(f"{folder} is there, and not made by canal: give an empty or a new folder with -o")


def _inputs(annotator: CellAnnotator, sources: Sequence[Location]) -> Iterator[Document]:
    """Yield the entry of each input, paths before addresses, with a folder of its own."""
    named = [resolved(source) for source in sources]
    if twice := [one for one in sources if named.count(resolved(one)) > 1]:
        raise DataError(f"{twice[0]} is named twice: name each input once")
    taken: set[str] = set()
    paths, addresses = ([one for one in named if isinstance(one, kind)] for kind in (Path, Address))
    for source in (*sorted(paths), *sorted(addresses)):
        with open_cells(source, annotator.genes) as file:
            n_cells = file.n_cells
        name = (source.name.rpartition(".")[0] or source.name).lstrip("._") or "cells"
        folder = next(one for one in chain([name], (f"{name}-{n}" for n in count(2))) if one not in taken)
        taken.add(folder)
        yield {"path": str(source), "folder": folder, "n_cells": n_cells} | _seen(source)


def _seen(source: Location) -> Document:
    """Return size, time of the last change and, of objects, ETag: the same on every machine."""
    files = Fingerprint.of(source).files
    seen: Document = {"bytes": sum(one[2] for one in files), "changed": max(one[3] for one in files)}
    if isinstance(source, Address):
        seen["etag"] = files[0][1] if len(files) == 1 else json_digest([one[:2] for one in files])
    return seen


def label_partitions(
    plan: Plan, partitions: Sequence[Partition], annotator: CellAnnotator, options: Options
) -> Iterator[int]:
    """Label the cells of partitions, each into its file, and yield how many there are of each.

    An input is opened once for those of its partitions that stand one after the other.

    Raises
    ------
    DataError
        If an input has changed since it was planned, or its cells cannot be labelled; of that partition
        nothing is written.
    """
    entries = {one["path"]: one for one in plan.document["inputs"]}
    compute = ComputeOptions(options.chunk_cells, options.device, options.dtype)
    for source, own in groupby(partitions, key=attrgetter("source")):
        entry = entries[str(source)]
        _require_unchanged(source, entry)
        with open_cells(source, annotator.genes) as file, computing(annotator, compute):
            query = query_file(file, options.layer, options.gene_column)
            reading, restricted = reading_for(annotator, query, options)
            names = file.obs_names()
            for one in own:
                likeness, depth, frames = Likeness(), Depth(reading.coverage.found), []
                for block in _until(reading.blocks(options.chunk_cells, one.start), one.stop):
                    frames.append(label_block(restricted, annotator, block, options, likeness))
                    depth.add(block)
                table = join_blocks(frames, annotator.ontology)
                table.index = names[one.start : one.stop]
                _require_unchanged(source, entry)
                _write(plan, one, table, likeness, depth)
                yield len(table)


def _write(plan: Plan, partition: Partition, table: pd.DataFrame, likeness: Likeness, depth: Depth) -> None:
    about = {
        "plan": plan.digest,
        "start": partition.start,
        "stop": partition.stop,
        "likeness": [likeness.n_cells, likeness.n_like],
        "distributions": depth.to_json(),
    }
    arrow = pyarrow.Table.from_pandas(table.rename_axis(index="cell"))
    metadata = {**(arrow.schema.metadata or {}), _META: canonical_json(about).encode()}
    target = plan.folder / partition.file
    with writing(target), new_at(target) as temporary:
        pyarrow.parquet.write_table(arrow.replace_schema_metadata(metadata), temporary)


def _require_unchanged(source: Location, entry: Document) -> None:
    if any(entry.get(name) != value for name, value in _seen(source).items()):
        raise DataError(
            f"{source} has changed since it was planned, and its labels would be of two files: --overwrite "
            "starts again"
        )


def _until(blocks: Iterator[Block], stop: int) -> Iterator[Block]:
    """Yield blocks up to cell ``stop``."""
    for block in blocks:
        if (left := stop - block.start) <= 0:
            return
        totals = None if block.totals is None else block.totals[:left]
        yield Block(block.start, block.expression[:left], block.empty[:left], totals)


def collect(
    plan: Plan, annotator: CellAnnotator, options: Options, origins: Mapping[str, Any]
) -> list[Document]:
    """Write the index and a record for each input of a plan whose partitions are all there; return records.

    Parameters
    ----------
    options
        As for the partitions.
    origins
        By path of an input its time and digest, for the record; see `canal.app.origins.origin`.

    Raises
    ------
    DataError
        If partitions are missing, or are not of this plan.
    """
    if missing := plan.missing():
        numbers = ", ".join(str(one.number) for one in missing[:_SHOWN])
        more = f" and {len(missing) - _SHOWN:,} more" if len(missing) > _SHOWN else ""
        raise DataError(
            f"{len(missing):,} of {len(plan.partitions):,} partitions are missing ({numbers}{more}, counted "
            "from 0): `canal annotate` of the same files into this folder without --shard labels just these, "
            "and puts all together; or run the shards that have not ended, then collect again"
        )
    rows: list[Document] = []
    records: list[Document] = []
    for entry in plan.document["inputs"]:
        source = location(entry["path"])
        own = [one for one in plan.partitions if one.source == source]
        _require_unchanged(source, entry)
        table, likeness, depth, digests = _together(plan, own, annotator)
        of_input = replace(options, origin=origins[entry["path"]])
        with open_cells(source, annotator.genes) as file:
            query = query_file(file, options.layer, options.gene_column)
            reading, _ = reading_for(annotator, query, of_input)
        study = likeness.to_json(annotator.about())
        summary = summarise(annotator, table, reading, of_input, (study, depth))
        record = make_annotation_record(annotator, of_input, summary, plan.folder.name)
        records.append({"folder": entry["folder"], "record": record, "summary": summary.to_json()})
        rows += [
            {
                "input": entry["path"], "file": one.file, "start": one.start, "stop": one.stop,
                "sha256": digest, "record": record["id"],
            }
            for one, digest in zip(own, digests, strict=True)
        ]  # fmt: skip
    with writing(plan.folder):
        with new_at(plan.folder / RECORDS) as temporary:
            write_json(temporary, {"plan": plan.digest, "records": [one["record"] for one in records]})
        with new_at(plan.folder / INDEX) as temporary:
            pd.DataFrame(rows).to_parquet(temporary, index=False)
    return records


def _together(
    plan: Plan, partitions: Sequence[Partition], annotator: CellAnnotator
) -> tuple[pd.DataFrame, Likeness, Document, list[str]]:
    """Return the labels of an input's cells, how many resemble the learned ones, how deep they are, digests.

    Medians of partitions say nothing of the median of all: it is on record where there is one partition.
    """
    tables, likeness, depths, digests = [], Likeness(), [], []
    for content in bytes_below(plan.folder, [one.file for one in partitions]):
        digests.append(sha256(content).hexdigest())
        arrow = pyarrow.parquet.read_table(pyarrow.BufferReader(content), partitioning=None)
        about = parse_json(arrow.schema.metadata[_META])
        likeness.n_cells += about["likeness"][0]
        likeness.n_like += about["likeness"][1]
        depths.append(about["distributions"])
        tables.append(arrow.to_pandas())
    table = pd.concat(tables).drop(columns=ONTOLOGY_ID, errors="ignore")
    summed = np.sum([one[DEPTH] for one in depths], axis=0).tolist()
    depth = depths[0] if len(depths) == 1 else {DEPTH: summed}
    return join_blocks([table], annotator.ontology), likeness, depth, digests
