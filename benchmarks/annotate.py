"""Labelling files of 1,000 to 1,000,000 cells by 30,000 genes: cells a second and the largest memory.

    python benchmarks/annotate.py                                # 1,000, 10,000 and 100,000 cells, CSR
    python benchmarks/annotate.py --cells 1000000 --form csc     # one size, compressed by gene
    python benchmarks/annotate.py --only-obs                     # the labels alone instead of a copy
    python benchmarks/annotate.py --root . --beside celltypist scanvi   # this project's version beside rivals

The files are generated block by block, so that the generator stays small. Each is labelled by `annotate_h5ad`
in a process of its own, whose largest resident memory (ru_maxrss: files mapped into memory count, too) the
kernel tells. Weights are random, 300 panel genes: speed and memory do not depend on them. With ``--root`` the
project's champion, or else newest version, answers, and the genes are its own and others.

A rival is installed into an environment of its own, trained on the training cells of the project's stages
(genes that all have), asked about their test cells, and then labels the same generated file, until 20 minutes
or 16 GiB of memory are over: "did not finish" is a result.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.queues import Queue
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import h5py
import numpy as np

from canal.model.annotator import Annotator
from canal.project import Project

GENES, PANEL = 30_000, 300
RIVALS = ("celltypist", "scanvi")
_BLOCK = 2000

Row = dict[str, Any]


def generate(path: Path, cells: int, per_cell: int, form: str, genes: Sequence[str] = ()) -> None:
    """Write an h5ad file of counts, ``per_cell`` genes of each cell expressed, as CSR or CSC.

    The first genes are called as ``genes`` says.
    """
    from anndata.io import write_elem

    with h5py.File(path, "w") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        _write_names(file, "obs", [f"cell{i}" for i in range(cells)])
        _write_names(file, "var", [*genes, *(f"GENE{i}" for i in range(len(genes), GENES))])
        write_elem(file, "uns", {})
        group = file.create_group("X")
        group.attrs.update({"encoding-type": f"{form}_matrix", "encoding-version": "0.1.0"})
        group.attrs["shape"] = np.array([cells, GENES])
        _write_values(group, cells, per_cell, form)


def _write_names(file: h5py.File, key: str, names: Sequence[str]) -> None:
    import pandas as pd
    from anndata.io import write_elem

    write_elem(file, key, pd.DataFrame(index=pd.Index(names, dtype=object)))


def _write_values(group: h5py.Group, cells: int, per_cell: int, form: str) -> None:
    """Write the three arrays, a block of the major axis at a time.

    The minor indices of a row are one of every few, so that they are sorted and differ without sorting.
    """
    major, minor = (cells, GENES) if form == "csr" else (GENES, cells)
    each = per_cell if form == "csr" else max(1, per_cell * cells // GENES)
    stride, random = minor // each, np.random.default_rng(0)
    step, chunk = max(1, _BLOCK * per_cell // each), min(1 << 16, major * each)
    data = group.create_dataset("data", (major * each,), np.float32, chunks=(chunk,))
    indices = group.create_dataset("indices", (major * each,), np.int32, chunks=(chunk,))
    for start in range(0, major, step):
        rows = min(step, major - start)
        shift = random.integers(stride, size=(rows, each))
        at = slice(start * each, (start + rows) * each)
        indices[at] = (np.arange(each) * stride + shift).ravel()
        data[at] = random.geometric(0.6, size=rows * each)
    group["indptr"] = np.arange(major + 1, dtype=np.int64) * each


def label(source: Path, target: Path, arguments: argparse.Namespace, answer: Queue[Any]) -> None:
    """Label a file in a process of its own and answer what it took."""
    import torch

    from canal.annotation.annotate import Options, annotate_h5ad

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    annotator = answering(arguments)
    at_rest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    options, began = Options(chunk_cells=arguments.chunk), time.perf_counter()
    annotate_h5ad(annotator, source, target, options, lambda text: _say(f"  {text}"))
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    answer.put({"seconds": seconds, "at_rest_gib": at_rest, "peak_gib": peak})


def answering(arguments: argparse.Namespace) -> Annotator:
    """Return a project's version, or random weights."""
    if arguments.root is None:
        from engine import annotator_of

        return annotator_of(arguments.preset, PANEL)
    from canal.api import load_annotator, serving_version

    project = Project.open(arguments.root)
    return load_annotator(project, serving_version(project, None))


