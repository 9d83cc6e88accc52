"""Pretrain the backbone by masked expression, or take an import: models/backbone/ and metrics/backbone/."""

import shutil

from canal.app.beginning import adopt_backbone
from canal.app.pipeline import followed, project_step, run
from canal.app.project import Project
from canal.config.sections import BACKBONE
from canal.core.files import new_folder, write_json
from canal.registry.manifest.stage_request import stage_facts, unused_settings
from canal.registry.manifest.version_folder import write_key
from canal.registry.store.tracking import StepRun
from canal.registry.versions.history import require_available, restore_model


def learn(project: Project, logged: StepRun) -> None:
    """Write the backbone's folder with its key: an import, or pretrained on stages and unlabelled cells."""
    from canal.app.learning import pretrain_backbone
    from canal.quality.verdict import require_passing

    config, layout, imported = project.config, project.layout, project.config.imported_backbone
    for name in (config.root_stage, *config.backbone.extra_stages):
        require_available(config, name)
        require_passing(layout.verdict(name), project.prepared_digest(name), name)
        logged.dataset(name, layout.prepared(config.stages[name].source) / "cells.h5ad", "pretrain")
    logged.params(config.backbone.model_dump(exclude=unused_settings(config)))
    history = {"method": "exact", "epochs": []}
    if config.trains_network and imported is None:
        backbone, history = pretrain_backbone(project, logged)
    with new_folder(layout.model(BACKBONE)) as folder:
        if imported is not None:
            adopt_backbone(project, imported, folder)
        elif config.trains_network:
            backbone.save(folder / "model")
        if imported is None:
            write_json(folder / "history.json", history)
        shutil.copyfile(layout.panel, folder / "panel.json")
        for name in config.backbone.unlabelled:  # what it saw is known as long as the version is
            shutil.copytree(layout.corpus / name, folder / "corpus" / name)
            logged.dataset(name, layout.prepared(name) / "cells.h5ad", "pretrain")
        write_key(folder, stage_facts(layout, config, BACKBONE), None if imported is None else imported.key)
    logged.artifacts(layout.model(BACKBONE), "backbone")


def main() -> None:
    """Restore the backbone if it was learned; otherwise learn it as an MLflow Project step."""
    project = Project.open()
    folder = project.layout.model(BACKBONE)
    if followed(project, BACKBONE):
        return
    if version := project.learned(BACKBONE):
        restore_model(project.store, version, folder)
    else:
        project_step(project, "pretrain", BACKBONE, learn)
    with new_folder(project.layout.metrics(BACKBONE)) as metrics:
        shutil.copyfile(folder / "history.json", metrics / "pretraining.json")


if __name__ == "__main__":
    run(main)
