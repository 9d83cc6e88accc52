"""Choose lambda and L of one stage by an Optuna study: tuned/<stage>.json, which says so if it has none."""

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from canal.app.pipeline import argument, project_step, run
from canal.app.project import Project
from canal.core.errors import tell
from canal.core.files import scratch_folder, write_json
from canal.registry.store.tracking import StepRun, Trials, log_trials
from canal.registry.versions.history import restore_file
from canal.tuning.document import TUNED_FILE, no_study, trial_times

if TYPE_CHECKING:
    from canal.tuning.study import Study, Watch


def tune(project: Project, logged: StepRun) -> None:
    """Run the study of the stage named by --stage; its trials become runs below this one."""
    from canal.app import choosing, declaring
    from canal.report.collect import draw_tuning

    stage = argument("stage", project.config.stages)
    logged.params(declaring.tuning_of(project, stage).asked() | {"seed": project.config.seed})

    def watching(study: "Study") -> "AbstractContextManager[Watch]":
        logged.tags({"canal.study": (digest := study.plan.digest)})
        return choosing.watch_trials(
            study, lambda done: log_trials(logged, Trials(stage, digest, done, trial_times(study)))
        )

    document = choosing.choose(project, stage, watching)
    write_json(project.layout.tuned(stage), document)
    logged.params({"chosen": document["choice"]})
    logged.metrics(document["objectives"])
    with scratch_folder("tuning") as scratch:
        draw_tuning(document, scratch)
        write_json(scratch / TUNED_FILE, document)
        logged.artifacts(scratch, "tuning")
    chosen = ", ".join(f"{name} {value}" for name, value in document["choice"].items())
    below = ", though no trial reached tuning.min_retention" if document["rule"]["below"] else ""
    best = document["rule"]["passed_over"]
    unsure = "" if best is None else f"; trial {best} is better, but not significantly"
    tell(f"{stage}: chosen {chosen} (trial {document['chosen']} of canal tune show){below}{unsure}")


def main() -> None:
    """Tune as an MLflow Project step, restore the study of a learned stage, or say that there is none."""
    project = Project.open()
    stage = argument("stage", project.config.stages)
    if project.config.study(stage) is None:
        write_json(project.layout.tuned(stage), no_study(stage))
    elif version := project.learned(stage):
        restore_file(project.store, version, TUNED_FILE, project.layout.tuned(stage))
    else:
        project_step(project, "tune", stage, tune)


if __name__ == "__main__":
    run(main)
