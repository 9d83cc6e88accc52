"""Labelling files of 1,000 to 1,000,000 cells by 30,000 genes: cells a second and the largest memory.

    python benchmarks/annotate.py                                # 1,000, 10,000 and 100,000 cells, CSR
    python benchmarks/annotate.py --cells 1000000 --form csc     # one size, compressed by gene
    python benchmarks/annotate.py --only-obs                     # the labels alone instead of a copy
    python benchmarks/annotate.py --only-obs --preset linear    # and what h5py takes to read the matrix alone
    python benchmarks/annotate.py --root . --beside celltypist scanvi   # this project's version beside rivals
    python benchmarks/annotate.py --root . --effort fast --only-obs --cells 1000000

The files are generated block by block, so that the generator stays small. Each is labelled by `annotate_h5ad`
in a process of its own, whose largest resident memory (ru_maxrss: files mapped into memory count, too) the
kernel tells. Weights are random, 300 panel genes: speed and memory do not depend on them. With ``--root`` the
project's champion, or else newest version, answers, and the genes are its own and others. Before and after,
h5py reads the matrix from its beginning to its end and does nothing with it, as a measure of the machine.

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

from canal.app.project import Project
from canal.model.annotator import Annotator, Prediction
from canal.model.load import CellAnnotator

GENES, PANEL = 30_000, 300
RIVALS = ("celltypist", "scanvi")
_BLOCK = 2000
_READ = 1 << 22
"""Values of an array that the plain read takes at a time."""

Row = dict[str, Any]


def generate(
    path: Path,
    cells: int,
    per_cell: int,
    form: str,
    genes: Sequence[str] = (),
    compression: str | None = None,
) -> None:
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
        _write_values(group, cells, per_cell, form, compression)


def _write_names(file: h5py.File, key: str, names: Sequence[str]) -> None:
    import pandas as pd
    from anndata.io import write_elem

    write_elem(file, key, pd.DataFrame(index=pd.Index(names, dtype=object)))


def _write_values(group: h5py.Group, cells: int, per_cell: int, form: str, compression: str | None) -> None:
    """Write the three arrays, a block of the major axis at a time.

    The minor indices of a row are one of every few, so that they are sorted and differ without sorting.
    """
    major, minor = (cells, GENES) if form == "csr" else (GENES, cells)
    each = per_cell if form == "csr" else max(1, per_cell * cells // GENES)
    stride, random = minor // each, np.random.default_rng(0)
    step, chunk = max(1, _BLOCK * per_cell // each), min(1 << 16, major * each)
    how: dict[str, Any] = {"chunks": (chunk,), "compression": compression}
    data = group.create_dataset("data", (major * each,), np.float32, **how)
    indices = group.create_dataset("indices", (major * each,), np.int32, **how)
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

    from canal.annotation.annotate import annotate_h5ad
    from canal.annotation.options import Callbacks, Options

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    annotator = answering(arguments)
    at_rest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    options = Options(chunk_cells=arguments.chunk, effort=arguments.effort)
    began = time.perf_counter()
    annotate_h5ad(annotator, source, target, options, Callbacks(lambda text: _say(f"  {text}")))
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    answer.put({"seconds": seconds, "at_rest_gib": at_rest, "peak_gib": peak})


def answering(arguments: argparse.Namespace) -> CellAnnotator:
    """Return a project's version, or random weights."""
    if arguments.root is None:
        from engine import annotator_of

        return linear(PANEL) if arguments.preset == "linear" else annotator_of(arguments.preset, PANEL)
    from canal.app.models import load_annotator, serving_version

    project = Project.open(arguments.root)
    return load_annotator(project, serving_version(project, arguments.number), arguments.effort)


