"""Build training inputs from a project's files: the pre-training corpus, a stage's task, and its sums."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from canal.app.beginning import adopted_basis
from canal.app.corpora import corpus_tokens, require_corpora
from canal.app.engines import add_up_parts
from canal.app.project import CellSet, Project
from canal.config.sections import BACKBONE
from canal.continual.bank import ParentState, cut
from canal.continual.cells import LabelledCells
from canal.continual.fit import Hooks
from canal.continual.pretraining import Corpus, embed_genes, read_gene_embedding
from canal.continual.stage import ExactTask, Task
from canal.core.digests import file_digest
from canal.core.errors import TrainingError
from canal.data.expression import tokenize
from canal.data.panel import choose_more
from canal.data.prepared import PreparedCells
from canal.data.split import SUMMED
from canal.memory.levels import Basis
from canal.memory.stage_sums import StageSums, batch_and_type, by_type
from canal.memory.sums import Sums, add_up
from canal.model.annotator import GENES, LABELS, Annotator
from canal.model.backbone import Backbone
from canal.model.compute import find_device
from canal.model.storage import PRESETS, read_names
from canal.registry.manifest.version_folder import Key
from canal.runtime.together import processes_asked

PART_CELLS = 50_000
"""Cells of a part of a stage, whose sums are added up by themselves."""


def corpus(project: Project) -> Corpus:
    """Return the cells, without labels, and the gene embeddings that the backbone is pretrained with.

    The vocabulary is the panel and, up to the preset's size, the genes expressed in most training cells of
    the first stage; its embedding comes from those cells, or from the file that params name.

    Raises
    ------
    GateError
        If an unlabelled source has not passed the gate with the bytes that are here.
    """
    config = project.config
    require_corpora(project)
    size = PRESETS[config.backbone.preset]
    stages = (config.root_stage, *config.backbone.extra_stages)
    first = project.prepared(config.root_stage)
    split = project.split(config.root_stage)
    expression = first.expression_csr(list(split["cell_id"][split["set"] == "train"]))
    # The panel, followed by other genes in order of the number of cells that express them.
    panel, expressing = project.panel, np.diff(expression.tocsc().indptr)
    order = [column for column in np.argsort(-expressing, kind="stable") if expressing[column] > 0]
    given = set(panel)
    others = [gene for column in order if (gene := first.genes[column]) not in given]
    vocabulary = (*panel, *others[: max(0, size.vocabulary - len(panel))])
    if config.backbone.gene_embedding is None:
        position = {gene: i for i, gene in enumerate(first.genes)}
        known = [column for column, gene in enumerate(vocabulary) if gene in position]
        columns = np.zeros((expression.shape[0], len(vocabulary)), dtype=np.float32)
        columns[:, known] = expression[:, [position[vocabulary[column]] for column in known]].toarray()
        embedding = embed_genes(columns, size.backbone.dim, config.seed)
    else:
        path = project.layout.root / config.backbone.gene_embedding
        embedding, _ = read_gene_embedding(path, vocabulary, size.backbone.dim)

    def tokens(chosen: CellSet) -> np.ndarray:
        own = [tokenize(project.cells(stage, chosen).expression) for stage in stages]
        return np.concatenate([*own, *corpus_tokens(project, chosen)])

    return Corpus(
        panel=tuple(project.panel),
        train=tokens("train"),
        held_out=tokens("validation"),
        vocabulary=vocabulary,
        gene_embedding=embedding,
    )


def stage_task(
    project: Project, stage: str, bank_size: int, genes: tuple[str, ...] | None = None
) -> tuple[Task, ParentState]:
    """Return the task of ``stage`` and the parent state, which is read from the parent's model folder alone.

    Bank and probe cells were stored over the parent's panel: genes that this stage adds are zero in them.

    Parameters
    ----------
    bank_size
        L: most cells of the parent's bank that are replayed.
    genes
        The panel of the stage; by default its parent's panel and the genes that the stage adds.
    """
    config, name = project.config, project.config.stages[stage].parent
    folder = project.layout.model(name)
    old: tuple[str, ...] = ()
    parent: Backbone | Annotator
    if name == BACKBONE:
        genes = tuple(project.panel)
        parent, parent_state = Backbone.load(folder / "model"), ParentState.none(len(genes))
    else:
        parent = Annotator.load(folder / "model")
        genes = genes or _grown_panel(project, stage, parent.genes)
        parent_state = ParentState.load(folder, parent.genes, config).widened(len(genes))
        old = parent.labels
        if more := [one for one in read_names(folder / "model", LABELS) if one not in old]:
            raise TrainingError(
                f"stage {stage!r} cannot be learned by a network: that of {name} does not know "
                f"{', '.join(more[:5])}, which were merged in as sums: learn the stage by sums alone "
                f"(stages.{stage}.continual.method: exact)"
            )
    train = project.cells(stage, "train", genes)
    new = tuple(label for label in train.types if label not in old)
    task = Task(
        stage=stage,
        parent=parent,
        genes=genes,
        new_labels=new,
        train=train,
        validation=_validation(project, stage, genes, (*old, *new)),
        replay=cut(parent_state.bank, bank_size, max(1, len(old))).cells,
        probe=parent_state.probe.cells,
        seed=config.seed,
    )
    return task, parent_state


def sums_task(project: Project, stage: str) -> ExactTask:
    """Return the task of ``stage`` by sums; earlier stages enter by the parent's model folder alone.

    Raises
    ------
    TrainingError
        If the parent keeps no sums: its types would be lost.
    """
    config, name = project.config, project.config.stages[stage].parent
    folder, no_labels = project.layout.model(name), tuple[str, ...]()
    before = parent_sums(project, stage)
    if name != BACKBONE and before is None:
        raise TrainingError(
            f"stage {stage!r} is to be learned by sums alone, but its parent {name!r} keeps no sums, so the "
            f"parent's types would be lost: add its sums first (`canal sums backfill {name}`), or set "
            f"stages.{stage}.continual.method: combined"
        )
    if name == BACKBONE:
        genes, old = tuple(project.panel), no_labels
        parent_state = ParentState.none(len(genes))
    else:
        own = read_names(folder / "model", GENES)
        genes, old = _grown_panel(project, stage, own), read_names(folder / "model", LABELS)
        parent_state = ParentState.load(folder, own, config).widened(len(genes))
    sums, batches = stage_sums(project, stage, genes, before)
    new = tuple(label for label in sorted(sums.stages[stage].types) if label not in old)
    validation = _validation(project, stage, genes, (*old, *new))
    return ExactTask((*old, *new), genes, validation, parent_state, sums, batches)


def _validation(
    project: Project, stage: str, genes: tuple[str, ...], labels: tuple[str, ...]
) -> LabelledCells:
    """Return the validation cells of types that the stage's model knows: no others can choose anything."""
    return project.cells(stage, "validation", genes).of_types(labels)


