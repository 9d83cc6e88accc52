"""Make one source canonical: prepared/<source>/."""

from canal.app.pipeline import argument, run
from canal.app.project import Project
from canal.core.errors import tell
from canal.data.prepare import PrepareSettings, prepare, prepare_absent


def main() -> None:
    """Prepare the source named by --source; one that is not available leaves only its summary."""
    project = Project.open()
    name = argument("source", project.config.sources)
    source, into = project.config.sources[name], project.layout.prepared(name)
    if not source.available:
        prepare_absent(name, source, into)
        tell(f"{name}: not available; its stages only restore")
        return
    settings = PrepareSettings(project.config.min_genes(name), project.config.prepare.chunk_cells)
    prepared = prepare(project.layout.source(name) / "cells.h5ad", name, source, settings, into)
    tell(f"{name}: {prepared.n_cells} cells x {prepared.n_genes} genes")
    if blank := prepared.repairs.get("labels_with_blanks"):
        names = ", ".join(map(repr, blank["examples"]))
        tell(f"{name}: removed blanks at the ends of {blank['n']} labels, such as {names}")


if __name__ == "__main__":
    run(main)
