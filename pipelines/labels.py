"""Compare a stage's labels with the predictions of its parent's model, and warn: labels/<stage>.json."""

from typing import TYPE_CHECKING

from canal.app.declaring import LABELS_FILE, ask_parent, contradicted
from canal.app.pipeline import argument, run
from canal.app.project import Project
from canal.core.errors import tell
from canal.quality.gate import cells_to_compare, check_labels, label_rule, write_labels
from canal.registry.manifest.version_folder import read_key
from canal.registry.versions.history import require_available, restore_file

if TYPE_CHECKING:
    from canal.registry.store.database import Version


def restore(project: Project, stage: str, version: "Version") -> None:
    """Restore the result from when ``stage`` was learned; empty for versions older than this check."""
    target = project.layout.labels(stage)
    if LABELS_FILE in read_key(project.store.artifacts(version))["files"]:
        restore_file(project.store, version, LABELS_FILE, target)
    else:
        write_labels(target, stage, project.config.stages[stage].parent, 0, None)


def check(project: Project, stage: str) -> None:
    """Compare labels with the parent's predictions for training and validation cells; a backbone has none."""
    config, target = project.config, project.layout.labels(stage)
    parent, ask = config.stages[stage].parent, ask_parent(project, stage)
    if ask is None:
        write_labels(target, stage, parent, 0, None)
        return
    require_available(config, stage)
    split, prepared = project.split(stage), project.prepared(stage)
    ids = split["cell_id"][split["set"] != "test"].astype(str)
    cells = cells_to_compare(prepared, ids)
    rule = label_rule(config.stages[stage].source, parent, config.gate.max_confused)
    docs = project.layout.data_docs(f"{stage}-labels")
    result = check_labels(ask(prepared, cells), rule, f"{stage}-labels", docs)
    contradictions = contradicted(project, stage, list(ids))
    write_labels(target, stage, parent, len(cells), result, contradictions)
    for rule_result in (result, *(() if contradictions is None else (contradictions[1],))):
        for example in rule_result.examples if not rule_result.passed else ():
            tell(f"{stage}: warning: {example}")
        if not rule_result.passed:
            tell(f"{stage}: {rule_result.hint}")


def main() -> None:
    """Restore the result if the stage was learned; otherwise compare."""
    project = Project.open()
    stage = argument("stage", project.config.stages)
    if version := project.learned(stage):
        restore(project, stage, version)
    else:
        check(project, stage)


if __name__ == "__main__":
    run(main)
