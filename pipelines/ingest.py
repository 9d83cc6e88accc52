"""Fetch the bytes of each source into incoming/, which data.dvc imports as data/."""

from canal.app.pipeline import run
from canal.app.project import Project
from canal.core.errors import tell
from canal.data.sources import ingest


def main() -> None:
    """Fetch every source, all of them or nothing."""
    project = Project.open()
    layout = project.layout
    ingest(project.config, layout.root, layout.incoming, layout.private, tell, layout.data)


if __name__ == "__main__":
    run(main)
