"""From a project's files to what the continual room learns from: a corpus, a lesson, cells to measure on."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from canal.app.project import Project
from canal.config.sections import BACKBONE
from canal.core.digests import file_digest
from canal.core.files import read_json
from canal.data.split import SUMMED

LABELS_FILE = "validation/labels.json"
"""Where a model folder keeps the check of its stage's labels."""

if TYPE_CHECKING:
    import pandas as pd

    from canal.continual.cells import LabelledCells
    from canal.continual.evaluation import Examination
    from canal.continual.fit import Hooks
    from canal.continual.pretraining import Corpus
    from canal.continual.shadow import ShadowCells
    from canal.continual.stage import Lesson, Past
    from canal.data.prepared import PreparedCells
    from canal.memory.levels import Basis
    from canal.memory.stage_sums import StageSums
    from canal.memory.sums import Sums
    from canal.quality.gate import Ask


def corpus(project: Project) -> "Corpus":
    """Return the unlabelled cells and gene embeddings that the backbone is pretrained with.

    The vocabulary is the panel and, up to the preset's size, the genes expressed in most training cells of
    the first stage; its embedding comes from those cells, or from the file that params name.
    """
    from canal.continual.pretraining import Corpus, embed_genes, read_gene_embedding
    from canal.model.storage import PRESETS

    config = project.config
    size = PRESETS[config.backbone.preset]
    stages = (config.root_stage, *config.backbone.extra_stages)
    first = project.prepared(config.root_stage)
    split = project.split(config.root_stage)
    expression = first.expression_csr(list(split["cell_id"][split["set"] == "train"]))
    vocabulary = _vocabulary(project.panel, first.genes, np.diff(expression.tocsc().indptr), size.vocabulary)
    if config.backbone.gene_embedding is None:
        place = {gene: i for i, gene in enumerate(first.genes)}
        there = [column for column, gene in enumerate(vocabulary) if gene in place]
        columns = np.zeros((expression.shape[0], len(vocabulary)), dtype=np.float32)
        columns[:, there] = expression[:, [place[vocabulary[column]] for column in there]].toarray()
        embedding = embed_genes(columns, size.backbone.dim, config.seed)
    else:
        path = project.layout.root / config.backbone.gene_embedding
        embedding, _ = read_gene_embedding(path, vocabulary, size.backbone.dim)
    return Corpus(
        panel=tuple(project.panel),
        train=np.concatenate([project.cells(stage, "train").expression for stage in stages]),
        held_out=np.concatenate([project.cells(stage, "validation").expression for stage in stages]),
        vocabulary=vocabulary,
        gene_embedding=embedding,
    )


def lesson(
    project: Project, stage: str, bank_size: int, genes: "tuple[str, ...] | None" = None
) -> "tuple[Lesson, Past]":
    """Return what ``stage`` is learned from; of the past it needs the parent's model folder alone.

    Cells of the past were stored over the parent's panel: genes that this stage adds count as zero in them.

    Parameters
    ----------
    bank_size
        L: how many cells of the parent's bank are replayed at most.
    genes
        The panel that the stage was learned with; by default its parent's and the genes that it is to add.
    """
    from canal.continual.bank import cut
    from canal.continual.stage import Lesson, Past
    from canal.model.annotator import Annotator
    from canal.model.backbone import Backbone

    config, name = project.config, project.config.stages[stage].parent
    folder = project.layout.model(name)
    old: tuple[str, ...] = ()
    parent: Backbone | Annotator
    if name == BACKBONE:
        genes = tuple(project.panel)
        parent, past = Backbone.load(folder / "model"), Past.none(len(genes))
    else:
        parent = Annotator.load(folder / "model")
        genes = genes or _grown_panel(project, stage, parent.genes)
        past = Past.load(folder, parent.genes, config).widened(len(genes))
        old = parent.labels
    train, validation = project.cells(stage, "train", genes), project.cells(stage, "validation", genes)
    task = Lesson(
        stage=stage,
        parent=parent,
        genes=genes,
        new_labels=tuple(label for label in train.types if label not in old),
        train=train,
        validation=validation,
        replay=cut(past.bank, bank_size, max(1, len(old))).cells,
        probe=past.probe.cells,
        seed=config.seed,
    )
    return task, past


