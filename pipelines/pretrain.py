"""Pretrain the backbone by masked expression: models/backbone/ and metrics/backbone/."""

import shutil

from canal.config import BACKBONE
from canal.continual.pretraining import pretrain
from canal.files import new_folder, write_json
from canal.project import Project
from canal.quality.verdict import require_passing
from canal.registry.facts import stage_facts
from canal.registry.history import require_available
from canal.registry.key import write_key
from canal.registry.tracking import StepRun
from canal.step import project_step, run


def learn(project: Project, logged: StepRun) -> None:
    """Pretrain on the first stage's training cells and write the model folder with its key."""
    config, layout = project.config, project.layout
    require_available(config, config.root_stage)
    require_passing(layout.verdict(config.root_stage), project.prepared_digest(config.root_stage), config.root_stage)
    lesson = project.pretraining()
    logged.params(config.backbone.model_dump())
    logged.inputs(project, config.root_stage)
    learned = pretrain(lesson, config.backbone, project.hooks(BACKBONE, logged))
    with new_folder(layout.model(BACKBONE)) as folder:
        learned.backbone.save(folder / "model")
        write_json(folder / "history.json", learned.history)
        shutil.copyfile(layout.panel, folder / "panel.json")
        write_key(folder, stage_facts(layout, config, BACKBONE), parent=None)
    logged.artifacts(layout.model(BACKBONE), "backbone")


def main() -> None:
    """Restore the backbone if it was learned; otherwise learn it as an MLflow Project step."""
    project = Project.open()
    metrics = project.layout.metrics(BACKBONE)
    project_step(project, "pretrain", BACKBONE, learn)
    metrics.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(project.layout.model(BACKBONE) / "history.json", metrics / "pretraining.json")


if __name__ == "__main__":
    run(main)
