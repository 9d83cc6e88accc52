"""The streams of `benchmarks/exact.py`, split, their genes chosen, by canal's own code; one draw a seed.

Those of `benchmarks/continual.py`, too: `immune/order-1` … `immune/order-5` are the other orders of its three
studies, on the genes that `immune` has; `immune/pieces` cuts each study's cells into three stages at random,
`immune/types` into three stages of different types each; `synthetic` is drawn from known Gaussians.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import stream
from ruamel.yaml import YAML
from scipy.sparse import csr_matrix

from canal.config.params import Config
from canal.config.yaml_file import parse_config
from canal.continual.bank import choose_probe
from canal.continual.cells import LabelledCells
from canal.core.digests import json_digest
from canal.data.expression import align
from canal.data.panel import choose_panel
from canal.data.prepare import CELLS, PrepareSettings, prepare
from canal.data.prepared import PreparedCells
from canal.data.sources import fetch
from canal.data.split import split_stage
from canal.model.storage import PRESETS

EMBEDDED = "embedded"
STREAMS = ("first", EMBEDDED, "immune", "pancreas")
NEED_DATA = ("immune", "pancreas")
SYNTHETIC = "synthetic"
ORDERS = tuple(f"immune/order-{number}" for number in range(1, 6))
PIECES, TYPES = "immune/pieces", "immune/types"
ALL = (EMBEDDED, "immune", "pancreas", "first", PIECES, TYPES, *ORDERS, SYNTHETIC)
N_PIECES = 3

_GENES, _TYPES, _CELLS = 60, 8, {"train": 240, "validation": 80, "test": 240}
_OF_STAGE = {"one": range(5), "two": range(6), "three": range(2, 7), "four": range(3, 8)}


@dataclass(frozen=True, eq=False)
class StageCells:
    """A stage's cells on the panel of its lineage.

    Attributes
    ----------
    train : LabelledCells
        All training cells, those in reserve, too.
    validation, test : LabelledCells
    missing : tuple of str
        Genes of the panel that the stage's file lacks.
    """

    train: LabelledCells
    validation: LabelledCells
    test: LabelledCells
    missing: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Drawn:
    """A stream under one seed.

    Attributes
    ----------
    config : Config
        With that seed.
    genes : tuple of str
        The panel.
    stages : dict
        Stage -> its cells, oldest first.
    """

    config: Config
    genes: tuple[str, ...]
    stages: Mapping[str, StageCells]

    def known(self, learned: Sequence[str]) -> LabelledCells:
        """Return what canal calibrates a version on: validation cells of the newest stage, older probes."""
        *older, newest = learned
        size = self.config.probe.max_cells
        probes = [choose_probe(self.stages[one].validation, size, self.config.seed) for one in older]
        return LabelledCells.concatenate([*probes, self.stages[newest].validation])

    def digest(self) -> str:
        """Return the SHA-256 of genes, cells, types and sets."""
        made = hashlib.sha256(json.dumps(self.genes).encode())
        for name, cells in self.stages.items():
            for part in (cells.train, cells.validation, cells.test):
                made.update(json.dumps([name, part.cell_ids, part.cell_types]).encode())
                made.update(np.ascontiguousarray(part.expression).tobytes())
        return made.hexdigest()


@dataclass(frozen=True, eq=False)
class _Source:
    """The labelled cells of a prepared source, in memory, so that each seed reads no file."""

    prepared: PreparedCells
    place: Mapping[str, int]
    expression: csr_matrix

    @classmethod
    def of(cls, prepared: PreparedCells) -> _Source:
        labelled = prepared.obs[prepared.obs["cell_type"] != ""]
        ids = [str(one) for one in labelled.index]
        place = {name: row for row, name in enumerate(ids)}
        return cls(prepared, place, prepared.expression_csr(ids))

    def cells(self, stage: str, split: pd.DataFrame, genes: Sequence[str]) -> LabelledCells:
        """Return cells of a split, in its order, on ``genes``."""
        ids = split["cell_id"].to_numpy(dtype=str)
        rows = [self.place[one] for one in ids]
        return LabelledCells(
            tuple(ids.tolist()),
            align(self.expression[rows], self.prepared.genes, genes),
            tuple(split["cell_type"].astype(str)),
            (stage,) * len(ids),
            (str(self.prepared.about["source"]),) * len(ids),
            tuple(split["batch"].astype(str)),
        )


class Stream:
    """A stream whose sources lie prepared in a folder; they are fetched and prepared where they do not.

    Parameters
    ----------
    name
        One of `STREAMS`.
    data
        Folder with the files of a stream that is not in packages.
    folder
        Where prepared sources are kept.
    downloads
        Where canal keeps what it fetched; see `canal.data.sources.fetch`.
    """

    def __init__(self, name: str, data: Path | None, folder: Path, downloads: Path) -> None:
        self.name = name
        self.config = _config(name, data)
        self._sources = {
            stage: _Source.of(self._prepared(self.config.stages[stage].source, folder, downloads))
            for stage in self.config.stages
        }

    def drawn(self, seed: int, genes: tuple[str, ...] | None = None) -> Drawn:
        """Return the stream as canal splits it under a seed, on its panel or on ``genes``."""
        config = self.config.model_copy(update={"seed": seed})
        splits: dict[str, pd.DataFrame] = {}
        for stage, source in self._sources.items():
            before = {one: splits[one] for one in config.ancestors(stage)}
            grouped = config.stages[stage].group_by_batch
            splits[stage] = split_stage(source.prepared.obs, config.split, seed, grouped, before)
        if genes is None:
            root, panel = config.panel.stage, config.panel
            size = panel.size or PRESETS[config.backbone.preset].panel
            genes = choose_panel(self._sources[root].prepared, splits[root], panel, size).genes
        return Drawn(config, genes, {name: self._stage(name, splits[name], genes) for name in splits})

    def shared_genes(self) -> tuple[str, ...]:
        """Return the genes that the files of all stages have."""
        own = (set(source.prepared.genes) for source in self._sources.values())
        return tuple(sorted(set.intersection(*own)))

    def _stage(self, name: str, split: pd.DataFrame, genes: Sequence[str]) -> StageCells:
        source = self._sources[name]

        def of(*sets: str) -> LabelledCells:
            return source.cells(name, split[split["set"].isin(sets)], genes)

        own = set(source.prepared.genes)
        missing = tuple(gene for gene in genes if gene not in own)
        return StageCells(of("train", "reserve"), of("validation"), of("test"), missing)

    def _prepared(self, name: str, folder: Path, downloads: Path) -> PreparedCells:
        source = self.config.sources[name]
        settings = PrepareSettings(self.config.min_genes(name), self.config.prepare.chunk_cells)
        asked = json_digest([source.declaration(), settings.min_genes])[:16]
        into = folder / f"{name}-{asked}"
        if not (into / CELLS).is_file():
            raw = fetch(name, source, stream.REPOSITORY, downloads, _say)
            _say(f"{self.name}: preparing {name}")
            into.parent.mkdir(parents=True, exist_ok=True)
            prepare(raw, name, source, settings, into)
        return PreparedCells(into / CELLS)


def shuffled(cells: LabelledCells, random: np.random.Generator, chunk: int) -> Iterable[LabelledCells]:
    """Yield the cells in another order, a chunk at a time."""
    order = random.permutation(len(cells))
    for start in range(0, len(order), chunk):
        yield cells.take(order[start : start + chunk])


def of_types(cells: LabelledCells, names: Collection[str]) -> LabelledCells:
    """Return the cells of some types."""
    wanted = set(names)
    return cells.take([row for row, name in enumerate(cells.cell_types) if name in wanted])


def _config(name: str, data: Path | None) -> Config:
    if name == EMBEDDED:
        document: dict[str, Any] = YAML(typ="safe").load(stream.REPOSITORY / "params.yaml")
    else:
        document = stream.params(name, (data or Path()).resolve(), [])
    return parse_config(document)


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


# The streams of `benchmarks/continual.py`.


class Line(Protocol):
    """A stream."""

    name: str

    def drawn(self, seed: int) -> Drawn:
        """Return the stream under a seed."""


def line_of(name: str, data: Path | None, folder: Path, downloads: Path) -> Line:
    """Return a stream of `ALL`."""
    if name == SYNTHETIC:
        return Synthetic()
    base, _, change = name.partition("/")
    line = Stream(base, data, folder, downloads)
    if not change:
        return line
    if change.startswith("order-"):
        return _Changed(name, line, lambda drawn: reordered(drawn, int(change[-1])))
    by_type = name == TYPES
    return _Changed(name, line, lambda drawn: cut(drawn, N_PIECES, by_type))


def reachable(name: str, data: Path | None) -> bool:
    """Whether the files of a stream are in packages, or a folder is named."""
    return data is not None or name.partition("/")[0] not in NEED_DATA


def is_of_studies(name: str) -> bool:
    """Whether each stage is a study, so that leaving one out says something of new studies."""
    return name in (*STREAMS, SYNTHETIC)


class _Changed:
    def __init__(self, name: str, line: Stream, change: Callable[[Drawn], Drawn]) -> None:
        self.name, self._line, self._change = name, line, change

    def drawn(self, seed: int) -> Drawn:
        return self._change(self._line.drawn(seed))


def reordered(drawn: Drawn, number: int) -> Drawn:
    """Return the stages in another order; 0 is their own."""
    order = list(permutations(drawn.stages))[number]
    return replace(drawn, stages={name: drawn.stages[name] for name in order})


def cut(drawn: Drawn, n: int, by_type: bool) -> Drawn:
    """Return each stage as ``n`` stages, of other cells of all types, or of all cells of other types."""
    random, stages = np.random.default_rng(drawn.config.seed), {}
    for name, whole in drawn.stages.items():
        place = {one: number % n for number, one in enumerate(random.permutation(list(whole.train.types)))}
        parts = [
            _cut(cells, name, n, place if by_type else None, random)
            for cells in (whole.train, whole.validation, whole.test)
        ]
        for number in range(n):
            of_stage = [part[number] for part in parts]
            if len(of_stage[0]) and len(of_stage[2]):
                stages[f"{name}-{number + 1}"] = StageCells(*of_stage, whole.missing)
    return replace(drawn, stages=stages)


def _cut(
    cells: LabelledCells, name: str, n: int, place: dict[str, int] | None, random: np.random.Generator
) -> list[LabelledCells]:
    if place is None:
        groups = random.permutation(np.arange(len(cells)) % n)
    else:
        groups = np.array([place.get(one, 0) for one in cells.cell_types], dtype=np.int64)
    parts = [cells.take(np.flatnonzero(groups == number)) for number in range(n)]
    return [replace(one, stages=(f"{name}-{k + 1}",) * len(one)) for k, one in enumerate(parts)]


class Synthetic:
    """Eight types in four studies: Gaussians of one covariance, shifted by study, all known."""

    name = SYNTHETIC

    def drawn(self, seed: int) -> Drawn:
        """Return cells drawn under a seed; the Gaussians are the same under every seed."""
        document = YAML(typ="safe").load(stream.REPOSITORY / "params.yaml")
        config = parse_config(document)
        novelty = config.novelty.model_copy(update={"holdouts": ("T1", "T4")})
        config = config.model_copy(update={"seed": seed, "novelty": novelty})
        stages = {
            name: StageCells(*(_synthetic(name, part, seed) for part in _CELLS), ()) for name in _OF_STAGE
        }
        return Drawn(config, tuple(f"G{number}" for number in range(_GENES)), stages)


def truth() -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """Return the types' means, each study's shift of them, and the covariance."""
    random = np.random.default_rng(20)
    means = 3.0 + 0.22 * random.standard_normal((_TYPES, _GENES))
    shifts = {
        name: 0.3 * random.standard_normal(_GENES) + 0.1 * random.standard_normal((_TYPES, _GENES))
        for name in _OF_STAGE
    }
    factors = 0.35 * random.standard_normal((_GENES, 6))
    return means, shifts, factors @ factors.T + 0.35 * np.eye(_GENES)


def _synthetic(stage: str, part: str, seed: int) -> LabelledCells:
    random = np.random.default_rng([seed, *part.encode(), *stage.encode()])
    means, shifts, covariance = truth()
    types, n = list(_OF_STAGE[stage]), _CELLS[part]
    own = np.array([types[number % len(types)] for number in range(n)])
    noise = random.standard_normal((n, _GENES)) @ np.linalg.cholesky(covariance).T
    values = np.maximum((means + shifts[stage])[own] + noise, 0).astype(np.float32)
    ids = tuple(f"{stage}:{part}:{number}" for number in range(n))
    return LabelledCells(ids, values, tuple(f"T{one}" for one in own), (stage,) * n, (stage,) * n, ("",) * n)
