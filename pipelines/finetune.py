"""Learn one stage on top of its parent, by network, sums or both: models/<stage>/."""

from canal.app.pipeline import argument, followed, project_step, run
from canal.app.project import Project
from canal.core.files import new_folder
from canal.registry.manifest.stage_request import stage_facts, sums_facts
from canal.registry.manifest.version_folder import key_digest, write_key
from canal.registry.store.tracking import StepRun
from canal.registry.versions.history import require_available, restore_model


def learn(project: Project, logged: StepRun) -> None:
    """Learn the stage named by --stage and write its model folder with its key."""
    from canal.app.declaring import chosen_settings
    from canal.app.learning import keep_inputs, train_stage
    from canal.quality.verdict import require_passing

    stage = argument("stage", project.config.stages)
    config, layout = project.config, project.layout
    require_available(config, stage)
    require_passing(layout.verdict(stage), project.prepared_digest(stage), stage)
    settings = chosen_settings(project, stage)
    parent = layout.model(config.stages[stage].parent)
    logged.params(settings.model_dump() | {"seed": config.seed, "parent": parent.name})
    logged.dataset(stage, layout.prepared(config.stages[stage].source) / "cells.h5ad", "finetune")
    artifacts = train_stage(project, logged, stage, settings)
    with new_folder(layout.model(stage)) as folder:
        artifacts.save(folder)
        keep_inputs(project, stage, folder)
        facts = stage_facts(layout, config, stage)
        write_key(folder, facts | sums_facts(artifacts.sums), key_digest(parent))
    if artifacts.network_weight is not None:
        logged.metrics({"network_weight": artifacts.network_weight})
    logged.artifacts(layout.model(stage), "stage")


def main() -> None:
    """Restore the stage if it was learned; otherwise learn it as an MLflow Project step."""
    project = Project.open()
    stage = argument("stage", project.config.stages)
    if followed(project, stage):
        return
    if version := project.learned(stage):
        restore_model(project.store, version, project.layout.model(stage))
    else:
        project_step(project, "finetune", stage, learn)


if __name__ == "__main__":
    run(main)
