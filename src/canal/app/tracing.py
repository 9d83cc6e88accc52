"""What an erasing would remove: every file that holds some cells, and what canal finds but cannot reach.

Refused is whatever something that stays still needs: a version that serves or that params.yaml asks for.
"""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from canal.annotation.records import read_log
from canal.app.project import Project
from canal.app.withdrawing import Withdrawal
from canal.config.sections import BACKBONE
from canal.config.stage_sections import Exclusion, Source
from canal.core.digests import canonical_json, file_digest, json_digest
from canal.core.errors import HistoryError, RegistryError, shown_address
from canal.data.sources import CELLS
from canal.registry.audit.workspace import caches
from canal.registry.ledger import tombstones
from canal.registry.ledger.joined import ledger_erased
from canal.registry.ledger.ledger import Ledger
from canal.registry.ledger.ledger_rules import CANDIDATE, PREVIOUS
from canal.registry.ledger.tombstones import Doomed, Tombstones
from canal.registry.manifest.version_folder import KEY_FILE, cells_requests
from canal.registry.provenance.exposure import CellQuery, CellsSeen, MatchedCells, find_cells, find_exposures
from canal.registry.provenance.registered import RegisteredVersion
from canal.registry.provenance.traces import (
    Traces,
    bundle_key,
    files_of,
    find_files,
    object_name,
    of_cells,
    own_files,
    recorded_files,
)

_RAW = ("data", "incoming")
_TOLD = (".h5ad", ".csv", ".tsv", ".txt", ".json", ".parquet")
"""Files of the user that are looked into, to tell of those that hold the cells."""


@dataclass(frozen=True)
class Plan:
    """What an erasing has found out before it writes anything."""

    project: Project
    withdrawal: Withdrawal
    matched: MatchedCells
    versions: Sequence[RegisteredVersion]
    orphans: Sequence[RegisteredVersion]
    stones: Tombstones
    sources: Mapping[str, Source]
    named: tuple[str, ...]


def planned(project: Project, withdrawal: Withdrawal, ledger: Ledger, remote: bool) -> Plan:
    """Return everything that holds the cells, after checking that nothing which stays needs it."""
    seen = CellsSeen(project.store)
    matched, before = _matched(project, seen, withdrawal, ledger)
    holding = [one.version for one in find_exposures(seen, matched)]
    inside = {folder for one in holding for folder in one.folder.parents}
    holding += [one for one in seen.versions if one not in holding and one.folder in inside]
    kept = [one for one in seen.versions if one not in holding]
    orphans = _orphans(kept, holding)
    _refuse_needed(project, withdrawal, holding, orphans)
    cells = seen.cells[seen.cells["cell_id"].isin(matched.ids)]
    names = {withdrawal.source, *(cell.partition(":")[0] for cell in matched.ids)}
    read = {name: declared for one in holding for name, declared in _declared(one)}
    sources = {name: one for name, one in read.items() if name in names}
    raws = _raw_digests(project, sources)
    files = {
        one.sha256: "erased before, and back"
        for stones in before
        for one in stones.files
        if of_cells(one.path)
    }
    for one in holding:
        recorded = {digest for name, digest in recorded_files(one).items() if of_cells(name)}
        files |= dict.fromkeys(recorded, f"the same bytes as a file of {one.name}")
    stays = frozenset(digest for one in kept for digest in recorded_files(one).values())
    files |= dict.fromkeys(raws, "the file of the source")
    if before and withdrawal.source in project.config.sources:  # what is back is rewritten as it was then
        sources = {withdrawal.source: project.config.sources[withdrawal.source]} | sources
    keys = frozenset(name for one in holding for name in (one.digest, one.version.record))
    traces = Traces(matched.ids, frozenset(cells["cell_digest"]), files, keys, stays)
    named = tuple(what for one in kept for what in _named_by(one, traces))
    folders = frozenset(one.folder for one in (*seen.versions, *seen.erased))
    doomed = [file for one in (*holding, *seen.erased) for file in files_of(one)]
    doomed += find_files(
        project.layout, [one.parents[1] for one in caches(project.layout.root)], traces, folders
    )
    stones = Tombstones(
        cells=json_digest(sorted(set(cells["cell_digest"]))),
        n_cells=int(cells["cell_id"].nunique()),
        versions=[
            {
                "model": one.version.model,
                "version": one.version.number,
                "key": one.digest,
                "record": one.version.record,
            }
            for one in holding
            if not one.elsewhere
        ],
        files=sorted((_placed(project, one) for one in doomed), key=lambda one: one.path),
        objects=sorted({md5 for one in doomed if (md5 := object_name(Path(one.path)))}) if remote else (),
    )
    return Plan(project, withdrawal, matched, holding, orphans, stones, sources, named)


