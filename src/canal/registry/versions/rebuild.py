"""`canal registry rebuild`: restores a lost MLflow store from the models in DVC and the ledger.

The ledger has the key of every version; model folders of projects are looked up by key. A number without a
model folder gets a placeholder, which is deleted at the end: MLflow never gives the number of a deleted
version again. Aliases and retirements follow the ledger. The same command continues an interrupted rebuild.
"""

import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from canal.config.layout import Layout
from canal.config.params import Config
from canal.config.sections import BACKBONE
from canal.core.digests import file_digest
from canal.core.errors import RegistryError
from canal.registry.ledger.joined import MERGED, ledger_erased, ledger_records, ledger_retired
from canal.registry.ledger.ledger import Draft, Entry, Ledger, Sign, ledger_aliases, plain_name, plain_reason
from canal.registry.ledger.ledger_rules import LOST
from canal.registry.manifest.card import lineage_data
from canal.registry.manifest.version_folder import IMPORT_KEY, KEY_FILE, read_key
from canal.registry.promotion.moves import RETIRED, adopt, ledger_of, moving, record
from canal.registry.store.database import READY, Version
from canal.registry.store.store import (
    DONE,
    MAKING,
    NUMBERED,
    REBUILDING,
    TAG,
    Store,
    half_rebuilt,
    rebuilding,
)
from canal.registry.store.tracking import parent_run
from canal.registry.versions.publish import Publication, extras, import_of, publish, ready_version, whole_key

DrawFigures = Callable[[Layout, str], Path]
"""Returns the folder of a stage's figures; handed in, since the report room lies above this one."""


@dataclass(frozen=True)
class RebuildOptions:
    """Options of a rebuild: person, reason, project folders to search, and versions to give up.

    Attributes
    ----------
    layouts : sequence of Layout
        Project folders with ``models/`` and ``metrics/``; the first is the project's own.
    without : collection of int
        Numbers of annotators to give up though an alias points to them.
    config : Config or None
        Parameters of the project, for what model cards say of the data.
    """

    by: str
    why: str
    layouts: Sequence[Layout]
    without: Collection[int] = ()
    sign: Sign | None = None
    config: Config | None = None


@dataclass(frozen=True)
class Gap:
    """A version of the ledger that cannot be rebuilt, and why."""

    entry: Entry
    why: str

    def __str__(self) -> str:
        stage = self.entry.document["details"].get("stage") or "unknown stage"
        return f"{self.entry.model} {self.entry.version} ({stage}): {self.why}"


@dataclass(frozen=True)
class Rebuilt:
    """The rebuilt versions, and those that could not be rebuilt."""

    made: tuple[Version, ...]
    gone: tuple[Gap, ...]


@dataclass(frozen=True)
class ModelFolder:
    """A model folder on disk.

    Attributes
    ----------
    folder : Path
        With a key.json; for an import without a folder of its own, models/backbone, which holds its files.
    layout : Layout
        The project folder.
    stage : str or None
        The stage of the model; None for an import.
    adopted : bool
        Whether the import has to be extracted from models/backbone.
    """

    folder: Path
    layout: Layout
    stage: str | None
    adopted: bool = False


@dataclass(frozen=True)
class ModelFolders:
    """The model folders of some projects by key, and the project folders that were searched."""

    by_key: Mapping[str, ModelFolder]
    places: tuple[Path, ...]

    def lacks(self, key: str) -> str | None:
        """Return why the model with this key cannot be used; None where it can."""
        model = self.by_key.get(key)
        if model is None:
            looked = ", ".join(str(place / "models") for place in self.places)
            return f"no model with key {key[:12]}... was found in {looked}"
        metrics = model.layout.metrics(str(model.stage))
        measured = model.stage in (None, BACKBONE) or (metrics / "evaluation.json").is_file()
        return None if measured else f"{metrics} holds no evaluation.json"

    @contextmanager
    def folder(self, key: str) -> Iterator[ModelFolder]:
        """Give the folder of a model, with every file checked.

        Raises
        ------
        RegistryError
            Naming every file that differs from its digest in the key.
        """
        model = self.by_key[key]
        whole_key(model.folder)
        if not model.adopted:
            yield model
            return
        with tempfile.TemporaryDirectory(prefix="canal-import-") as scratch:
            yield replace(model, folder=import_of(model.folder, Path(scratch)))


def is_lost(store: Store) -> bool:
    """Whether the store holds no version, though the ledger names some."""
    return bool(ledger_records(ledger_of(store).entries())) and not _everything(store)


def rebuild(store: Store, options: RebuildOptions, draw: DrawFigures) -> Rebuilt:
    """Rebuild an empty or lost store, or continue an interrupted rebuild.

    Raises
    ------
    RegistryError
        If the store holds versions, the ledger none, a model folder is damaged, or an alias points to a
        version without a model folder that is not given up.
    LedgerError
        If the ledger is damaged.
    """
    with store.lock("rebuild"):
        return _rebuild(store, options, draw)


