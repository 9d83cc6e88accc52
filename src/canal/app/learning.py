"""A stage learned and measured: from a project's files to `canal.continual`, with progress shown."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from canal.app.declaring import LABELS_FILE
from canal.app.project import Project
from canal.app.tasks import corpus, exact_lesson, features_kept, lesson, parent_sums, stage_sums
from canal.config.sections import BACKBONE, Continual
from canal.continual import evaluation as measures
from canal.continual.bank import PROBE, Probe
from canal.continual.cells import LabelledCells
from canal.continual.combining import held_out_types
from canal.continual.evaluation import EVALUATION, Evaluation, Examination, evaluate
from canal.continual.exact_learner import ExactLearner
from canal.continual.fit import Hooks
from canal.continual.held_out_heads import HeadCells, held_out_type_heads
from canal.continual.pretraining import pretrain
from canal.continual.stage import StageArtifacts, finish, finish_exact
from canal.continual.task import ParentState
from canal.continual.trainer import learn_stage
from canal.core.errors import tell, visible
from canal.core.files import read_json
from canal.memory.answer import ExactAnnotator
from canal.memory.stage_sums import StageSums
from canal.model.annotator import GENES, Annotator
from canal.model.backbone import Backbone
from canal.model.combined import CombinedAnnotator
from canal.model.load import CellAnnotator, load_model, method_of
from canal.model.storage import PRESETS, read_names
from canal.registry.manifest.pages import epoch_numbers
from canal.registry.manifest.stage_request import request_digest
from canal.registry.store.tracking import StepRun
from canal.tuning.document import TUNED_FILE, settings_of


def pretrained(project: Project, logged: StepRun) -> tuple[Backbone, dict[str, Any]]:
    """Return the backbone pretrained on the first and extra stages, and its epochs, shown and logged."""
    settings = project.config.backbone
    with watch(project, logged, BACKBONE, settings.max_epochs) as hooks:
        shape = PRESETS[settings.preset].backbone
        return pretrain(corpus(project), shape, settings, project.config.seed, hooks)


def learned_stage(project: Project, logged: StepRun, stage: str, settings: Continual) -> StageArtifacts:
    """Return a stage as network, sums or both learned it; epochs of a training are shown and logged."""
    if settings.method != "exact":
        return _trained(project, logged, stage, settings)
    return finish_exact(stage, exact_lesson(project, stage), project.config)


def _trained(project: Project, logged: StepRun, stage: str, settings: Continual) -> StageArtifacts:
    """Return the stage as a network learned it; by the combined method, with its sums."""
    task, past = lesson(project, stage, settings.bank_size)
    sums, batches = None, None
    if settings.method == "combined":
        sums, batches = stage_sums(project, stage, task.genes, parent_sums(project, stage))
    with watch(project, logged, stage, settings.max_epochs) as hooks:
        learned = learn_stage(task, settings, hooks)
        finished = finish(task, learned, past, project.config, hooks, sums)
    return replace(finished, batches=batches)


@contextmanager
def watch(project: Project, logged: StepRun, stage: str, max_epochs: int) -> Iterator[Hooks]:
    """Show a training's epochs and log them; keep its checkpoints until the block ends well.

    They lie in ``.canal/`` under the stage's request, since DVC deletes a stage's outs before it reruns it:
    what was killed goes on where it was. Frozen features stay: the next stage needs those of the bank.
    """
    scratch = project.layout.training(f"{stage}-{request_digest(project.config, stage)[:16]}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(stage, total=max_epochs)

        def show(epoch: dict[str, Any]) -> None:
            numbers = {name: value for name, value in epoch_numbers(epoch) if name != "epoch"}
            logged.metrics(numbers, int(epoch["epoch"]))
            line = f"{stage}: epoch {epoch['epoch']}, " + ", ".join(
                f"{name} {numbers[name]:.4g}" for name in _SHOWN if name in numbers
            )
            bar.update(task, completed=epoch["epoch"], description=line)
            if not console.is_terminal:
                tell(line)

        yield replace(
            features_kept(project),
            on_epoch=show,
            checkpoint_dir=scratch,
            on_notice=lambda notice: console.print(
                visible(f"{stage}: {notice}"), soft_wrap=True, markup=False
            ),
        )
    shutil.rmtree(scratch, ignore_errors=True)


_SHOWN = ("loss", "held_out_loss", "validation_accuracy", "score")


def measured(project: Project, stage: str) -> Evaluation:
    """Return how a stage's model does on the test cells of every stage so far, and on held-out types."""
    annotator = load_model(project.layout.model(stage) / "model")
    exam = examination(project, stage)
    found = evaluate(annotator, exam, noticed(project, stage, annotator, exam), project.config.seed)
    alone = _alone(project.layout.model(stage) / "model", exam)
    return replace(found, document=found.document | alone)


