"""Divide each stage's cells into training, validation and test: splits/<stage>.csv and .json."""

from pathlib import Path

from canal.app.pipeline import run
from canal.app.project import Project
from canal.core.errors import tell
from canal.core.files import new_folder
from canal.data.split import described_types, read_split, reported_sets, split_stage, write_split
from canal.registry.versions.history import require_available, restore_file


def divide(project: Project, stage: str, into: Path) -> None:
    """Write one stage's split into the folder that already holds those of the stages before."""
    config, target = project.config, into / f"{stage}.csv"
    if version := project.learned(stage):
        for name in (target, target.with_suffix(".json")):
            restore_file(project.store, version, f"split/cells{name.suffix}", name)
        return
    require_available(config, stage)
    earlier = {name: into / f"{name}.csv" for name in config.ancestors(stage)}
    # Nor is a cell tested on that the backbone has seen in an unlabelled source.
    earlier |= {f"unlabelled/{name}": path for name, path in project.pretrained_tables().items()}
    tables = {name: read_split(path) for name, path in earlier.items()}
    grouped = config.stages[stage].group_by_batch
    split = split_stage(project.prepared(stage).obs, config.split, config.seed, grouped, tables)
    write_split(target, stage, split, config.split, earlier)
    counts = split["set"].value_counts()
    tell(f"{stage}: " + ", ".join(f"{counts.get(name, 0)} {name}" for name in reported_sets(counts)))
    if config.split.rule is not None:
        for cell_type, lacking in described_types(split).items():
            if lacking is not None:
                tell(f"{stage}: {cell_type} ({lacking})")


def main() -> None:
    """Divide every stage, parents first."""
    project = Project.open()
    with new_folder(project.layout.root / "splits") as folder:
        for stage in project.config.stages:
            divide(project, stage, folder)


if __name__ == "__main__":
    run(main)
