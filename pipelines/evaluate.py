"""Evaluate a stage's model on the test cells of every stage so far: metrics/<stage>/, scores/<stage>/."""

from canal.app.pipeline import argument, project_step, run
from canal.app.project import Project
from canal.core.errors import tell
from canal.core.files import new_folder
from canal.registry.manifest.pages import measures
from canal.registry.manifest.version_folder import key_digest
from canal.registry.store.tracking import StepRun
from canal.registry.versions.history import measured_as_asked, restore_metrics
from canal.report.collect import write_scores


def measure(project: Project, logged: StepRun) -> None:
    """Evaluate the stage named by --stage and log its metrics and figures."""
    from canal.app.cell_layout import lay_out
    from canal.app.learning import evaluate_stage
    from canal.continual.evaluation import write_evaluation
    from canal.report.collect import draw_figures

    stage = argument("stage", project.config.stages)
    layout = project.layout
    evaluation = evaluate_stage(project, stage)
    with new_folder(layout.metrics(stage)) as folder:
        write_evaluation(folder, evaluation)
    write_scores(layout, project.config, stage)
    document = evaluation.document
    logged.metrics(measures(document))
    figures = layout.figures(key_digest(layout.model(stage)))
    with new_folder(figures) as folder:
        draw_figures(layout, stage, folder)
    logged.artifacts(layout.metrics(stage), "metrics")
    logged.artifacts(layout.scores(stage), "scores")  # README.md, the model card, among them
    logged.artifacts(figures, "figures")
    row = (f"{name} {value:.3f}" for name, value in document["row"].items() if value is not None)
    lay_out(project, stage)
    tell(f"{stage}: accuracy on test cells of {', '.join(row)}")


def main() -> None:
    """Restore the metrics of a registered version, measured again where params.yaml holds out other types.

    A stage without a version is evaluated as an MLflow Project step.
    """
    project = Project.open()
    stage = argument("stage", project.config.stages)
    if version := project.learned(stage):
        novelty = measured_as_asked(project.store, version, project.config.novelty.holdouts)
        if novelty is None:
            from canal.app.learning import measure_again

            novelty = measure_again(project, version)
        restore_metrics(project.store, version, project.layout.metrics(stage), novelty)
        write_scores(project.layout, project.config, stage)
    else:
        project_step(project, "evaluate", stage, measure)


if __name__ == "__main__":
    run(main)
