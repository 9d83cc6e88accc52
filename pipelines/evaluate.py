"""Measure one stage's model on the test cells of every stage so far: metrics/<stage>/."""

from typing import TYPE_CHECKING, Any

from canal.files import new_folder
from canal.project import Project
from canal.registry.history import restore_metrics
from canal.registry.key import key_digest
from canal.registry.tracking import StepRun
from canal.step import argument, project_step, run, say

if TYPE_CHECKING:
    from canal.continual.evaluation import Examination
    from canal.model.load import CellAnnotator


def measure(project: Project, logged: StepRun) -> None:
    """Evaluate the stage named by --stage and log its figures."""
    from canal.continual.evaluation import evaluate, write_evaluation
    from canal.lessons import examination
    from canal.model.load import load_model
    from canal.report.collect import draw_figures

    stage = argument("stage", project.config.stages)
    layout, config = project.layout, project.config
    annotator = load_model(layout.model(stage) / "model")
    exam = examination(project, stage)
    evaluation = evaluate(annotator, exam, noticed(project, stage, annotator, exam), config.seed)
    with new_folder(layout.metrics(stage)) as folder:
        write_evaluation(folder, evaluation)
    found = evaluation.document
    logged.metrics({f"accuracy.{name}": value for name, value in found["row"].items()})
    logged.metrics({name: found[name] for name in ("average_accuracy", "forgetting", "backward_transfer")})
    logged.metrics({"h_score": found["novelty"]["h_score"], "auroc": found["novelty"]["auroc"]})
    if found["calibration"]:
        before = found["calibration"]["uncalibrated"]
        logged.metrics({"ece": found["calibration"]["ece"], "ece_uncalibrated": before["ece"]})
    figures = layout.figures(key_digest(layout.model(stage)))
    with new_folder(figures) as folder:
        draw_figures(layout, stage, folder)
    logged.artifacts(layout.metrics(stage), "metrics")
    logged.artifacts(figures, "figures")
    row = (f"{name} {value:.3f}" for name, value in found["row"].items() if value is not None)
    say(f"{stage}: accuracy on test cells of {', '.join(row)}")


def noticed(project: Project, stage: str, annotator: "CellAnnotator", exam: "Examination") -> dict[str, Any]:
    """Return how well types that were held out are noticed by the stage's model."""
    from canal.continual.holdouts import held_out_types
    from canal.continual.shadow import shadow_heads
    from canal.lessons import features_kept, shadow_cells
    from canal.memory.answer import ExactAnnotator
    from canal.memory.stages import StageSums
    from canal.model.annotator import Annotator
    from canal.model.combined import CombinedAnnotator

    config, cells, kept = project.config, shadow_cells(project, stage, exam), features_kept(project)
    if isinstance(annotator, Annotator):
        return shadow_heads(annotator, cells, config.novelty, config.seed, kept)
    assert isinstance(annotator, ExactAnnotator | CombinedAnnotator)  # noqa: S101 - loaded in full
    stages = (*config.ancestors(stage), stage)
    sums = StageSums.load(project.layout.model(stage), stages)
    assert sums is not None  # noqa: S101 - its method keeps them
    return held_out_types(annotator, sums, cells, config.memory, config.novelty, config.seed, kept)


def main() -> None:
    """Restore the measures of a registered version; otherwise measure as an MLflow Project step."""
    project = Project.open()
    stage = argument("stage", project.config.stages)
    if version := project.learned(stage):
        restore_metrics(project.store, version, project.layout.metrics(stage))
    else:
        project_step(project, "evaluate", stage, measure)


if __name__ == "__main__":
    run(main)