def _orphans(
    kept: Sequence[RegisteredVersion], holding: Sequence[RegisteredVersion]
) -> list[RegisteredVersion]:
    """Return the versions that never saw the cells, but were learned on one whose files go; parents first."""
    gone, orphans = {one.digest for one in holding}, []
    for one in kept:
        if one.parent in gone:
            gone.add(one.digest)
            orphans.append(one)
    return orphans


def _matched(
    project: Project, seen: CellsSeen, withdrawal: Withdrawal, ledger: Ledger
) -> tuple[MatchedCells, list[Tombstones]]:
    """Return the cells that versions know, and what was erased before: its files may be back."""
    erased = ledger_erased(ledger.entries())
    before = [tombstones.read(path) for path in tombstones.finished(project.layout.tombstones)]
    ids = frozenset(withdrawal.ids)
    known = seen.cells[seen.cells["cell_id"].isin(ids)]
    if ids and (before or not known.empty):
        alike = seen.cells["cell_id"][seen.cells["cell_digest"].isin(set(known["cell_digest"]))]
        return MatchedCells(ids, frozenset(alike) - ids, (withdrawal.source,)), before
    try:
        return find_cells(
            seen, CellQuery(withdrawal.source, withdrawal.batch, min(ids, default=None))
        ), before
    except RegistryError:
        if not erased:
            raise
        return MatchedCells(frozenset(), frozenset(), (withdrawal.source,)), before


def _refuse_needed(
    project: Project,
    withdrawal: Withdrawal,
    holding: Sequence[RegisteredVersion],
    orphans: Sequence[RegisteredVersion],
) -> None:
    """Refuse while a version with the cells serves, params.yaml asks for the cells, or they lie elsewhere."""
    config, keys = project.config, {one.digest for one in holding}
    which = [f"--batch {shlex.quote(withdrawal.batch)}"] if withdrawal.batch is not None else []
    which += ["--cells FILE"] if withdrawal.cells else []
    unlearn = " ".join(["canal unlearn", withdrawal.source, *which, "--by NAME --why REASON"])
    if withdrawal.source in config.backbone.unlabelled:
        unlearn = f"canal impact {withdrawal.source}"
    asked = [
        name for name in (BACKBONE, *config.stages) if (one := project.learned(name)) and one.key in keys
    ]
    if asked:
        raise HistoryError(
            f"params.yaml still asks for {', '.join(asked)} as versions that hold the cells: take them out "
            f"first (`{unlearn}`), then promote the new version"
        )
    mine = [name for name, one in config.stages.items() if one.source == withdrawal.source]
    mine += [BACKBONE] if withdrawal.source in config.backbone.unlabelled else []
    if mine and not _excluded(config.sources[withdrawal.source].exclude, withdrawal):
        raise HistoryError(
            f"params.yaml does not exclude the cells, so {', '.join(mine)} would learn them again: "
            f"`{unlearn}` does that, or sources.{withdrawal.source}.exclude"
        )
    for held in (one for one in holding if not one.elsewhere):
        if project.store.local_artifacts(held.version) is None:
            raise RegistryError(
                f"the files of {held.name} lie on {project.store.shown}, not on this disk: erase them where "
                "they are, or delete the version there"
            )
    for held in (*holding, *orphans):
        if serving := set(held.version.aliases) - {CANDIDATE, PREVIOUS}:
            raise HistoryError(
                f"version {held.version.number} ({held.stage}) is {', '.join(sorted(serving))} and stands on "
                "the cells: promote one that never saw them first (`canal promote candidate`)"
            )


def _excluded(exclude: Exclusion, withdrawal: Withdrawal) -> bool:
    """Whether params.yaml leaves all of the cells out."""
    named = {f"{withdrawal.source}:{cell}" for cell in exclude.cells}
    batch = withdrawal.batch is None or withdrawal.batch in exclude.batches
    return not withdrawal.whole and batch and withdrawal.ids <= named