def rebuild_lost(store: Store, options: RebuildOptions, draw: DrawFigures) -> Rebuilt | None:
    """Call `rebuild` for a lost or half rebuilt store; return None for any other."""
    if not (half_rebuilt(store) or is_lost(store)):
        return None
    with store.lock("rebuild"):  # another process may have done it meanwhile
        return _rebuild(store, options, draw) if half_rebuilt(store) or is_lost(store) else None


def _rebuild(store: Store, options: RebuildOptions, draw: DrawFigures) -> Rebuilt:
    """Make versions in the order of their numbers, then delete the placeholders.

    A tag of the registered model says how far the rebuild got, from before the first version on. Until it
    says that all is done, no alias can be moved, and another call continues the rebuild.
    """
    who, why = plain_name(options.by, "the person (--by)"), plain_reason(options.why)
    _require_lost(store)
    with store.lock("registry"):
        if not _everything(store):
            adopt(store, ledger_of(store))
    entries = ledger_of(store).entries()
    if not ledger_records(entries):
        raise RegistryError(
            "the ledger names no version, so there is nothing to rebuild; `canal registry sync` registers "
            "what models/ holds"
        )
    models = find_model_folders(options.layouts)
    gaps = {(gap.entry.model, gap.entry.version): gap for gap in _gaps(entries, models)}
    _require_aliases(store, entries, gaps, options)
    with moving(store, rebuilding=True) as ledger:
        _require_lost(store)
        for model in store.models:
            store.make_model(model)
        if rebuilding(store) != NUMBERED:
            _say(store, MAKING)
            maker = _Maker(store, ledger, models, draw, who, why, options)
            for model in store.models:
                maker.make(model, gaps)
            _say(store, NUMBERED)
        for model in store.models:
            release_numbers(store, model)
        _say(store, DONE)
    return Rebuilt(tuple(_everything(store)), tuple(gaps.values()))


@dataclass(frozen=True)
class _Maker:
    """Makes versions and their entries in the ledger during a rebuild."""

    store: Store
    ledger: Ledger
    models: ModelFolders
    draw: DrawFigures
    who: str
    why: str
    options: RebuildOptions

    def make(self, model: str, gaps: Collection[tuple[str, int]]) -> None:
        """Make the version of every number of a model, in order, or a placeholder."""
        entries = self.ledger.entries()
        known = {number: entry for (name, number), entry in ledger_records(entries).items() if name == model}
        for number in range(1, max(known, default=0) + 1):
            entry = known.get(number)
            if entry is None or (model, number) in gaps:
                hold_number(self.store, model, number)
                if entry is not None and not entry.document["details"].get(LOST):
                    self._record(entry, entry.document["record"], {LOST: True}, None)
                continue
            version = self._version(entry, retired=number in ledger_retired(entries, model))
            if version.record != entry.document["record"]:
                self._record(entry, version.record, {"run": version.run_id, "parent": version.parent}, number)

    def _version(self, entry: Entry, retired: bool) -> Version:
        """Return the version of an entry: made by an interrupted rebuild, completed, or made now."""
        versions = self.store.versions(entry.model)
        version = next((one for one in versions if one.number == entry.version), None)
        if version is not None and version.key == entry.document["key"]:
            if not version.ready:
                self.store.tag(entry.model, entry.version, "status", READY)
            return next(one for one in self.store.versions(entry.model) if one.number == entry.version)
        with self.models.folder(entry.document["key"]) as model:
            made = publish(self.store, self._publication(entry, model, retired))
        require_number(entry.model, made.number, entry.version)
        return made

    def _publication(self, entry: Entry, model: ModelFolder, retired: bool) -> Publication:
        key, details, stage = read_key(model.folder), entry.document["details"], model.stage
        before = {"run": details.get("run"), "record": entry.document["record"]}
        config = self.options.config
        code = {name: details[name] for name in ("git_commit", "dirty") if name in details}
        return Publication(
            model=entry.model,
            folder=model.folder,
            parent=None if key["parent"] is None else ready_version(self.store, key["parent"]),
            run_id=parent_run(self.store, key["stage"], key["request_digest"]),
            extras={} if stage is None else extras(model.layout, stage, self.draw(model.layout, stage)),
            pyfunc=entry.model == self.store.names.model,
            facts={**code, "rebuilt_from": before},
            tags={RETIRED: "true"} if retired else {},
            sources=lineage_data(model.layout, config, stage) if config and stage else (),
        )

    def _record(self, entry: Entry, digest: str, details: dict[str, object], number: int | None) -> None:
        """Write an entry that points the version's aliases to ``number`` (None removes them)."""
        current = ledger_aliases(self.ledger.entries(), entry.model)
        said = entry.document["details"].items()
        before = {name: value for name, value in said if name not in (LOST, MERGED)}
        record(
            self.store,
            self.ledger,
            Draft(
                kind="rebuild", model=entry.model, version=entry.version, key=entry.document["key"],
                record=digest, who=self.who, why=self.why,
                aliases={alias: number for alias, at in current.items() if at == entry.version},
                details={**before, **details},
            ),
            self.options.sign,
        )  # fmt: skip