@dataclass(frozen=True, eq=False)
class ExactLesson:
    """What a stage is learned from by sums alone.

    ``labels`` and ``genes`` are those that the stage ends with, ``past`` the parent's probe, ``sums`` those
    of all stages, its own among them, and ``batches`` its own by batch.
    """

    labels: tuple[str, ...]
    genes: tuple[str, ...]
    validation: "LabelledCells"
    past: "Past"
    sums: "StageSums"
    batches: "Sums | None"


def exact_lesson(project: Project, stage: str) -> ExactLesson:
    """Return what ``stage`` is learned from by sums; of the past it needs the parent's model folder alone.

    Raises
    ------
    TrainingError
        If the parent keeps no sums: its types would be forgotten.
    """
    from canal.continual.stage import Past
    from canal.core.errors import TrainingError
    from canal.model.annotator import GENES, LABELS
    from canal.model.storage import read_names

    config, name = project.config, project.config.stages[stage].parent
    folder, no_labels = project.layout.model(name), tuple[str, ...]()
    before = parent_sums(project, stage)
    if name != BACKBONE and before is None:
        raise TrainingError(
            f"stage {stage!r} is to be learned by sums alone, but its parent {name!r} keeps none, so all "
            f"that it knows would be forgotten: add them first (`canal sums backfill {name}`), or set "
            f"stages.{stage}.continual.method: combined"
        )
    if name == BACKBONE:
        genes, old = tuple(project.panel), no_labels
        past = Past.none(len(genes))
    else:
        own = read_names(folder / "model", GENES)
        genes, old = _grown_panel(project, stage, own), read_names(folder / "model", LABELS)
        past = Past.load(folder, own, config).widened(len(genes))
    sums, batches = stage_sums(project, stage, genes, before)
    new = tuple(label for label in sorted(sums.stages[stage].types) if label not in old)
    validation = project.cells(stage, "validation", genes)
    return ExactLesson((*old, *new), genes, validation, past, sums, batches)


def stage_sums(
    project: Project, stage: str, genes: "tuple[str, ...]", parent: "StageSums | None"
) -> "tuple[StageSums, Sums | None]":
    """Return the sums of a lineage with those of ``stage`` added, and the stage's own by batch.

    Parameters
    ----------
    genes
        The panel that the stage is learned with.
    parent
        The sums of the stages before; None where they begin here, on a basis of the panel.
    """
    from canal.memory.stage_sums import StageSums

    known = parent or StageSums(first_basis(project, stage, genes))
    own, batches, missing = added_up(project, stage, known.basis)
    return known.plus(stage, own, missing), batches


def first_basis(project: Project, stage: str, genes: "tuple[str, ...]") -> "Basis":
    """Return the basis of sums that begin at ``stage``: its panel, and whose cells chose that.

    Where another lineage's was adopted, it is that one.
    """
    from canal.app.adopting import adopted_basis
    from canal.memory.levels import Basis

    if (adopted := adopted_basis(project)) is not None:
        return adopted
    seen = dict.fromkeys((project.config.root_stage, stage))
    chosen = {name: file_digest(project.layout.split(name)) for name in seen}
    grown = genes != tuple(project.panel)
    return Basis(genes, chosen if grown else {project.config.root_stage: chosen[project.config.root_stage]})


def added_up(project: Project, stage: str, basis: "Basis") -> "tuple[Sums, Sums | None, tuple[str, ...]]":
    """Return the sums of a stage's cells, those by batch where they are kept, and the genes its file lacks.

    Added are all training cells of its split, those in reserve, too. They are read in chunks; types of the
    sums by batch are JSON lists of batch and type.
    """
    from canal.memory.stage_sums import batch_and_type, by_type
    from canal.memory.sums import add_up

    split, cells = project.split(stage), project.prepared(stage)
    learned = split[split["set"].isin(SUMMED)]
    pairs = list(zip(learned["batch"], learned["cell_type"], strict=True))
    by_batch = _fits(basis.size, len(set(pairs)), project.config.memory.batch_mb)
    names = [batch_and_type(*pair) for pair in pairs] if by_batch else list(learned["cell_type"])
    types = dict(zip(learned["cell_id"], names, strict=True))
    chunks = cells.chunks(list(types), basis.genes)
    found = add_up(basis, ((expression, [types[one] for one in ids]) for ids, expression in chunks))
    missing = cells.missing(basis.genes)
    return (by_type(found), found, missing) if by_batch else (found, None, missing)