def _named_by(one: RegisteredVersion, traces: Traces) -> Iterator[str]:
    """Yield which judgements of a version that stays name some of the cells: names, and no values.

    Raises
    ------
    RegistryError
        If any other file of it names one: it would have to go, too.
    """
    for path in sorted(one.folder.rglob("*")):
        if not path.is_file() or path.name == KEY_FILE or not (found := traces.named(path)):
            continue
        name = path.relative_to(one.folder).as_posix()
        if not name.startswith("validation/"):
            raise RegistryError(
                f"nothing was erased: {name} of {one.name}, which is not known to have seen the cells, "
                f"{found}: unlearn the cells there, too, or `canal audit` it"
            )
        yield f"{name} of {one.name} {found}, not their values: it judged the stage when it had them"


def _declared(one: RegisteredVersion) -> Iterator[tuple[str, Source]]:
    """Yield a stage's source, or a backbone's unlabelled ones, each as declared but for what it excludes."""
    corpora = one.key["request"].get("unlabelled", {})
    for cells in cells_requests(one.key) if one.is_annotator else corpora.values():
        declaration = {name: value for name, value in cells["declaration"].items() if name != "exclude"}
        yield str(cells["source"]), Source.model_validate_json(canonical_json(declaration | {"path": "-"}))


def _raw_digests(project: Project, sources: Mapping[str, Source]) -> set[str]:
    """Return the digests of the raw files that sources were read from, and of what was left of these."""
    raw = {one.sha256 for one in sources.values()}
    return raw | {one.rest for one in project.config.sources.values() if one.sha256 in raw and one.rest}


def _placed(project: Project, one: Doomed) -> Doomed:
    """Return a file with its path below the project, and whether it is rewritten without the cells."""
    path, root = Path(one.path), project.layout.root
    if root not in path.parents:
        return one
    place = path.relative_to(root)
    source = project.config.sources.get(place.parts[1]) if len(place.parts) == 3 else None
    raw = (
        source is not None and (project.layout.source(place.parts[1]) / CELLS).is_file() and source.available
    )
    rewritten = raw and (place.parts[0] == "prepared" or place.name == CELLS and place.parts[0] in _RAW)
    return replace(one, path=place.as_posix(), rewritten=rewritten)


def aliases_left(plan: Plan) -> dict[str, int | None]:
    """Return the aliases that leave versions whose files go; ``candidate`` goes to the newest that stays."""
    versions = plan.project.store.versions()
    numbers = {one.version.number for one in plan.versions if one.is_annotator}
    held = {alias for one in versions if one.number in numbers for alias in one.aliases}
    left = [one.number for one in versions if one.ready and not one.retired and one.number not in numbers]
    aliases: dict[str, int | None] = {PREVIOUS: None} if PREVIOUS in held else {}
    return aliases | ({CANDIDATE: max(left, default=None)} if CANDIDATE in held else {})


def unreached(plan: Plan) -> Iterator[str]:
    """Yield what was found that canal does not touch, by path or by name."""
    project, root = plan.project, plan.project.layout.root
    raw, keys = _raw_digests(project, plan.sources), {one.digest for one in plan.versions}
    bare = {one.partition(":")[2] for one in plan.matched.ids}  # as files that were labelled have them
    traces = Traces(plan.matched.ids | bare, frozenset(), dict.fromkeys(raw, "raw"))
    for path in own_files(root):
        if path.suffix == ".zip" and (found := bundle_key(path)) in keys:
            yield f"{path.relative_to(root)}: a bundle of the version with key {found[:12]}...: delete it"
        elif path.suffix in _TOLD and traces.why(path, file_digest(path)):
            yield f"{path.relative_to(root)}: your own file with the cells: delete it, or write it without"
    for name, source in plan.sources.items():
        given = project.config.sources.get(name, source)
        if origin := given.url or (given.wheel and given.wheel.package):
            yield f"{shown_address(origin)}: where {name} was fetched from; canal does not fetch it again"
        if named := {f"{name}:{cell}" for cell in given.exclude.cells} & plan.matched.ids:
            where = "params.yaml, dvc.lock, DVC's run cache and key.json, which exclude them"
            yield f"{len(named)} names, not values, in {where}"
    yield from plan.named
    real = {(root / one.path).resolve() for one in plan.stones.files if not (root / one.path).is_symlink()}
    for one in plan.stones.files:
        if (root / one.path).is_symlink() and (target := (root / one.path).resolve()) not in real:
            yield f"{one.path} is a link to {target}: only the link goes, delete the file"
    log = read_log(project.layout.annotations)
    for record in log.of_versions(keys):
        about = record.get("input") or {"name": "a file"}
        yield f"{about['name']}: labelled by version {record['model'].get('version')} on {record.get('time')}"
