"""Which cells each version has seen, and which versions were exposed to a data set, a batch or a cell.

Read from splits, banks, probe sets and test answers of all registered versions; `canal impact` and `canal
lineage --cell` use it when cells have to be withdrawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import pandas as pd

from canal.config.params import Config
from canal.config.stage_sections import Exclusion
from canal.core.digests import file_digest
from canal.core.errors import RegistryError, did_you_mean, there_are
from canal.core.files import read_json
from canal.data.split import COLUMNS, RESERVE, SUMMED, read_split
from canal.io.arrays import EXAMPLES, listed
from canal.io.h5ad import open_h5ad
from canal.registry.manifest.version_folder import cells_requests, corpus_tables
from canal.registry.provenance.registered import (
    BANK,
    LABELS,
    PROBE,
    SPLIT,
    RegisteredVersion,
    every_version,
    summed_splits,
)
from canal.registry.store.store import Store

_PREDICTIONS = "metrics/predictions.csv"

Role = Literal["trained", "replayed", "summed", "validated", "panel", "tested", "kept"]
Grade = Literal["learned", "steered", "tested"]

_LEARNED, _STEERED = ("trained", "replayed", "summed"), ("validated", "panel")
_SHORTEST_DIGEST = 8


class CellsSeen:
    """All ready versions of a registry, with the tables of the cells that each of them has seen.

    Only keys, splits, banks, probe sets and test answers are read, each checked against its digest, once.

    Attributes
    ----------
    versions : list of RegisteredVersion
        Parents before their children. Ancestors that came along with an imported version are among them:
        their splits are known, their banks, probe sets and answers are not.
    erased : list of RegisteredVersion
        Of these nobody can tell any more which cells they saw; they are not among ``versions``.
    """

    def __init__(self, store: Store) -> None:
        self._layout = store.layout
        known = _parents_first(every_version(store))
        self.versions = [one for one in known if not one.erased]
        self.erased = [one for one in known if one.erased]
        self._by_key = {one.version.key: one for one in self.versions}
        self._splits: dict[str, pd.DataFrame] = {}
        for one in self.versions:
            if one.is_annotator and one.key["split"] not in self._splits:
                split = read_split(one.file(SPLIT))
                self._splits[one.key["split"]] = split.assign(source=one.key["data"]["source"])
            for source, table in corpus_tables(one.key).items():
                if one.holds(table) and one.files[table] not in self._splits:
                    self._splits[one.files[table]] = read_split(one.file(table)).assign(source=source)

    @property
    def cells(self) -> pd.DataFrame:
        """Every cell of every split and corpus: cell_id, cell_type, batch, cell_digest, set, source."""
        tables, columns = list(self._splits.values()), [*COLUMNS, "source"]
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)

    def parent(self, one: RegisteredVersion) -> RegisteredVersion | None:
        """Return the version that ``one`` was learned on; None where it is not registered, or has none."""
        return self._by_key.get(one.key["parent"] or "")

    def splits(self, one: RegisteredVersion) -> list[pd.DataFrame] | None:
        """Return the splits and corpora that a version learned from; None where one is no longer known."""
        if one.imported:
            return []
        if one.is_annotator:
            return [self._splits[one.key["split"]]]
        first, digest = one.key["request"]["panel"]["stage"], one.key["split"]
        path = self._layout.split(first)  # the project's own, before a version has it
        if digest not in self._splits and path.is_file() and file_digest(path) == digest:
            self._splits[digest] = read_split(path).assign(source=one.key["data"]["source"])
        splits = {first: self._splits.get(digest)}
        learned = [other for other in self.versions if other.is_annotator]
        for stage, cells in one.key["request"]["cells"].items():
            if stage != first:
                alike = (o for o in learned if o.stage == stage and o.key["request"]["cells"] == cells)
                version = next(alike, None)
                splits[stage] = None if version is None else self._splits[version.key["split"]]
        for source, table in corpus_tables(one.key).items():
            splits[f"unlabelled {source}"] = self._splits.get(one.files[table])
        known = [split for split in splits.values() if split is not None]
        return known if len(known) == len(splits) else None

    def replayed(self, one: RegisteredVersion) -> set[str]:
        """Return the ids of the cells that a version replayed from its parent's bank.

        The bank file is sorted in the order in which the bank is cut: the first cells of a type stay.
        """
        parent = self.parent(one)
        if not one.is_annotator or parent is None or not parent.is_annotator:
            return set()
        # A parent without a bank came along with an import: the cells replayed of it are in its own split.
        if one.by_sums_alone or not parent.holds(BANK):
            return set()
        bank = _stored(parent, BANK)
        # The request of a tuned stage has no L: its study chose it.
        size = (one.key["request"]["continual"] | one.key.get("choice", {}))["bank_size"]
        quota = size // max(1, len(read_json(parent.file(LABELS))))
        return set(bank["cell_id"][bank.groupby("cell_type").cumcount() < quota])

    def summed(self, one: RegisteredVersion) -> set[str]:
        """Return the ids of the cells in a version's sums, of all stages but those of shared sums."""
        splits = summed_splits(one, self._by_key) if one.is_annotator else {}
        return {
            cell
            for split in splits.values()
            if split is not None
            for cell in split["cell_id"][split["set"].isin(SUMMED)]
        }

    def probed(self, one: RegisteredVersion) -> set[str]:
        """Return the ids of the probe cells of earlier stages that a version was validated on in training."""
        parent = self.parent(one)
        if not one.is_annotator or parent is None or not parent.is_annotator or not parent.holds(PROBE):
            return set()
        return set(_stored(parent, PROBE)["cell_id"])

    def kept(self, one: RegisteredVersion) -> set[str]:
        """Return the ids of the cells whose expression a version stores: its bank and probe sets."""
        if not one.is_annotator:
            return set()
        return {cell for name in (BANK, PROBE) if one.holds(name) for cell in _stored(one, name)["cell_id"]}

    def tested(self, one: RegisteredVersion) -> set[str]:
        """Return the ids of the test cells of all stages that a version was measured on."""
        if not one.is_annotator or not one.holds(_PREDICTIONS):
            return set()
        return set(pd.read_csv(one.file(_PREDICTIONS), dtype=str, keep_default_na=False)["cell_id"])


