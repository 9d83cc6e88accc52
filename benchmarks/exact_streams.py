"""The streams of `benchmarks/exact.py`, split, their genes chosen, by canal's own code; one draw a seed."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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

    def drawn(self, seed: int) -> Drawn:
        """Return the stream as canal splits it under a seed, on the panel that it chooses then."""
        config = self.config.model_copy(update={"seed": seed})
        splits: dict[str, pd.DataFrame] = {}
        for stage, source in self._sources.items():
            before = {one: splits[one] for one in config.ancestors(stage)}
            grouped = config.stages[stage].group_by_batch
            splits[stage] = split_stage(source.prepared.obs, config.split, seed, grouped, before)
        root, panel = config.panel.stage, config.panel
        size = panel.size or PRESETS[config.backbone.preset].panel
        genes = choose_panel(self._sources[root].prepared, splits[root], panel, size).genes
        return Drawn(config, genes, {name: self._stage(name, splits[name], genes) for name in splits})

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
