"""Train and evaluate a stage from a project's files with `canal.continual`, with progress and logging."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from canal.app.declaring import LABELS_FILE, chosen_settings
from canal.app.project import Project
from canal.app.tasks import (
    corpus,
    parent_sums,
    stage_sums,
    stage_task,
    sums_task,
    training_hooks,
    why_unavailable,
)
from canal.config.sections import BACKBONE, Continual
from canal.continual import evaluation as measures
from canal.continual.bank import PROBE, ParentState, Probe
from canal.continual.cells import LabelledCells
from canal.continual.combining import held_out_types
from canal.continual.evaluation import EVALUATION, Evaluation, Examination, evaluate
from canal.continual.exact_learner import ExactLearner
from canal.continual.fit import Hooks
from canal.continual.held_out_heads import HeadCells, held_out_type_heads
from canal.continual.pretraining import pretrain
from canal.continual.stage import StageArtifacts, finish, finish_exact
from canal.continual.trainer import learn_stage
from canal.core.errors import CanalError, HistoryError, tell, visible
from canal.core.files import read_json
from canal.core.progress import percent
from canal.memory.answer import ExactAnnotator
from canal.memory.stage_sums import StageSums
from canal.model.annotator import GENES, Annotator
from canal.model.backbone import Backbone
from canal.model.combined import CombinedAnnotator
from canal.model.load import CellAnnotator, load_model, method_of
from canal.model.storage import PRESETS, read_names
from canal.registry.manifest.stage_request import request_digest
from canal.registry.manifest.version_folder import key_digest, read_key
from canal.registry.store.database import Version
from canal.registry.store.tracking import StepRun, epoch_numbers
from canal.report.terminal import learning_progress
from canal.tuning.document import TUNED_FILE, settings_of


def pretrain_backbone(project: Project, logged: StepRun) -> tuple[Backbone, dict[str, Any]]:
    """Pretrain the backbone on stages and corpora; return it and its history. Epochs are logged."""
    settings = project.config.backbone
    with watch_training(project, logged, BACKBONE, settings.max_epochs) as hooks:
        shape = PRESETS[settings.preset].backbone
        return pretrain(corpus(project), shape, settings, project.config.seed, hooks)


def train_stage(project: Project, logged: StepRun, stage: str, settings: Continual) -> StageArtifacts:
    """Learn a stage by network, sums or both; return its artifacts. Epochs are shown and logged."""
    if project.config.stages[stage].merged is not None:
        raise HistoryError(
            f"stage {stage!r} was merged with another lineage, whose sums cannot be learned here: bring the "
            "registry or the models/ folder that holds its version (dvc pull, canal registry sync), or merge "
            "again: take `merged` out of params.yaml, set the branch back, and call canal merge"
        )
    parent = project.config.stages[stage].parent
    if parent != BACKBONE and project.config.stages[parent].merged is not None and settings.method == "exact":
        tell(f"{stage}: {parent} was merged without a network: there is no teacher, sums alone are learned")
    if settings.method != "exact":
        return _train_network(project, logged, stage, settings)
    return finish_exact(stage, sums_task(project, stage), project.config)


def _train_network(project: Project, logged: StepRun, stage: str, settings: Continual) -> StageArtifacts:
    """Train the network of a stage; by the combined method, add its sums."""
    task, parent_state = stage_task(project, stage, settings.bank_size)
    sums, batches = None, None
    if settings.method == "combined":
        sums, batches = stage_sums(project, stage, task.genes, parent_sums(project, stage))
    with watch_training(project, logged, stage, settings.max_epochs) as hooks:
        learned = learn_stage(task, settings, hooks)
        artifacts = finish(task, learned, parent_state, project.config, hooks, sums)
    return replace(artifacts, batches=batches)


def follow(project: Project, stage: str) -> None:
    """Learn beside the first of torchrun's processes, which alone writes, logs and shows what is learned.

    ``stage`` may be the backbone. Nothing is to be done where no network is learned, or one is restored.
    """
    config = project.config
    if project.learned(stage):
        return
    torch.set_num_threads(config.threads)
    hooks = replace(training_hooks(project), checkpoint_dir=_checkpoints(project, stage))
    if stage == BACKBONE:
        if config.trains_network and config.imported_backbone is None:
            shape = PRESETS[config.backbone.preset].backbone
            pretrain(corpus(project), shape, config.backbone, config.seed, hooks)
        return
    settings = chosen_settings(project, stage)
    if settings.method != "exact" and config.stages[stage].merged is None:
        learn_stage(stage_task(project, stage, settings.bank_size)[0], settings, hooks)


def _checkpoints(project: Project, stage: str) -> Path:
    """Return the folder of a training's checkpoints, which its request names."""
    return project.layout.training(f"{stage}-{request_digest(project.config, stage)[:16]}")


