"""Fetch the bytes of each source into incoming/, which data.dvc imports as data/."""

from canal.data.sources import ingest
from canal.project import Project
from canal.step import run, say


def main() -> None:
    """Fetch every source, all of them or nothing."""
    project = Project.open()
    layout = project.layout
    ingest(project.config, layout.root, layout.incoming, layout.private, say, layout.data)


if __name__ == "__main__":
    run(main)
