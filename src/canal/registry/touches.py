"""Which versions learned from a data set, a batch or a cell, and how each of them touched it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from canal.core.errors import RegistryError
from canal.data.split import RESERVE
from canal.io.arrays import EXAMPLES, listed
from canal.registry.ancestry import Proven
from canal.registry.memory import Memory

if TYPE_CHECKING:
    import pandas as pd

Role = Literal["trained", "replayed", "summed", "validated", "panel", "tested", "kept"]
Grade = Literal["learned", "steered", "tested"]

_LEARNED, _STEERED = ("trained", "replayed", "summed"), ("validated", "panel")
_SHORTEST_DIGEST = 8


@dataclass(frozen=True)
class Chosen:
    """The cells that are asked about.

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
class Found:
    """What was chosen, in the registry.

    Attributes
    ----------
    cells : frozenset of str
        Ids of the cells that were named, as versions know them.
    same : frozenset of str
        Ids of other cells of the same content; they count as well.
    sources : tuple of str
        Sources of the cells that were named.
    reserve : frozenset of str
        Those of all these ids whose content every split holds in reserve: no version has met it.
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
class Touch:
    """How a version touched the chosen cells.

    Attributes
    ----------
    version : Proven
    roles : dict
        Role -> number of cells; None where they cannot be counted, for the split is not known any more.
    through : Proven or None
        Its parent, where that learned from the cells or was steered by them.
    grade : str
        ``learned``: they are in its weights or sums, by training, by replay or by its parent.
        ``steered``: they judged it, or an ancestor, while it learned, or chose the genes. ``tested``: they
        only measured it.
    """

    version: Proven
    roles: Mapping[Role, int | None]
    through: Proven | None
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


def find(memory: Memory, chosen: Chosen) -> Found:
    """Return the cells that are meant, and all others of the same content.

    Raises
    ------
    RegistryError
        If no version knows such a source, batch or cell, or a cell's name is that of several sources.
    """
    cells = memory.cells
    rows = cells
    if chosen.source is not None:
        rows = _of_source(memory, rows, chosen.source)
    if chosen.batch is not None:
        rows = _of_batch(rows, chosen)
    if chosen.cell is not None:
        rows = _of_cell(rows, chosen.cell)
    named = frozenset(rows["cell_id"])
    alike = frozenset(cells["cell_id"][cells["cell_digest"].isin(set(rows["cell_digest"]))])
    sources = tuple(sorted(set(rows["source"]))) or ((chosen.source,) if chosen.source else ())
    mine = cells[cells["cell_id"].isin(alike | named)]
    summed = {cell for one in memory.versions for cell in memory.summed(one)}
    met = set(mine["cell_digest"][(mine["set"] != RESERVE) | mine["cell_id"].isin(summed)])
    unmet = mine["cell_id"][~mine["cell_digest"].isin(met)]
    return Found(named, alike - named, sources, frozenset(unmet))


def touches(memory: Memory, found: Found) -> list[Touch]:
    """Return every version that touched the cells, parents first; their descendants too."""
    ids = found.ids
    done: dict[str, Touch] = {}
    for one in memory.versions:
        roles = _roles(memory, one, found, ids)
        parent = memory.parent(one)
        above = done.get(parent.version.key) if parent else None
        inherits = above if above is not None and above.grade != "tested" else None
        grade = _grade(roles, inherits)
        if grade is not None:
            done[one.version.key] = Touch(one, roles, inherits.version if inherits else None, grade)
    return list(done.values())


def _roles(memory: Memory, one: Proven, found: Found, ids: frozenset[str]) -> dict[Role, int | None]:
    if one.imported:
        return {}
    splits = memory.divided(one)
    if splits is None:
        seen = {cells["source"] for cells in one.key["request"]["cells"].values()}
        return {"trained": None} if seen & set(found.sources) else {}
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
            "replayed": len(memory.replayed(one) & ids),
            "summed": len(memory.summed(one) & ids),
            "validated": sets["validation"] + len(memory.watched(one) & ids),
            "tested": len(memory.tested(one) & ids),
            "kept": len(memory.kept(one) & ids),
        }
    return {role: n for role, n in counts.items() if n}


def _grade(roles: Mapping[Role, int | None], inherits: Touch | None) -> Grade | None:
    """Return the strongest way in which a version touched the cells; None if it did not."""
    above = inherits.grade if inherits else None
    if above == "learned" or any(role in roles for role in _LEARNED):
        return "learned"
    if above == "steered" or any(role in roles for role in _STEERED):
        return "steered"
    return "tested" if roles else None


def _of_source(memory: Memory, rows: pd.DataFrame, wanted: str) -> pd.DataFrame:
    known = _sources(memory)
    if wanted in known:
        return rows[rows["source"] == wanted]
    named = {
        name
        for name, digests in known.items()
        if len(wanted) >= _SHORTEST_DIGEST and any(digest.startswith(wanted) for digest in digests)
    }
    if not named:
        raise RegistryError(
            f"no registered version knows a source {wanted[:80]!r}; there are "
            f"{', '.join(known) or 'none yet'} (or give 8 or more digits of its file's SHA-256)"
        )
    return rows[rows["source"].isin(named)]


def _sources(memory: Memory) -> dict[str, set[str]]:
    """Return every source that a version learned from, with the SHA-256 of its files."""
    known: dict[str, set[str]] = {}
    for one in memory.versions:
        if not one.imported:
            data = one.key["data"]
            known.setdefault(data["source"], set()).add(data["source_sha256"])
            requests = one.key["request"]["cells"]
            for cells in [requests] if one.taught else requests.values():
                known.setdefault(cells["source"], set()).add(cells["declaration"]["sha256"])
    return known


def _of_batch(rows: pd.DataFrame, chosen: Chosen) -> pd.DataFrame:
    found = rows[rows["batch"] == chosen.batch]
    if found.empty:
        raise RegistryError(
            f"no registered version knows a batch {str(chosen.batch)[:80]!r} of {chosen.source}; there are "
            f"{listed(sorted(set(rows['batch'])), EXAMPLES)}"
        )
    return found


def _of_cell(rows: pd.DataFrame, wanted: str) -> pd.DataFrame:
    """Return the rows of a cell: by its id, or by its name in the file where only one cell has it."""
    found = rows[rows["cell_id"] == wanted]
    if found.empty:
        found = rows[rows["cell_id"].str.partition(":")[2] == wanted]
    names = sorted(set(found["cell_id"]))
    if not names:
        raise RegistryError(
            f"no registered version knows a cell {wanted[:80]!r}; ids are SOURCE:NAME, such as "
            f"{listed(sorted(set(rows['cell_id'])), EXAMPLES)}"
        )
    if len(names) > 1:
        raise RegistryError(
            f"{wanted[:80]!r} is the name of several cells: {listed(names, EXAMPLES)}; give one of these"
        )
    return found
