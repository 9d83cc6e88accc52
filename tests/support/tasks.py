"""Small tasks on synthetic cells: ``from tests.support.tasks import first_task``."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np

from canal.config.sections import Continual
from canal.continual.cells import LabelledCells
from canal.continual.fit import Hooks
from canal.continual.stage import Learned, Task
from canal.continual.trainer import learn_stage
from canal.model.annotator import Annotator
from tests.support.cells import gene_names, make_adata
from tests.support.models import DEEP, make_backbone

GENES = tuple(gene_names(24))
SETTINGS = Continual(
    learning_rate=2e-3,
    warmup_epochs=1,
    cycle_epochs=6,
    batch_size=14,
    max_epochs=4,
    patience=10,
    bank_size=20,
)


def make_cells(counts: dict[str, int], stage: str, seed: int) -> LabelledCells:
    """Return cells whose types a linear model separates; all from the source ``stage``."""
    adata = make_adata(counts, n_genes=24, seed=seed, values="log2p_10k")
    # Units do not matter here; spread over the tokens does.
    expression = (adata.X.toarray() / 2).astype(np.float32)
    n = len(expression)
    return LabelledCells(
        tuple(f"{stage}:{name}" for name in adata.obs_names),
        expression,
        tuple(adata.obs["cell_type"]),
        (stage,) * n,
        (stage,) * n,
        ("b1",) * n,
    )


def first_task(**changes: object) -> Task:
    """Return a stage of two types on an untrained backbone with one frozen block."""
    task = Task(
        stage="first",
        parent=make_backbone(24, DEEP),
        genes=GENES,
        new_labels=("B", "T"),
        train=make_cells({"B": 20, "T": 20}, "first", seed=1),
        validation=make_cells({"B": 8, "T": 8}, "first", seed=2),
        replay=LabelledCells.empty(24),
        probe=LabelledCells.empty(24),
        seed=0,
    )
    return replace(task, **changes)


@cache
def first_learned() -> Learned:
    """Return the first stage, learned once a test session; nobody may change it."""
    return learn_stage(first_task(), SETTINGS, Hooks())


def second_task(**changes: object) -> Task:
    """Return a stage that brings NK and shows T again, with replay and probe of the first."""
    parent: Annotator = first_learned().annotator
    first = first_task()
    task = Task(
        stage="second",
        parent=parent,
        genes=GENES,
        new_labels=("NK",),
        train=make_cells({"NK": 16, "T": 16}, "second", seed=3),
        validation=make_cells({"NK": 8, "T": 8}, "second", seed=4),
        replay=first.train.take(range(20)),
        probe=first.validation,
        seed=0,
    )
    return replace(task, **changes)


def grown_task() -> Task:
    """Return the second stage with three more genes, of which only its own cells have values."""
    task = second_task()

    def more(cells: LabelledCells) -> LabelledCells:
        marks = {"NK": [4.0, 0.0, 2.0], "T": [0.0, 3.0, 2.0]}
        random = np.random.default_rng(len(cells))
        new = np.array([marks[name] for name in cells.cell_types]) * random.uniform(0.6, 1.4, (len(cells), 3))
        return replace(cells, expression=np.concatenate([cells.expression, new], axis=1).astype(np.float32))

    return replace(
        task,
        genes=(*GENES, "NEW1", "NEW2", "NEW3"),
        train=more(task.train),
        validation=more(task.validation),
        replay=task.replay.widened(27),
        probe=task.probe.widened(27),
    )
