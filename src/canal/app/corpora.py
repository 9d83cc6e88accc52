"""Unlabelled sources that pre-train the backbone: gated, and of them the cells that are drawn.

``corpus/<source>/`` holds the verdict of the gate, and the table of the cells that pre-train: most of them
train, and the others are held out to end the training. Cells that are not drawn are in no table.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from canal.app.project import Project
from canal.config.sections import BACKBONE
from canal.core.errors import TrainingError
from canal.core.files import new_file
from canal.data.expression import tokenize
from canal.data.split import COLUMNS, read_split
from canal.quality.gate import judge
from canal.quality.verdict import Subject, Verdict, require_passing
from canal.registry.versions.history import require_corpora_available, restore_file

if TYPE_CHECKING:
    import pandas as pd


def restore_corpora(project: Project, into: Path) -> bool:
    """Restore tables and verdicts of the learned backbone's corpora; return whether it is learned."""
    if (version := project.learned(BACKBONE)) is None:
        return False
    layout = project.layout
    for name in project.config.backbone.unlabelled:
        for path in (layout.corpus_cells(name), layout.corpus_verdict(name)):
            kept, target = path.relative_to(layout.root).as_posix(), into / path.relative_to(layout.corpus)
            restore_file(project.store, version, kept, target)
    return True


def judge_corpora(project: Project) -> Iterator[tuple[str, Verdict]]:
    """Yield each unlabelled source with the gate's verdict on it.

    Rules about labels do not apply. Stages are what it is compared with: no cell that one of them tests on
    may pre-train, whatever source it is in.

    Raises
    ------
    HistoryError
        If a source is not available.
    DataError, GateError
        As `canal.quality.gate.judge`.
    """
    config, layout = project.config, project.layout
    if not config.backbone.unlabelled:
        return
    require_corpora_available(config)
    earlier = {stage: project.earlier(stage) for stage in config.stages}
    for name in config.backbone.unlabelled:
        subject = Subject(
            stage=name,
            source_name=name,
            source=config.sources[name],
            raw=layout.source(name) / "cells.h5ad",
            panel=project.panel,
            prepared=layout.prepared(name),
            earlier=earlier,
            chunk_cells=config.prepare.chunk_cells,
            own_rules=layout.own_rules,
            unlabelled=True,
        )
        yield name, judge(subject, config.gate, layout.data_docs(f"corpus-{name}"))


def draw_corpora(project: Project) -> dict[str, pd.DataFrame]:
    """Return for each unlabelled source the cells that pre-train; columns as those of a split.

    Each content is drawn once, by seed and content alone: neither its place nor its file decides. In several
    sources, it is of the one that is named first. Of all sources together at most
    ``backbone.max_unlabelled_cells`` are taken, so of each in proportion to its size. A share of them as
    large as ``split.validation`` is held out.

    Raises
    ------
    TrainingError
        If a source is left without a cell to train on, or all of them without one to hold out.
    """
    import pandas as pd

    config, tables = project.config, list[pd.DataFrame]()
    for name in config.backbone.unlabelled:
        obs = project.prepared_source(name).obs.sort_index()
        draws = [_draw(config.seed, digest) for digest in obs["cell_digest"]]
        tables.append(obs.assign(cell_type="", draw=np.array(draws, dtype=np.float64)))
    if not tables:
        return {}
    every = pd.concat(tables).sort_values(["draw", "cell_digest"], kind="stable")
    every = every.drop_duplicates("cell_digest")[: config.backbone.max_unlabelled_cells]
    n_held_out = min(max(1, round(len(every) * config.split.validation)), len(every) - 1)
    # Of what is drawn, which is in random order, any part is a random one.
    every = every.assign(set=np.where(np.arange(len(every)) < n_held_out, "validation", "train"))
    drawn = {
        name: every[every["source"] == name].sort_values("cell_id", ignore_index=True)[list(COLUMNS)]
        for name in config.backbone.unlabelled
    }
    if idle := [name for name, table in drawn.items() if not (table["set"] == "train").any()]:
        raise TrainingError(
            f"no cell of {', '.join(idle)} would pre-train the backbone: all its cells are also in another "
            f"unlabelled source, or backbone.max_unlabelled_cells ({config.backbone.max_unlabelled_cells:,}) "
            "is too small; raise it, or take the source out of backbone.unlabelled"
        )
    return drawn


def write_corpus(table: pd.DataFrame, verdict: Verdict, into: Path) -> None:
    """Write the drawn cells of one unlabelled source and its verdict, as `Layout.corpus_cells` has them."""
    into.mkdir()
    with new_file(into / "cells.csv") as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")
    verdict.write(into / "verdict.json")


def require_corpora(project: Project) -> None:
    """Raise `GateError` unless every unlabelled source has passed the gate with the bytes that are here."""
    for name in project.config.backbone.unlabelled:
        digest = project.source_summary(name)["sha256"]
        require_passing(project.layout.corpus_verdict(name), digest, name)


def corpus_tokens(project: Project, chosen: str) -> Iterator[np.ndarray]:
    """Yield the tokens of the corpora's cells of one set, some cells at a time: (cells, panel) uint8."""
    panel = project.panel
    for name in project.config.backbone.unlabelled:
        table = read_split(project.layout.corpus_cells(name))
        ids = list(table["cell_id"][table["set"] == chosen])
        for _, expression in project.prepared_source(name).chunks(ids, panel):
            yield tokenize(expression)


def _draw(seed: int, digest: str) -> float:
    """Return a random number of a content between 0 and 1."""
    drawn = hashlib.blake2b(f"{seed}:{digest}:corpus".encode(), digest_size=6).digest()
    return int.from_bytes(drawn, "big") / 2**48
