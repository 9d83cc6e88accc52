"""The backbone, pretrained by masked expression or imported: models/backbone/ and metrics/backbone/."""

import shutil

from canal.app.import_backbone import adopt
from canal.app.project import Project
from canal.app.step import project_step, run, watch
from canal.config.sections import BACKBONE
from canal.core.files import new_folder, write_json
from canal.registry.facts import stage_facts
from canal.registry.history import require_available, restore_model
from canal.registry.key import write_key
from canal.registry.tracking import StepRun


def learn(project: Project, logged: StepRun) -> None:
    """Write the model folder with its key: an import, or pretrained on the first and extra stages."""
    from canal.app.lessons import corpus
    from canal.continual.pretraining import pretrain
    from canal.model.storage import PRESETS
    from canal.quality.verdict import require_passing

    config, layout = project.config, project.layout
    imported, shape = config.imported_backbone, PRESETS[config.backbone.preset].backbone
    for name in (config.root_stage, *config.backbone.extra_stages):
        require_available(config, name)
        require_passing(layout.verdict(name), project.prepared_digest(name), name)
        logged.dataset(name, layout.prepared(config.stages[name].source) / "cells.h5ad", "pretrain")
    logged.params(config.backbone.model_dump())
    if not config.trains_network:
        history = {"method": "exact", "epochs": []}
    elif imported is None:
        with watch(project, logged, BACKBONE, config.backbone.max_epochs) as hooks:
            backbone, history = pretrain(corpus(project), shape, config.backbone, config.seed, hooks)
    with new_folder(layout.model(BACKBONE)) as folder:
        if imported is not None:
            adopt(project, imported, folder)
        elif config.trains_network:
            backbone.save(folder / "model")
        if imported is None:
            write_json(folder / "history.json", history)
        shutil.copyfile(layout.panel, folder / "panel.json")
        write_key(folder, stage_facts(layout, config, BACKBONE), None if imported is None else imported.key)
    logged.artifacts(layout.model(BACKBONE), "backbone")


def main() -> None:
    """Restore the backbone if it was learned; otherwise learn it as an MLflow Project step."""
    project = Project.open()
    folder = project.layout.model(BACKBONE)
    if version := project.learned(BACKBONE):
        restore_model(project.store, version, folder)
    else:
        project_step(project, "pretrain", BACKBONE, learn)
    with new_folder(project.layout.metrics(BACKBONE)) as metrics:
        shutil.copyfile(folder / "history.json", metrics / "pretraining.json")


if __name__ == "__main__":
    run(main)