@contextmanager
def watch_training(project: Project, logged: StepRun, stage: str, max_epochs: int) -> Iterator[Hooks]:
    """Yield hooks that show and log epochs, and keep checkpoints until the block succeeds.

    Checkpoints are in ``.canal/`` under the stage's request, since DVC deletes a stage's outs before it
    reruns the stage: a killed training resumes from them. Cached features are kept for later stages.
    """
    scratch = _checkpoints(project, stage)
    with learning_progress(f"{stage}: training", max_epochs) as (bar, task):

        def show(epoch: dict[str, Any]) -> None:
            numbers = {name: value for name, value in epoch_numbers(epoch) if name != "epoch"}
            logged.metrics(numbers, int(epoch["epoch"]))
            line = f"{stage}: epoch {epoch['epoch']} of at most {max_epochs}, " + ", ".join(
                f"{name} {numbers[name]:.4g}" for name in _SHOWN if name in numbers
            )
            bar.update(task, completed=epoch["epoch"], description=line)
            if not bar.console.is_terminal:
                tell(line)

        yield replace(
            training_hooks(project),
            on_epoch=show,
            checkpoint_dir=scratch,
            on_notice=lambda notice: bar.console.print(
                visible(f"{stage}: {notice}"), soft_wrap=True, markup=False
            ),
        )
    shutil.rmtree(scratch, ignore_errors=True)


_SHOWN = ("loss", "held_out_loss", "validation_accuracy", "score")


def evaluate_stage(project: Project, stage: str) -> Evaluation:
    """Return the evaluation of a stage's model: test cells of every stage so far, and held-out types."""
    annotator = load_model(project.layout.model(stage) / "model")
    exam = examination(project, stage)
    novelty = evaluate_novelty(project, stage, annotator, exam)
    evaluation = evaluate(annotator, exam, novelty, project.config.seed)
    alone = _accuracy_alone(project.layout.model(stage) / "model", exam)
    return replace(evaluation, document=evaluation.document | alone)


def _accuracy_alone(folder: Path, exam: Examination) -> dict[str, Any]:
    """Return the accuracy of the network alone and of the sums alone, for a combined model."""
    if method_of(folder) != "combined":
        return {}
    sides: dict[str, CellAnnotator] = {
        "network": Annotator.load(folder),
        "sums": ExactAnnotator.load(folder / "exact"),
    }
    accuracies = {
        name: {
            stage: measures.accuracy(
                cells.cell_types,
                side.without(exam.missing.get(stage, ())).predict(cells.expression).labels,
            )
            for stage, cells in exam.measured.items()
        }
        for name, side in sides.items()
    }
    return {"alone": accuracies}


def evaluate_novelty(
    project: Project, stage: str, annotator: CellAnnotator, exam: Examination
) -> dict[str, Any]:
    """Return how well the stage's model detects types that were held out."""
    config, cells, hooks = project.config, held_out_cells(project, stage, exam), training_hooks(project)
    if isinstance(annotator, Annotator):
        return held_out_type_heads(annotator, cells, config.novelty, config.seed, hooks)
    assert isinstance(annotator, ExactAnnotator | CombinedAnnotator)  # noqa: S101 - loaded in full
    sums = StageSums.load(project.layout.model(stage), config.summed_stages(stage))
    assert sums is not None  # noqa: S101 - its method keeps them
    learner = ExactLearner(sums, config.memory, config.novelty)
    return held_out_types(annotator, learner, cells, config.seed, hooks)