def measure(cells: int, folder: Path, arguments: argparse.Namespace, contest: Contest) -> list[Row]:
    """Return what labelling ``cells`` cells took canal, and each rival."""
    source = folder / "cells.h5ad"
    target = folder / ("out.parquet" if arguments.only_obs else "out.h5ad")
    _say(f"generating {cells:,} cells x {GENES:,} genes, {arguments.form}")
    generate(source, cells, arguments.expressed, arguments.form, contest.genes)
    context = multiprocessing.get_context("spawn")
    answer: Queue[Any] = context.Queue()
    work = context.Process(target=label, args=(source, target, arguments, answer))
    work.start()
    work.join()
    if work.exitcode:
        raise SystemExit(f"labelling {cells:,} cells ended with exit code {work.exitcode}")
    about = {"cells": cells, "form": arguments.form, "file_gib": source.stat().st_size / 2**30}
    rows = [{**about, "who": "canal", **answer.get(), **contest.canal}]
    target.unlink()
    rows += [{**about, **found} for found in contest.rivals(source)]
    source.unlink()
    return rows


@dataclass(frozen=True, eq=False)
class Contest:
    """What canal and its rivals are asked, and by what names the genes go; nothing without a project."""

    genes: Sequence[str] = ()
    canal: Row = field(default_factory=dict)
    rivals: Callable[[Path], list[Row]] = lambda source: []

    @classmethod
    def of(cls, folder: Path, arguments: argparse.Namespace) -> Contest:
        """Return the contest that the arguments ask for; rivals are installed here."""
        if arguments.root is None:
            return cls()
        from rivals import Arena, Limits, canals, compete, environment, right

        project, annotator = Project.open(arguments.root), answering(arguments)
        arena = Arena.of(project, folder)
        pythons = {name: environment(name, arguments.cache) for name in arguments.beside}
        limits = Limits(arguments.seconds, arguments.memory)

        def all_of_them(source: Path) -> list[Row]:
            return [
                compete(name, python, arena, source, limits, arguments.threads)
                for name, python in pythons.items()
            ]

        genes = list(dict.fromkeys([*annotator.genes, *arena.genes]))
        return cls(genes, right(canals(project, annotator), arena.truth), all_of_them)


def line(row: Row) -> str:
    """Return a measurement in words."""
    what = f"{row['cells']:>9,} cells, {row['form']}, {row['who']}: "
    if "did_not_finish" in row:
        return f"{what}did not finish: {row['did_not_finish']}"
    what += (
        f"{row['cells'] / row['seconds']:,.0f} cells/s, {row['seconds']:,.1f} s; "
        f"memory {row['at_rest_gib']:.2f} GiB before, {row['peak_gib']:.2f} GiB at most"
    )
    if "accuracy" in row:
        what += f"; test cells {row['accuracy']:.1%} right, mean over types {row['balanced']:.1%}"
    return what


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cells", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--form", choices=("csr", "csc"), default="csr")
    parser.add_argument("--expressed", type=int, default=1500, help="genes expressed in a cell")
    parser.add_argument("--chunk", type=int, default=2000, help="cells in memory at a time")
    parser.add_argument("--preset", default="small", help="tiny: what reading and writing alone take")
    parser.add_argument("--threads", type=int, help="processor cores, by default all")
    parser.add_argument("--only-obs", action="store_true", help="write the labels alone")
    parser.add_argument("--folder", type=Path, help="for the files: 12 GB a million cells, twice for copies")
    parser.add_argument("--root", type=Path, help="project whose version answers; by default random weights")
    parser.add_argument("--beside", nargs="*", default=[], choices=RIVALS, help="needs --root")
    parser.add_argument(
        "--cache", type=Path, default=Path(".canal/rivals"), help="where rivals are installed"
    )
    parser.add_argument("--seconds", type=float, default=1200, help="that a rival may take")
    parser.add_argument("--memory", type=float, default=16, help="GiB that a rival may take")
    arguments = parser.parse_args()
    if arguments.beside and arguments.root is None:
        parser.error("--beside needs --root: a rival is trained on a project's cells")
    with TemporaryDirectory(dir=arguments.folder) as scratch:
        contest = Contest.of(Path(scratch), arguments)
        rows = [row for cells in arguments.cells for row in measure(cells, Path(scratch), arguments, contest)]
    for row in rows:
        _say(line(row))
    sys.stdout.write(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