class Linear(Annotator):
    """An annotator whose answer is one product: what all but the network takes."""

    def predict(self, expression: np.ndarray, batch_size: int = 0) -> Prediction:
        """Return types and confidence of cells; none is novel."""
        weights = np.random.default_rng(0).normal(size=(len(self.genes), len(self.labels)))
        logits = expression @ weights.astype(np.float32)
        probabilities, best = self.probabilities(logits), logits.argmax(axis=1)
        none = np.zeros(len(best))
        confidence = probabilities[np.arange(len(best)), best]
        names = [self.labels[i] for i in best]
        return Prediction(names, confidence, none, none.astype(bool), probabilities, logits)


def linear(panel: int) -> Annotator:
    """Return an annotator of random weights and 16 types without a network in use."""
    from engine import annotator_of

    network = annotator_of("tiny", panel)
    return Linear(network.network, tuple(f"TYPE{i}" for i in range(16)), network.genes)


def plain_read(source: Path) -> float:
    """Return the seconds that h5py takes to read a sparse matrix in order, as it is opened by default."""
    began = time.perf_counter()
    with h5py.File(source) as file:
        group = file["X"]
        group["indptr"][:]
        for start in range(0, group["data"].shape[0], _READ):
            for name in ("data", "indices"):
                group[name][start : start + _READ]
    return time.perf_counter() - began


def measure(cells: int, folder: Path, arguments: argparse.Namespace, contest: Contest) -> list[Row]:
    """Return what labelling ``cells`` cells took canal, and each rival."""
    source = folder / "cells.h5ad"
    target = folder / ("out.parquet" if arguments.only_obs else "out.h5ad")
    _say(f"generating {cells:,} cells x {GENES:,} genes, {arguments.form}")
    compression = "gzip" if arguments.compressed else None
    generate(source, cells, arguments.expressed, arguments.form, contest.genes, compression)
    plain = [plain_read(source)]
    context = multiprocessing.get_context("spawn")
    answer: Queue[Any] = context.Queue()
    work = context.Process(target=label, args=(source, target, arguments, answer))
    work.start()
    work.join()
    if work.exitcode:
        raise SystemExit(f"labelling {cells:,} cells ended with exit code {work.exitcode}")
    about = {"cells": cells, "form": arguments.form, "file_gib": source.stat().st_size / 2**30}
    plain.append(plain_read(source))
    found = answer.get()
    read = {"plain_read_seconds": plain, "times_the_read": found["seconds"] / (sum(plain) / len(plain))}
    rows = [{**about, "who": "canal", **found, **read, **contest.canal}]
    target.unlink()
    rows += [{**about, **rival} for rival in contest.rivals(source)]
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
    if "plain_read_seconds" in row:
        before, after = row["plain_read_seconds"]
        what += (
            f"; {row['times_the_read']:.2f} times as long as h5py reads the matrix, which took "
            f"{before:,.1f} s before and {after:,.1f} s after"
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
    parser.add_argument("--preset", default="small", help="linear: no network at all, one product")
    parser.add_argument("--compressed", action="store_true", help="by gzip, as anndata does it when asked")
    parser.add_argument("--threads", type=int, help="processor cores, by default all")
    parser.add_argument("--only-obs", action="store_true", help="write the labels alone")
    parser.add_argument("--folder", type=Path, help="for the files: 12 GB a million cells, twice for copies")
    parser.add_argument("--root", type=Path, help="project whose version answers; by default random weights")
    parser.add_argument("--number", help="the version's number or alias; by default the one that serves")
    parser.add_argument("--effort", choices=("full", "fast"), default="full", help="fast needs --root")
    parser.add_argument("--beside", nargs="*", default=[], choices=RIVALS, help="needs --root")
    parser.add_argument(
        "--cache", type=Path, default=Path(".canal/rivals"), help="where rivals are installed"
    )
    parser.add_argument("--seconds", type=float, default=1200, help="that a rival may take")
    parser.add_argument("--memory", type=float, default=16, help="GiB that a rival may take")
    arguments = parser.parse_args()
    if arguments.effort == "fast" and arguments.root is None:
        parser.error("--effort fast needs --root: random weights have no sums")
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
