"""A stage's model measured: from a project's files to `canal.continual.evaluation`."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from canal.app.project import Project

if TYPE_CHECKING:
    from canal.continual.evaluation import Evaluation, Examination
    from canal.model.load import CellAnnotator


def measured(project: Project, stage: str) -> "Evaluation":
    """Return how a stage's model does on the test cells of every stage so far, and on held-out types."""
    from canal.app.lessons import examination
    from canal.continual.evaluation import evaluate
    from canal.model.load import load_model

    annotator = load_model(project.layout.model(stage) / "model")
    exam = examination(project, stage)
    found = evaluate(annotator, exam, noticed(project, stage, annotator, exam), project.config.seed)
    alone = _alone(project.layout.model(stage) / "model", exam)
    return replace(found, document=found.document | alone)


def _alone(folder: Path, exam: "Examination") -> dict[str, Any]:
    """Return the accuracy of network and of sums alone on each stage, where a version is of both."""
    from canal.continual.evaluation import accuracy
    from canal.memory.answer import ExactAnnotator
    from canal.model.annotator import Annotator
    from canal.model.load import CellAnnotator, method_of

    if method_of(folder) != "combined":
        return {}
    sides: dict[str, CellAnnotator] = {
        "network": Annotator.load(folder),
        "sums": ExactAnnotator.load(folder / "exact"),
    }
    found = {
        name: {
            stage: accuracy(
                cells.cell_types,
                side.without(exam.missing.get(stage, ())).predict(cells.expression).labels,
            )
            for stage, cells in exam.measured.items()
        }
        for name, side in sides.items()
    }
    return {"alone": found}


def noticed(project: Project, stage: str, annotator: "CellAnnotator", exam: "Examination") -> dict[str, Any]:
    """Return how well types that were held out are noticed by the stage's model."""
    from canal.app.lessons import features_kept, shadow_cells
    from canal.continual.combining import held_out_types
    from canal.continual.shadow import shadow_heads
    from canal.memory.answer import ExactAnnotator
    from canal.memory.stage_sums import StageSums
    from canal.model.annotator import Annotator
    from canal.model.combined import CombinedAnnotator

    config, cells, kept = project.config, shadow_cells(project, stage, exam), features_kept(project)
    if isinstance(annotator, Annotator):
        return shadow_heads(annotator, cells, config.novelty, config.seed, kept)
    assert isinstance(annotator, ExactAnnotator | CombinedAnnotator)  # noqa: S101 - loaded in full
    sums = StageSums.load(project.layout.model(stage), (*config.ancestors(stage), stage))
    assert sums is not None  # noqa: S101 - its method keeps them
    return held_out_types(annotator, sums, cells, config.memory, config.novelty, config.seed, kept)