def exclusions(config: Config) -> dict[str, Exclusion]:
    """Return the cells and batches that params.yaml excludes, by source; sources without any are left out."""
    every = {name: source.exclude for name, source in config.sources.items()}
    return {name: one for name, one in every.items() if one.cells or one.batches}


def excluded_cells(cells_seen: CellsSeen, config: Config) -> dict[str, str]:
    """Return the excluded cells that some version has seen: digest of the content -> one of its cell ids.

    Cells are compared by content: a cell of the same content under another id, or in another source, is
    excluded as well.
    """
    cells = cells_seen.cells
    ids: dict[str, str] = {}
    for name, one in exclusions(config).items():
        named = cells["cell_id"].isin([f"{name}:{cell}" for cell in one.cells])
        rows = cells[(cells["source"] == name) & (named | cells["batch"].isin(one.batches))]
        ids |= dict(zip(rows["cell_digest"], rows["cell_id"], strict=True))
    return ids


@dataclass(frozen=True)
class CellQuery:
    """A question for cells: a source, or a batch or a cell of it.

    Attributes
    ----------
    source : str or None
        Name of a source, or the beginning of its file's SHA-256 (8 digits or more).
    batch : str or None
        One batch of it.
    cell : str or None
        One cell: ``<source>:<name in the file>``, or the name alone where one source has it.
    """

    source: str | None = None
    batch: str | None = None
    cell: str | None = None


