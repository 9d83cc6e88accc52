"""`canal registry sync`: every whole model folder that the registry does not know becomes a version.

It stands outside DVC, since DVC restores outs without running what made them. A version is visible only when
whole (`canal.registry.publish`); then the ledger notes it and the ``candidate`` alias follows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from canal.config.layout import Layout
from canal.config.params import Config
from canal.config.sections import BACKBONE
from canal.core.errors import RegistryError
from canal.registry.imported import register_adopted
from canal.registry.key import KEY_FILE, Key, read_key
from canal.registry.ledger import Sign
from canal.registry.moves import moving
from canal.registry.publish import Publication, publish, published, whole_key
from canal.registry.registration import enter
from canal.registry.store import Store, Version
from canal.registry.tracking import stage_run

DrawFigures = Callable[[str], Path]
"""Returns the folder of a stage's figures; handed in, since the report room lies above this one."""


@dataclass(frozen=True)
class Synced:
    """What sync found: versions made now, versions that were there, and paths of a moved project mended."""

    made: tuple[Version, ...]
    known: tuple[Version, ...]
    moved: int = 0


def sync(store: Store, layout: Layout, config: Config, draw: DrawFigures, sign: Sign | None = None) -> Synced:
    """Register every finished stage, oldest first; a second call finds nothing to do.

    ``sign`` signs the entries that the ledger gets, and with them the digests of keys and records.

    Raises
    ------
    RegistryError
        If a model folder does not hold what its key says, or a stage's parent is not registered.
    """
    made: list[Version] = []
    known: list[Version] = []
    with moving(store) as ledger:
        if adopted := register_adopted(store, layout.model(BACKBONE)):
            (made if adopted[1] else known).append(adopted[0])
        for stage in (BACKBONE, *config.stages):
            if not _finished(layout, stage):
                continue
            version = published(store, _model_name(store, stage), whole_key(layout.model(stage)))
            if version is None:
                made.append(publish(store, _publication(store, layout, config, stage, draw)))
            else:
                known.append(version)
        for version in (*known, *made):
            enter(store, ledger, version, sign)
    return Synced(tuple(made), tuple(known))


def _finished(layout: Layout, stage: str) -> bool:
    """Whether a stage was learned and measured: DVC makes outs whole, so their manifests tell."""
    measured = stage == BACKBONE or (layout.metrics(stage) / "evaluation.json").is_file()
    return (layout.model(stage) / KEY_FILE).is_file() and measured


def _publication(store: Store, layout: Layout, config: Config, stage: str, draw: DrawFigures) -> Publication:
    folder = layout.model(stage)
    return Publication(
        model=_model_name(store, stage),
        folder=folder,
        parent=parent_version(store, read_key(folder), stage),
        run_id=stage_run(store, config, stage),
        extras=extras(layout, stage, draw(stage)),
        pyfunc=stage != BACKBONE,
    )


def parent_version(store: Store, key: Key, stage: str) -> Version | None:
    """Find the parent by its key, never by an alias; None where a lineage begins.

    Raises
    ------
    RegistryError
        If it is not registered.
    """
    if key["parent"] is None:
        return None
    if found := ready_version(store, key["parent"]):
        return found
    raise RegistryError(
        f"stage {stage!r} was learned from a model with key {key['parent'][:12]}... that is not registered; "
        "run `make run`, or bring the registry that holds it"
    )


def ready_version(store: Store, key: str) -> Version | None:
    """Return the ready version of either model that has this key, or None."""
    for model in (store.names.model, store.names.backbone):
        for version in store.versions(model):
            if version.ready and version.key == key:
                return version
    return None


def extras(layout: Layout, stage: str, figures: Path) -> dict[str, Path]:
    """Return what a version holds beside its model; see `canal.registry.bundle.assemble`."""
    return {
        "metrics": layout.metrics(stage),
        "validation/data_docs": layout.data_docs(stage),
        "figures": figures,
    }


def _model_name(store: Store, stage: str) -> str:
    return store.names.backbone if stage == BACKBONE else store.names.model