def stage_sums(
    project: Project, stage: str, genes: tuple[str, ...], parent: StageSums | None
) -> tuple[StageSums, Sums | None]:
    """Return the sums of a lineage with those of ``stage`` added, and the stage's own sums by batch.

    Parameters
    ----------
    genes
        The panel of the stage.
    parent
        The sums of earlier stages; None to start sums here, on a basis of the panel.
    """
    known = parent or StageSums(first_basis(project, stage, genes))
    own, batches, missing = add_up_stage(project, stage, known.basis)
    return known.plus(stage, own, missing), batches


def first_basis(project: Project, stage: str, genes: tuple[str, ...]) -> Basis:
    """Return the basis of sums that start at ``stage``: the adopted basis, else one of the stage's panel."""
    if (adopted := adopted_basis(project)) is not None:
        return adopted
    seen = dict.fromkeys((project.config.root_stage, stage))
    chosen = {name: file_digest(project.layout.split(name)) for name in seen}
    grown = genes != tuple(project.panel)
    return Basis(genes, chosen if grown else {project.config.root_stage: chosen[project.config.root_stage]})


def add_up_stage(project: Project, stage: str, basis: Basis) -> tuple[Sums, Sums | None, tuple[str, ...]]:
    """Return the sums of a stage's cells, the sums by batch where kept, and the genes that its file lacks.

    All training cells of the split are summed, including those in reserve. Cells are read in chunks, by Dask
    where `canal.app.engines.SPREAD` says so; types of the sums by batch are JSON lists of batch and type.

    Raises
    ------
    TrainingError
        If the split has no training cell.
    """
    split, cells = project.split(stage), project.prepared(stage)
    learned = split[split["set"].isin(SUMMED)]
    if learned.empty:
        raise TrainingError(
            f"stage {stage!r} has no training cell among the {len(split)} of its split, so there is nothing "
            "to add up: give it more cells, or raise split.train"
        )
    pairs = list(zip(learned["batch"], learned["cell_type"], strict=True))
    by_batch = _fits(basis.size, len(set(pairs)), project.config.memory.batch_mb)
    names = [batch_and_type(*pair) for pair in pairs] if by_batch else list(learned["cell_type"])
    ids = list(learned["cell_id"])
    parts = [
        (str(cells.path), basis, ids[at : at + PART_CELLS], names[at : at + PART_CELLS])
        for at in range(0, len(ids), PART_CELLS)
    ]
    sums = add_up_parts(basis, parts, add_up_part)
    missing = cells.missing(basis.genes)
    return (by_type(sums), sums, missing) if by_batch else (sums, None, missing)