@dataclass(frozen=True)
class MatchedCells:
    """The cells of the registry that match a query.

    Attributes
    ----------
    cells : frozenset of str
        Ids of the cells that were named, as versions know them.
    same : frozenset of str
        Ids of other cells of the same content; they count as well.
    sources : tuple of str
        Sources of the cells that were named.
    reserve : frozenset of str
        Those of all these ids whose content is in reserve in every split: no version has seen it.
    """

    cells: frozenset[str]
    same: frozenset[str]
    sources: tuple[str, ...]
    reserve: frozenset[str] = frozenset()

    @property
    def ids(self) -> frozenset[str]:
        """All ids."""
        return self.cells | self.same


@dataclass(frozen=True)
class Exposure:
    """How a version was exposed to the queried cells.

    Attributes
    ----------
    version : RegisteredVersion
    roles : dict
        Role -> number of cells; None where the split is no longer known, so that they cannot be counted.
    through : RegisteredVersion or None
        Its parent, where that learned from the cells or was steered by them.
    grade : str
        ``learned``: the cells are in its weights or sums, by training, by replay or through its parent.
        ``steered``: they were validation or probe cells of it or of an ancestor, or chose the genes.
        ``tested``: they were test cells only.
    """

    version: RegisteredVersion
    roles: Mapping[Role, int | None]
    through: RegisteredVersion | None
    grade: Grade

    def to_json(self) -> dict[str, Any]:
        """Return a JSON document."""
        version, through = self.version.version, self.through
        return {
            "model": version.model,
            "version": version.number,
            "stage": version.stage,
            "branch": version.branch,
            "aliases": list(version.aliases),
            "retired": version.retired,
            "key": version.key,
            "elsewhere": self.version.elsewhere,
            "grade": self.grade,
            "roles": dict(self.roles),
            "inherited_from": None
            if through is None
            else {"model": through.version.model, "version": through.version.number},
        }


def find_cells(cells_seen: CellsSeen, query: CellQuery) -> MatchedCells:
    """Return the cells that match a query, and all others of the same content.

    Raises
    ------
    RegistryError
        If no version knows such a source, batch or cell, or a cell's name is that of several sources.
    """
    cells = cells_seen.cells
    rows = cells
    if query.source is not None:
        rows = _of_source(cells_seen, rows, query.source)
    if query.batch is not None:
        known, rows = rows["batch"], rows[rows["batch"] == query.batch]
        if rows.empty:
            has = there_are(query.batch, sorted(set(known)), show=partial(listed, limit=EXAMPLES))
            raise RegistryError(
                f"no registered version knows a batch {str(query.batch)[:80]!r} of {query.source}{has}"
            )
    if query.cell is not None:
        rows = _of_cell(rows, query.cell)
    named = frozenset(rows["cell_id"])
    alike = frozenset(cells["cell_id"][cells["cell_digest"].isin(set(rows["cell_digest"]))])
    sources = tuple(sorted(set(rows["source"]))) or ((query.source,) if query.source else ())
    mine = cells[cells["cell_id"].isin(alike | named)]
    summed = {cell for one in cells_seen.versions for cell in cells_seen.summed(one)}
    met = set(mine["cell_digest"][(mine["set"] != RESERVE) | mine["cell_id"].isin(summed)])
    unmet = mine["cell_id"][~mine["cell_digest"].isin(met)]
    return MatchedCells(named, alike - named, sources, frozenset(unmet))


def find_exposures(cells_seen: CellsSeen, matched: MatchedCells) -> list[Exposure]:
    """Return the exposure of every version that saw the cells, and of its descendants; parents first."""
    ids = matched.ids
    done: dict[str, Exposure] = {}
    for one in cells_seen.versions:
        roles = _roles(cells_seen, one, matched, ids)
        above = [done[key] for key in one.parents if key in done and done[key].grade != "tested"]
        inherits = min(above, key=lambda other: other.grade != "learned", default=None)
        inherited = inherits.grade if inherits else None
        grade: Grade
        if inherited == "learned" or any(role in roles for role in _LEARNED):
            grade = "learned"
        elif inherited == "steered" or any(role in roles for role in _STEERED):
            grade = "steered"
        elif roles:
            grade = "tested"
        else:
            continue
        done[one.version.key] = Exposure(one, roles, inherits.version if inherits else None, grade)
    return list(done.values())