def measure_again(project: Project, version: Version) -> dict[str, Any] | None:
    """Return how well a registered version notices the types that params.yaml holds out now.

    Nothing of the version is trained or changed. None, after a notice that says why, where the cells that it
    was learned from are not here: its earlier measurement stays.
    """
    stage, layout = version.stage, project.layout
    torch.set_num_threads(project.config.threads)
    try:
        if key_digest(layout.model(stage)) != version.key:
            raise HistoryError(f"models/{stage} is not version {version.number}: `dvc checkout` restores it")
        if why := why_unavailable(project, stage, read_key(layout.model(stage))):
            raise HistoryError(why)
        annotator = load_model(layout.model(stage) / "model")
        novelty = evaluate_novelty(project, stage, annotator, examination(project, stage))
    except CanalError as error:
        tell(
            f"{stage}: novelty.holdouts asks for other types than version {version.number} was measured on, "
            f"and it cannot be measured again: {error}. Its measurement stays as it is"
        )
        return None
    scores = ", ".join(f"{one['type']} {percent(one['h_score'])}" for one in novelty["holdouts"])
    what = f"version {version.number} measured again, nothing learned"
    tell(f"{stage}: {what}: H-score of {scores or 'no type'}")
    return novelty


def examination(project: Project, stage: str) -> Examination:
    """Return the cells that a stage's model is evaluated on: test cells of every stage so far, and probes."""
    config, layout, genes = project.config, project.layout, _panel_of(project, stage)
    parent = config.stages[stage].parent
    earlier = [] if parent == BACKBONE else read_json(layout.metrics(parent) / EVALUATION)["matrix"]
    stages = (*config.ancestors(stage), stage)
    sums = StageSums.load(
        layout.model(stage), config.summed_stages(stage)
    )  # for the genes that each stage's file lacks
    return Examination(
        tests={
            name: project.cells(name, "test", genes) if project.available(name) else None for name in stages
        },
        earlier=earlier,
        probe=Probe.load(layout.model(stage) / PROBE, genes).cells,
        missing={} if sums is None else sums.missing,
        parent=None if parent == BACKBONE else load_model(layout.model(parent) / "model"),
    )


def held_out_cells(project: Project, stage: str, exam: Examination) -> HeadCells:
    """Return the cells of held-out-type heads: training cells of the stage, validation and test cells."""
    if project.config.learning(stage).method == "exact":
        return _sums_held_out_cells(project, stage, exam)
    settings = settings_of(project.config, stage, project.layout.model(stage) / TUNED_FILE)
    task, _ = stage_task(project, stage, settings.bank_size, _panel_of(project, stage))
    nothing = LabelledCells.empty(len(task.genes))
    return HeadCells(
        train=LabelledCells.concatenate([task.train, task.replay]),
        validation=LabelledCells.concatenate([task.validation, task.probe]),
        test=LabelledCells.concatenate([nothing, *exam.measured.values()]),
    )


def _sums_held_out_cells(project: Project, stage: str, exam: Examination) -> HeadCells:
    """Return the cells of `held_out_cells` for a stage learned by sums alone."""
    genes, parent = _panel_of(project, stage), project.config.stages[stage].parent
    nothing = LabelledCells.empty(len(genes))
    probe = nothing
    if parent != BACKBONE:
        folder = project.layout.model(parent)
        own = read_names(folder / "model", GENES)
        probe = ParentState.load(folder, own, project.config).widened(len(genes)).probe.cells
    return HeadCells(
        train=LabelledCells.concatenate([project.cells(stage, "train", genes), probe]),
        validation=LabelledCells.concatenate([project.cells(stage, "validation", genes), probe]),
        test=LabelledCells.concatenate([nothing, *exam.measured.values()]),
    )


def _panel_of(project: Project, stage: str) -> tuple[str, ...]:
    """Return the genes that a learned stage's model reads."""
    return read_names(project.layout.model(stage) / "model", GENES)


def keep_inputs(project: Project, stage: str, folder: Path) -> None:
    """Copy a stage's split, verdicts and study beside its model, to restore them where its data are gone."""
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