def _everything(store: Store) -> list[Version]:
    return [version for model in store.models for version in store.versions(model)]


def _require_lost(store: Store) -> None:
    """Refuse a store that holds versions, unless an earlier rebuilding made them and was interrupted."""
    versions = _everything(store)
    if not versions or half_rebuilt(store):
        return
    raise RegistryError(
        f"{store.shown} holds {len(versions)} versions: only an empty or lost store is rebuilt. `canal "
        "audit` says what does not hold; one beyond repair is to be set aside first (mlflow.db, mlartifacts/)"
    )


def _say(store: Store, state: str) -> None:
    store.model_tag(store.names.model, REBUILDING, state)


def _gaps(entries: Sequence[Entry], models: ModelFolders) -> list[Gap]:
    """Return the versions of the ledger whose model is in none of the folders."""
    gaps, erased = [], ledger_erased(entries)
    for entry in ledger_records(list(entries)).values():
        gone = erased.get((entry.model, entry.version))
        why = models.lacks(entry.document["key"])
        why = why if gone is None else f"its files were erased (entry {gone.seq}), and are not brought back"
        if why is None:
            continue
        if imported := entry.document["details"].get("imported"):
            why = f"it was imported ({imported}): import the file again, it gets a new number"
        gaps.append(Gap(entry, why))
    return gaps


def _require_aliases(
    store: Store, entries: Sequence[Entry], gaps: dict[tuple[str, int], Gap], options: RebuildOptions
) -> None:
    """Refuse where an alias points to a version that cannot be rebuilt and is not given up."""
    model = store.names.model
    pointed: dict[int, list[str]] = {}
    for alias, number in ledger_aliases(list(entries), model).items():
        pointed.setdefault(number, []).append(alias)
    given = sorted(number for number in options.without if (model, number) not in gaps)
    if given:
        raise RegistryError(
            f"version {given[0]} can be rebuilt, or is not in the ledger: leave out --without {given[0]}"
        )
    lines = [
        f"{gaps[model, number]} ({', '.join(aliases)} points to it)"
        for number, aliases in sorted(pointed.items())
        if (model, number) in gaps and number not in options.without
    ]
    if lines:
        raise RegistryError(
            f"{len(lines)} versions that aliases point to cannot be rebuilt; nothing was done:\n  "
            + "\n  ".join(lines)
            + "\nBring their models: `dvc pull` or `dvc checkout` here; those of other branches in a folder "
            "of their own (git worktree add ../old COMMIT; dvc checkout there), named with --also ../old. Or "
            "give a version up with --without NUMBER: its number stays free, its aliases are removed"
        )


def find_model_folders(layouts: Sequence[Layout]) -> ModelFolders:
    """Search ``models/`` and ``backbones/`` of project folders; the first folder of a key counts."""
    by_key: dict[str, ModelFolder] = {}
    for layout in layouts:
        for key in sorted((layout.root / "models").glob(f"*/{KEY_FILE}")):
            by_key.setdefault(file_digest(key), ModelFolder(key.parent, layout, key.parent.name))
        for key in sorted((layout.root / "backbones").glob(f"*/{KEY_FILE}")):
            by_key.setdefault(file_digest(key), ModelFolder(key.parent, layout, None))
        path = layout.model(BACKBONE) / IMPORT_KEY
        if path.is_file():
            by_key.setdefault(file_digest(path), ModelFolder(path.parent, layout, None, adopted=True))
    return ModelFolders(by_key, tuple(layout.root for layout in layouts))


def hold_number(store: Store, model: str, number: int) -> None:
    """Create a placeholder: a version with this number and no artifacts, which is never ready.

    Raises
    ------
    RegistryError
        If a complete version has the number, or the store gives another number.
    """
    versions = {version.number: version for version in store.versions(model)}
    if number in versions:
        if versions[number].ready:
            raise RegistryError(
                f"{model} {number} is registered, but has no entry in the ledger: run `canal audit`"
            )
        return
    run_id = parent_run(store, "placeholder", "0" * 64)
    with store.translated_errors():
        made = store.client.create_model_version(
            model, source=f"runs:/{run_id}/placeholder", run_id=run_id, tags={f"{TAG}placeholder": "true"}
        )
    require_number(model, int(made.version), number)


def release_numbers(store: Store, model: str) -> None:
    """Delete every version that is not ready."""
    for version in store.versions(model):
        if not version.ready:
            with store.translated_errors():
                store.client.delete_model_version(model, str(version.number))


def require_number(model: str, given: int, wanted: int) -> None:
    """Refuse another number than the one that comes next.

    Raises
    ------
    RegistryError
        Saying how to start again.
    """
    if given != wanted:
        raise RegistryError(
            f"the store gave {model} the number {given} instead of {wanted}: something else was registered. "
            "Set the store aside (mlflow.db and mlartifacts/), then rebuild again"
        )