def _stored(one: RegisteredVersion, name: str) -> pd.DataFrame:
    """Return id and type of the cells of a bank or of probe sets, in the order of the file."""
    with open_h5ad(one.file(name)) as file:
        return pd.DataFrame({column: file.obs_column(column) for column in ("cell_id", "cell_type")})


def _parents_first(versions: Sequence[RegisteredVersion]) -> list[RegisteredVersion]:
    """Return versions in an order in which parents come before their children."""
    left = {one.version.key: one for one in versions}
    ordered: list[RegisteredVersion] = []
    while left:
        ready = [one for one in left.values() if not left.keys() & set(one.parents)]
        if not ready:
            raise RegistryError(
                f"{next(iter(left.values())).name} is its own ancestor by key.json: the keys were edited"
            )
        ordered += [left.pop(one.version.key) for one in ready]
    return ordered


def _roles(
    cells_seen: CellsSeen, one: RegisteredVersion, matched: MatchedCells, ids: frozenset[str]
) -> dict[Role, int | None]:
    if one.imported:
        return {}
    if (splits := cells_seen.splits(one)) is None:
        seen = {cells["source"] for cells in cells_requests(one.key)}
        return {"trained": None} if seen & set(matched.sources) else {}
    sets = {
        name: sum(int((table["set"].eq(name) & table["cell_id"].isin(ids)).sum()) for table in splits)
        for name in ("train", "validation")
    }
    counts: dict[Role, int | None]
    if one.adopted:
        counts = {"panel": sets["train"]}
    else:
        counts = {
            "trained": 0 if one.by_sums_alone else sets["train"],
            "replayed": len(cells_seen.replayed(one) & ids),
            "summed": len(cells_seen.summed(one) & ids),
            "validated": sets["validation"] + len(cells_seen.probed(one) & ids),
            "tested": len(cells_seen.tested(one) & ids),
            "kept": len(cells_seen.kept(one) & ids),
        }
    return {role: n for role, n in counts.items() if n}


def _of_source(cells_seen: CellsSeen, rows: pd.DataFrame, wanted: str) -> pd.DataFrame:
    """Return the rows of a source: by its name, or by its files' SHA-256, which versions know."""
    known: dict[str, set[str]] = {}
    for one in cells_seen.versions:
        if not one.imported:
            data = one.key["data"]
            known.setdefault(data["source"], set()).add(data["source_sha256"])
            for cells in cells_requests(one.key):
                known.setdefault(cells["source"], set()).add(cells["declaration"]["sha256"])
    if wanted in known:
        return rows[rows["source"] == wanted]
    named = {
        name
        for name, digests in known.items()
        if len(wanted) >= _SHORTEST_DIGEST and any(digest.startswith(wanted) for digest in digests)
    }
    if not named:
        there = f"{', '.join(known) or 'none yet'} (or give 8 or more digits of its file's SHA-256)"
        near = did_you_mean(wanted, known)
        raise RegistryError(f"no registered version knows a source {wanted[:80]!r}; there are {there}{near}")
    return rows[rows["source"].isin(named)]


def _of_cell(rows: pd.DataFrame, wanted: str) -> pd.DataFrame:
    """Return the rows of a cell: by its id, or by its name in the file where only one cell has it."""
    matching = rows[rows["cell_id"] == wanted]
    if matching.empty:
        matching = rows[rows["cell_id"].str.partition(":")[2] == wanted]
    names = sorted(set(matching["cell_id"]))
    if not names:
        raise RegistryError(
            f"no registered version knows a cell {wanted[:80]!r}; ids are SOURCE:NAME, such as "
            f"{listed(sorted(set(rows['cell_id'])), EXAMPLES)}"
        )
    if len(names) > 1:
        raise RegistryError(
            f"{wanted[:80]!r} is the name of several cells: {listed(names, EXAMPLES)}; give one of these"
        )
    return matching