def _alone(folder: Path, exam: Examination) -> dict[str, Any]:
    """Return the accuracy of network and of sums alone on each stage, where a version is of both."""
    if method_of(folder) != "combined":
        return {}
    sides: dict[str, CellAnnotator] = {
        "network": Annotator.load(folder),
        "sums": ExactAnnotator.load(folder / "exact"),
    }
    found = {
        name: {
            stage: measures.accuracy(
                cells.cell_types,
                side.without(exam.missing.get(stage, ())).predict(cells.expression).labels,
            )
            for stage, cells in exam.measured.items()
        }
        for name, side in sides.items()
    }
    return {"alone": found}


def noticed(project: Project, stage: str, annotator: CellAnnotator, exam: Examination) -> dict[str, Any]:
    """Return how well types that were held out are noticed by the stage's model."""
    config, cells, kept = project.config, shadow_cells(project, stage, exam), features_kept(project)
    if isinstance(annotator, Annotator):
        return held_out_type_heads(annotator, cells, config.novelty, config.seed, kept)
    assert isinstance(annotator, ExactAnnotator | CombinedAnnotator)  # noqa: S101 - loaded in full
    sums = StageSums.load(project.layout.model(stage), (*config.ancestors(stage), stage))
    assert sums is not None  # noqa: S101 - its method keeps them
    learner = ExactLearner(sums, config.memory, config.novelty)
    return held_out_types(annotator, learner, cells, config.seed, kept)


def examination(project: Project, stage: str) -> Examination:
    """Return what a stage's model is measured on: test cells of every stage so far, and all probes."""
    config, layout, genes = project.config, project.layout, _panel_of(project, stage)
    parent = config.stages[stage].parent
    earlier = [] if parent == BACKBONE else read_json(layout.metrics(parent) / EVALUATION)["matrix"]
    stages = (*config.ancestors(stage), stage)
    sums = StageSums.load(layout.model(stage), stages)  # they tell which genes each stage's file lacks
    return Examination(
        tests={
            name: project.cells(name, "test", genes) if project.available(name) else None for name in stages
        },
        earlier=earlier,
        probe=Probe.load(layout.model(stage) / PROBE, genes).cells,
        missing={} if sums is None else sums.missing,
        parent=None if parent == BACKBONE else load_model(layout.model(parent) / "model"),
    )


def shadow_cells(project: Project, stage: str, exam: Examination) -> HeadCells:
    """Return what shadow heads learn from: what the stage was trained on, and what measures it."""
    if project.config.learning(stage).method == "exact":
        return _exact_shadow_cells(project, stage, exam)
    settings = settings_of(project.config, stage, project.layout.model(stage) / TUNED_FILE)
    task, _ = lesson(project, stage, settings.bank_size, _panel_of(project, stage))
    nothing = LabelledCells.empty(len(task.genes))
    return HeadCells(
        train=LabelledCells.concatenate([task.train, task.replay]),
        validation=LabelledCells.concatenate([task.validation, task.probe]),
        test=LabelledCells.concatenate([nothing, *exam.measured.values()]),
    )


def _exact_shadow_cells(project: Project, stage: str, exam: Examination) -> HeadCells:
    """Return as `shadow_cells` does for a stage of sums, which keep what they learned from themselves."""
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
    """Copy a stage's split, verdicts and choice beside its model: it is restored where its data are gone."""
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
