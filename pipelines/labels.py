"""Compare a stage's labels with what its parent's model says of the cells: labels/<stage>.json, a warning."""

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
    """Put back what was found when ``stage`` was learned: nothing for versions from before this check."""
    target = project.layout.labels(stage)
    if LABELS_FILE in read_key(project.store.artifacts(version))["files"]:
        restore_file(project.store, version, LABELS_FILE, target)
    else:
        write_labels(target, stage, project.config.stages[stage].parent, 0, None)


def check(project: Project, stage: str) -> None:
    """Ask the parent's model about training and validation cells; nothing is asked of a backbone."""
    config, target = project.config, project.layout.labels(stage)
    parent, ask = config.stages[stage].parent, ask_parent(project, stage)
    if ask is None:
        write_labels(target, stage, parent, 0, None)
        return
    require_available(config, stage)
    split = project.split(stage)
    prepared = project.prepared(stage)
    cells = cells_to_compare(prepared, split["cell_id"][split["set"] != "test"])
    rule = label_rule(config.stages[stage].source, parent, config.gate.max_confused)
    docs = project.layout.data_docs(f"{stage}-labels")
    result = check_labels(ask(prepared, cells), rule, f"{stage}-labels", docs)
    sure = contradicted(project, stage, [str(one) for one in split["cell_id"][split["set"] != "test"]])
    write_labels(target, stage, parent, len(cells), result, sure)
    for found in (result, *(() if sure is None else (sure[1],))):
        for example in found.examples if not found.passed else ():
            tell(f"{stage}: warning: {example}")
        if not found.passed:
            tell(f"{stage}: {found.hint}")


def main() -> None:
    """Restore what was found where the stage was learned; otherwise compare."""
    project = Project.open()
    stage = argument("stage", project.config.stages)
    if version := project.learned(stage):
        restore(project, stage, version)
    else:
        check(project, stage)


if __name__ == "__main__":
    run(main)