def add_up_part(part: tuple[str, Basis, Sequence[str], Sequence[str]]) -> Sums:
    """Return the sums of some cells of a prepared file: its path, the basis, cells and their types."""
    path, basis, cell_ids, names = part
    types = dict(zip(cell_ids, names, strict=True))
    chunks = _prepared(path, Path(path).stat().st_mtime_ns).chunks(cell_ids, basis.genes)
    return add_up(basis, ((expression, [types[one] for one in ids]) for ids, expression in chunks))


@lru_cache(maxsize=1)
def _prepared(path: str, _: int) -> PreparedCells:
    """Return the cells of a file, whose names a process reads once for all of its parts."""
    return PreparedCells(Path(path))


def parent_sums(project: Project, stage: str) -> StageSums | None:
    """Return the sums of a stage's parent, or None."""
    name = project.config.stages[stage].parent
    if name == BACKBONE:
        return None
    return StageSums.load(project.layout.model(name), project.config.summed_stages(name))


def _fits(size: int, rows: int, most_mb: float) -> bool:
    """Whether sums of ``size`` features and ``rows`` rows take at most ``most_mb`` megabytes."""
    return rows * size * (size + 3) * 4 <= most_mb * 1e6


def _grown_panel(project: Project, stage: str, genes: tuple[str, ...]) -> tuple[str, ...]:
    """Return the panel of a stage: its parent's ``genes``, then the genes that the stage adds.

    Raises
    ------
    TrainingError
        If the parent's panel does not begin with that of the lineage.
    """
    panel, config = project.panel, project.config
    if list(genes[: len(panel)]) != panel:
        raise TrainingError(
            f"stage {stage}: the panel of its parent {config.stages[stage].parent} ({len(genes)} genes) does "
            f"not start with panel.json ({len(panel)} genes), but a lineage keeps one panel: run `dvc repro "
            "--force panel`, which restores panel.json"
        )
    grow = config.stages[stage].panel.grow
    if not grow:
        return genes
    chosen = choose_more(project.prepared(stage), project.split(stage), config.panel, genes, grow)
    return (*genes, *chosen.genes)


def why_unavailable(project: Project, stage: str, key: Key) -> str | None:
    """Return why the cells that a version was learned from cannot be read; None where they can."""
    layout, prepared = project.layout, key["data"]["prepared_sha256"]
    cells = layout.prepared(project.config.stages[stage].source) / "cells.h5ad"
    if not cells.is_file():
        return "its cells are gone"
    if file_digest(cells) != prepared:
        return f"{cells.relative_to(layout.root)} holds other cells than it was learned from"
    split = layout.split(stage)
    if not split.is_file() or file_digest(split) != key["split"]:
        return f"{split.relative_to(layout.root)} is not the split it was learned by"
    return None


def training_hooks(project: Project) -> Hooks:
    """Return hooks with the project's feature cache, device and precision, and the processes asked for."""
    compute = project.config.compute
    return Hooks(
        cache_dir=project.layout.features,
        device=find_device(compute.device),
        dtype=compute.dtype,
        cache=project.config.cache,
        processes=processes_asked(),
    )
