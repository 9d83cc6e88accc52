"""Choose the genes of the lineage on the first stage's training cells: panel.json."""

from canal.app.beginning import adopted_basis, imported_vocabulary
from canal.app.pipeline import run
from canal.app.project import Project
from canal.config.sections import BACKBONE
from canal.core.digests import file_digest
from canal.core.errors import tell
from canal.data.panel import adopted_panel, choose_panel, write_panel
from canal.model.storage import PRESETS
from canal.registry.versions.history import require_available, restore_file


def main() -> None:
    """Choose the panel, or restore the panel that the backbone was pretrained with."""
    project = Project.open()
    config, layout = project.config, project.layout
    if version := project.learned(BACKBONE):
        restore_file(project.store, version, "panel.json", layout.panel)
        return
    stage = config.root_stage
    require_available(config, stage)
    split = file_digest(layout.split(stage))
    if (adopted := adopted_basis(project)) is not None:
        write_panel(layout.panel, adopted_panel(adopted.genes), config.panel, split, adopted.digest)
        tell(f"panel: the {adopted.size} genes of the adopted basis {adopted.digest[:12]}...")
        return
    size = config.panel.size or PRESETS[config.backbone.preset].panel
    known = imported_vocabulary(project)
    chosen = choose_panel(project.prepared(stage), project.split(stage), config.panel, size, known)
    write_panel(layout.panel, chosen, config.panel, split)
    tell(f"panel: {len(chosen.genes)} genes by {config.panel.rule}, such as {', '.join(chosen.genes[:8])}")


if __name__ == "__main__":
    run(main)
