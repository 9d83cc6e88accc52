"""What a stage is trained on, from a project's files: a corpus, a task with its replayed cells, sums."""

import numpy as np

from canal.app.beginning import adopted_basis
from canal.app.project import Project
from canal.config.sections import BACKBONE
from canal.continual.bank import cut
from canal.continual.fit import Hooks
from canal.continual.pretraining import Corpus, embed_genes, read_gene_embedding
from canal.continual.task import ExactTask, ParentState, Task
from canal.core.digests import file_digest
from canal.core.errors import TrainingError
from canal.data.panel import choose_more
from canal.data.split import SUMMED
from canal.memory.levels import Basis
from canal.memory.stage_sums import StageSums, batch_and_type, by_type
from canal.memory.sums import Sums, add_up
from canal.model.annotator import GENES, LABELS, Annotator
from canal.model.backbone import Backbone
from canal.model.compute import find_device
from canal.model.storage import PRESETS, read_names


def corpus(project: Project) -> Corpus:
    """Return the unlabelled cells and gene embeddings that the backbone is pretrained with.

    The vocabulary is the panel and, up to the preset's size, the genes expressed in most training cells of
    the first stage; its embedding comes from those cells, or from the file that params name.
    """
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
    project: Project, stage: str, bank_size: int, genes: tuple[str, ...] | None = None
) -> tuple[Task, ParentState]:
    """Return what ``stage`` is learned from; of the past it needs the parent's model folder alone.

    Cells of the past were stored over the parent's panel: genes that this stage adds count as zero in them.

    Parameters
    ----------
    bank_size
        L: how many cells of the parent's bank are replayed at most.
    genes
        The panel that the stage was learned with; by default its parent's and the genes that it is to add.
    """
    config, name = project.config, project.config.stages[stage].parent
    folder = project.layout.model(name)
    old: tuple[str, ...] = ()
    parent: Backbone | Annotator
    if name == BACKBONE:
        genes = tuple(project.panel)
        parent, past = Backbone.load(folder / "model"), ParentState.none(len(genes))
    else:
        parent = Annotator.load(folder / "model")
        genes = genes or _grown_panel(project, stage, parent.genes)
        past = ParentState.load(folder, parent.genes, config).widened(len(genes))
        old = parent.labels
    train, validation = project.cells(stage, "train", genes), project.cells(stage, "validation", genes)
    task = Task(
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


def exact_lesson(project: Project, stage: str) -> ExactTask:
    """Return what ``stage`` is learned from by sums; of the past it needs the parent's model folder alone.

    Raises
    ------
    TrainingError
        If the parent keeps no sums: its types would be forgotten.
    """
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
        past = ParentState.none(len(genes))
    else:
        own = read_names(folder / "model", GENES)
        genes, old = _grown_panel(project, stage, own), read_names(folder / "model", LABELS)
        past = ParentState.load(folder, own, config).widened(len(genes))
    sums, batches = stage_sums(project, stage, genes, before)
    new = tuple(label for label in sorted(sums.stages[stage].types) if label not in old)
    validation = project.cells(stage, "validation", genes)
    return ExactTask((*old, *new), genes, validation, past, sums, batches)


def stage_sums(
    project: Project, stage: str, genes: tuple[str, ...], parent: StageSums | None
) -> tuple[StageSums, Sums | None]:
    """Return the sums of a lineage with those of ``stage`` added, and the stage's own by batch.

    Parameters
    ----------
    genes
        The panel that the stage is learned with.
    parent
        The sums of the stages before; None where they begin here, on a basis of the panel.
    """
    known = parent or StageSums(first_basis(project, stage, genes))
    own, batches, missing = added_up(project, stage, known.basis)
    return known.plus(stage, own, missing), batches


def first_basis(project: Project, stage: str, genes: tuple[str, ...]) -> Basis:
    """Return the basis of sums that begin at ``stage``: its panel, and whose cells chose that.

    Where another lineage's was adopted, it is that one.
    """
    if (adopted := adopted_basis(project)) is not None:
        return adopted
    seen = dict.fromkeys((project.config.root_stage, stage))
    chosen = {name: file_digest(project.layout.split(name)) for name in seen}
    grown = genes != tuple(project.panel)
    return Basis(genes, chosen if grown else {project.config.root_stage: chosen[project.config.root_stage]})


def added_up(project: Project, stage: str, basis: Basis) -> tuple[Sums, Sums | None, tuple[str, ...]]:
    """Return the sums of a stage's cells, those by batch where they are kept, and the genes its file lacks.

    Added are all training cells of its split, those in reserve, too. They are read in chunks; types of the
    sums by batch are JSON lists of batch and type.
    """
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


def parent_sums(project: Project, stage: str) -> StageSums | None:
    """Return the sums that a stage's parent keeps; None where it keeps none."""
    name = project.config.stages[stage].parent
    if name == BACKBONE:
        return None
    return StageSums.load(project.layout.model(name), (*project.config.ancestors(stage),))


def _fits(size: int, rows: int, most_mb: float) -> bool:
    """Whether sums of so many features and rows take at most so many megabytes."""
    return rows * size * (size + 3) * 4 <= most_mb * 1e6


def _grown_panel(project: Project, stage: str, genes: tuple[str, ...]) -> tuple[str, ...]:
    """Return the panel that a stage is learned with: its parent's ``genes``, then those that it adds.

    Raises
    ------
    TrainingError
        If the parent's panel does not begin with that of the lineage.
    """
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


def features_kept(project: Project) -> Hooks:
    """Return hooks that name where the project's trainings keep frozen features, and how they compute."""
    compute = project.config.compute
    return Hooks(
        cache_dir=project.layout.features,
        device=find_device(compute.device),
        dtype=compute.dtype,
        cache=project.config.cache,
    )