def parent_sums(project: Project, stage: str) -> "StageSums | None":
    """Return the sums that a stage's parent keeps; None where it keeps none."""
    from canal.memory.stage_sums import StageSums

    name = project.config.stages[stage].parent
    if name == BACKBONE:
        return None
    return StageSums.load(project.layout.model(name), (*project.config.ancestors(stage),))


def _fits(size: int, rows: int, most_mb: float) -> bool:
    """Whether sums of so many features and rows take at most so many megabytes."""
    return rows * size * (size + 3) * 4 <= most_mb * 1e6


def examination(project: Project, stage: str) -> "Examination":
    """Return what a stage's model is measured on: test cells of every stage so far, and all probes."""
    from canal.continual.bank import Probe
    from canal.continual.evaluation import EVALUATION, Examination
    from canal.continual.stage import PROBE
    from canal.model.load import load_model

    config, layout, genes = project.config, project.layout, _panel_of(project, stage)
    parent = config.stages[stage].parent
    earlier = [] if parent == BACKBONE else read_json(layout.metrics(parent) / EVALUATION)["matrix"]
    stages = (*config.ancestors(stage), stage)
    return Examination(
        tests={
            name: project.cells(name, "test", genes) if project.available(name) else None for name in stages
        },
        earlier=earlier,
        probe=Probe.load(layout.model(stage) / PROBE, genes).cells,
        missing=_missing(layout.model(stage), stages),
        parent=None if parent == BACKBONE else load_model(layout.model(parent) / "model"),
    )


def _missing(folder: Path, stages: "Sequence[str]") -> "Mapping[str, tuple[str, ...]]":
    """Return which genes the file of each stage lacks, where a model keeps sums, which tell it."""
    from canal.memory.stage_sums import StageSums

    sums = StageSums.load(folder, stages)
    return {} if sums is None else sums.missing


def shadow_cells(project: Project, stage: str, exam: "Examination") -> "ShadowCells":
    """Return what shadow heads learn from: what the stage was trained on, and what measures it."""
    from canal.continual.cells import LabelledCells
    from canal.continual.shadow import ShadowCells
    from canal.tuning.document import TUNED_FILE, settings_of

    if project.config.learning(stage).method == "exact":
        return _exact_shadow_cells(project, stage, exam)
    settings = settings_of(project.config, stage, project.layout.model(stage) / TUNED_FILE)
    task, _ = lesson(project, stage, settings.bank_size, _panel_of(project, stage))
    nothing = LabelledCells.empty(len(task.genes))
    return ShadowCells(
        train=LabelledCells.concatenate([task.train, task.replay]),
        known=LabelledCells.concatenate([task.validation, task.probe]),
        test=LabelledCells.concatenate([nothing, *exam.measured.values()]),
    )


def _exact_shadow_cells(project: Project, stage: str, exam: "Examination") -> "ShadowCells":
    """Return as `shadow_cells` does for a stage of sums, which keep what they learned from themselves."""
    from canal.continual.cells import LabelledCells
    from canal.continual.shadow import ShadowCells
    from canal.continual.stage import Past
    from canal.model.annotator import GENES
    from canal.model.storage import read_names

    genes, parent = _panel_of(project, stage), project.config.stages[stage].parent
    nothing = LabelledCells.empty(len(genes))
    probe = nothing
    if parent != BACKBONE:
        folder = project.layout.model(parent)
        own = read_names(folder / "model", GENES)
        probe = Past.load(folder, own, project.config).widened(len(genes)).probe.cells
    return ShadowCells(
        train=LabelledCells.concatenate([project.cells(stage, "train", genes), probe]),
        known=LabelledCells.concatenate([project.cells(stage, "validation", genes), probe]),
        test=LabelledCells.concatenate([nothing, *exam.measured.values()]),
    )


