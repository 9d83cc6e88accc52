"""Compare a stage's labels with what its parent's model says of the cells: labels/<stage>.json, a warning."""

from typing import TYPE_CHECKING

from canal.lessons import LABELS_FILE, ask_parent
from canal.project import Project
from canal.registry.history import require_available, restore_file
from canal.registry.key import read_key
from canal.step import argument, run, say

if TYPE_CHECKING:
    from canal.registry.store import Version


def restored(project: Project, stage: str, version: "Version") -> bool:
    """Put back what was found when ``stage`` was learned; versions of before this check hold nothing."""
    if LABELS_FILE not in read_key(project.store.artifacts(version))["files"]:
        return False
    restore_file(project.store, version, LABELS_FILE, project.layout.labels(stage))
    return True


def check(project: Project, stage: str) -> None:
    """Ask the parent's model about training and validation cells; nothing is asked of a backbone."""
    from canal.quality.labels import cells_to_ask, check_labels, label_rule, write_labels

    config, target = project.config, project.layout.labels(stage)
    parent, ask = config.stages[stage].parent, ask_parent(project, stage)
    if ask is None or project.learned(stage):
        write_labels(target, stage, parent, 0, None)
        return
    require_available(config, stage)
    split = project.split(stage)
    prepared = project.prepared(stage)
    cells = cells_to_ask(prepared, split["cell_id"][split["set"] != "test"])
    rule = label_rule(config.stages[stage].source, parent, config.gate.max_confused)
    docs = project.layout.data_docs(f"{stage}-labels")
    result = check_labels(ask(prepared, cells), rule, f"{stage}-labels", docs)
    write_labels(target, stage, parent, len(cells), result)
    for example in result.examples if not result.passed else ():
        say(f"{stage}: warning: {example}")
    if not result.passed:
        say(f"{stage}: {result.hint}")


def main() -> None:
    """Restore what was found where the stage was learned; otherwise compare."""
    project = Project.open()
    stage = argument("stage", project.config.stages)
    version = project.learned(stage)
    if version is None or not restored(project, stage, version):
        check(project, stage)


if __name__ == "__main__":
    run(main)
