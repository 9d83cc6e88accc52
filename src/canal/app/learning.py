"""A stage learned by its method: from a project's files to `canal.continual.stage`."""

from dataclasses import replace
from typing import TYPE_CHECKING

from canal.app.project import Project
from canal.app.step import watch

if TYPE_CHECKING:
    from canal.config.sections import Continual
    from canal.continual.stage import Finished
    from canal.registry.store.tracking import StepRun


def learned_stage(project: Project, logged: "StepRun", stage: str, settings: "Continual") -> "Finished":
    """Return a stage as network, sums or both learned it; epochs of a training are shown and logged."""
    if settings.method == "exact":
        return _by_sums(project, stage)
    return _trained(project, logged, stage, settings)


def _trained(project: Project, logged: "StepRun", stage: str, settings: "Continual") -> "Finished":
    """Return the stage as a network learned it; by the combined method, with its sums."""
    from canal.app.lessons import lesson, parent_sums, stage_sums
    from canal.continual.stage import finish
    from canal.continual.trainer import learn_stage

    task, past = lesson(project, stage, settings.bank_size)
    sums, batches = None, None
    if settings.method == "combined":
        sums, batches = stage_sums(project, stage, task.genes, parent_sums(project, stage))
    with watch(project, logged, stage, settings.max_epochs) as hooks:
        learned = learn_stage(task, settings, hooks)
        finished = finish(task, learned, past, project.config, hooks, sums)
    return replace(finished, batches=batches)


def _by_sums(project: Project, stage: str) -> "Finished":
    """Return the stage as sums alone learned it: no network is trained, no training cell is kept."""
    from canal.app.lessons import exact_lesson
    from canal.continual.stage import finish_exact

    task = exact_lesson(project, stage)
    finished = finish_exact(
        stage, task.labels, task.genes, task.validation, task.past, task.sums, project.config
    )
    return replace(finished, batches=task.batches)