def ask_parent(project: Project, stage: str) -> "Ask | None":
    """Return what asks the model of a stage's parent what it calls cells; None where there is no such model.

    A backbone knows no cell types; a parent that is not learned yet, or lies nowhere, is not asked.
    """
    parent = project.config.stages[stage].parent
    folder = project.layout.model(parent) / "model"
    if parent == BACKBONE or not folder.is_dir():
        return None

    def ask(prepared: "PreparedCells", cell_ids: "Sequence[str]") -> "pd.DataFrame":
        from canal.model.load import load_model
        from canal.quality.gate import compare

        annotator = load_model(folder)
        asked = annotator.without(prepared.missing(annotator.genes))
        found = asked.predict(prepared.expression(cell_ids, annotator.genes))
        obs = prepared.obs.loc[list(cell_ids)]
        answers = ["" if novel else label for label, novel in zip(found.labels, found.is_novel, strict=True)]
        labels, types = obs["cell_type_original"].astype(str), obs["cell_type"].astype(str)
        return compare(list(labels), list(types), answers, annotator.labels)

    return ask


def _panel_of(project: Project, stage: str) -> tuple[str, ...]:
    """Return the genes that a learned stage's model reads."""
    from canal.model.annotator import GENES
    from canal.model.storage import read_names

    return read_names(project.layout.model(stage) / "model", GENES)


def _grown_panel(project: Project, stage: str, genes: tuple[str, ...]) -> tuple[str, ...]:
    """Return the panel that a stage is learned with: its parent's ``genes``, then those that it adds.

    Raises
    ------
    TrainingError
        If the parent's panel does not begin with that of the lineage.
    """
    from canal.core.errors import TrainingError
    from canal.data.panel import choose_more

    panel, config = project.panel, project.config
    if list(genes[: len(panel)]) != panel:
        raise TrainingError(
            f"stage {stage}: panel.json ({len(panel)} genes) is not what the panel of its parent "
            f"{config.stages[stage].parent} ({len(genes)} genes) begins with; a lineage keeps one panel: "
            "run `dvc repro --force panel`, which restores it"
        )
    grow = config.stages[stage].panel.grow
    if not grow:
        return genes
    chosen = choose_more(project.prepared(stage), project.split(stage), config.panel, genes, grow)
    return (*genes, *chosen.genes)


def _vocabulary(panel: list[str], genes: list[str], cells: np.ndarray, size: int) -> tuple[str, ...]:
    """Return the panel, then other genes by the number of cells that express them."""
    known = set(panel)
    order = np.argsort(-cells, kind="stable")
    others = [genes[i] for i in order if genes[i] not in known and cells[i] > 0]
    return (*panel, *others[: max(0, size - len(panel))])


def features_kept(project: Project) -> "Hooks":
    """Return hooks that name where the project's trainings keep frozen features, and how they compute."""
    from canal.continual.fit import Hooks
    from canal.model.compute import find_device

    compute = project.config.compute
    return Hooks(
        cache_dir=project.layout.features,
        device=find_device(compute.device),
        dtype=compute.dtype,
        cache=project.config.cache,
    )


def keep_inputs(project: Project, stage: str, folder: Path) -> None:
    """Copy a stage's split, verdicts and choice beside its model: it is restored where its data are gone."""
    from canal.tuning.document import TUNED_FILE

    split, verdict = project.layout.split(stage), project.layout.verdict(stage)
    (folder / "split").mkdir()
    (folder / "validation").mkdir()
    shutil.copyfile(split, folder / "split" / "cells.csv")
    shutil.copyfile(split.with_suffix(".json"), folder / "split" / "cells.json")
    shutil.copyfile(verdict, folder / "validation" / "verdict.json")
    if project.layout.labels(stage).is_file():
        shutil.copyfile(project.layout.labels(stage), folder / LABELS_FILE)
    if project.config.study(stage) is not None:
        shutil.copyfile(project.layout.tuned(stage), folder / TUNED_FILE)
