"""Which cells each version has met: its split, its parent's bank and probe sets, what measured it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from canal.config.params import Config
from canal.config.sections import Exclusion
from canal.core.digests import file_digest
from canal.core.errors import RegistryError
from canal.core.files import read_json
from canal.data.split import SUMMED, read_split
from canal.io.h5ad import open_h5ad
from canal.registry.ancestry import Proven, every_version
from canal.registry.store import Store

if TYPE_CHECKING:
    import pandas as pd

BANK, PROBE = "bank/bank.h5ad", "probe/probe.h5ad"
_SPLIT, _LABELS, _PREDICTIONS = "split/cells.csv", "model/labels.json", "metrics/predictions.csv"


class Memory:
    """All ready versions of a registry, and the tables that say which cells each of them met.

    Only keys, splits, banks, probe sets and test answers are read, each checked against its digest, once.

    Attributes
    ----------
    versions : list of Proven
        A parent always stands before its children. What imported versions were learned on elsewhere is among
        them: its split is known, its bank, probe sets and answers are not.
    """

    def __init__(self, store: Store) -> None:
        self._layout = store.layout
        self.versions = _parents_first(every_version(store))
        self._by_key = {one.version.key: one for one in self.versions}
        self._splits: dict[str, pd.DataFrame] = {}
        for one in self.versions:
            if one.taught and one.key["split"] not in self._splits:
                self._splits[one.key["split"]] = _split(one)

    @property
    def cells(self) -> pd.DataFrame:
        """Every cell of every split: cell_id, cell_type, batch, cell_digest, set, source."""
        import pandas as pd

        tables = list(self._splits.values())
        columns = ["cell_id", "cell_type", "batch", "cell_digest", "set", "source"]
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)

    def parent(self, one: Proven) -> Proven | None:
        """Return the version that ``one`` was learned on; None where it is not registered, or has none."""
        return self._by_key.get(one.key["parent"] or "")

    def divided(self, one: Proven) -> list[pd.DataFrame] | None:
        """Return the splits that a version learned by; None where one of them is not known any more."""
        if one.imported:
            return []
        if one.taught:
            return [self._splits[one.key["split"]]]
        request = one.key["request"]
        first, others = request["panel"]["stage"], dict(request["cells"])
        del others[first]
        found = [self._root_split(one, first), *(self._asked_split(*other) for other in others.items())]
        tables = [table for table in found if table is not None]
        return tables if len(tables) == len(found) else None

    def replayed(self, one: Proven) -> set[str]:
        """Return the ids of the cells that a version replayed from its parent's bank.

        The bank lies on disk in the order in which it is cut: within a type the first cells stay.
        """
        parent = self.parent(one)
        if not one.taught or parent is None or not parent.taught:
            return set()
        # Without a bank the parent is an ancestor elsewhere: what was replayed of it, it learned itself.
        if one.by_sums_alone or not parent.holds(BANK):
            return set()
        bank = _stored(parent, BANK)
        # A tuned stage is asked for without L: its study chose it.
        size = (one.key["request"]["continual"] | one.key.get("choice", {}))["bank_size"]
        quota = size // max(1, len(read_json(parent.file(_LABELS))))
        return set(bank["cell_id"][bank.groupby("cell_type").cumcount() < quota])

    def summed(self, one: Proven) -> set[str]:
        """Return the ids of the cells that are in a version's sums, of its ancestors' stages, too."""
        found: set[str] = set()
        stages, at = set(one.key.get("sums", {})), one if one.taught else None
        while at is not None and at.taught:
            if at.key["stage"] in stages:
                split = self._splits[at.key["split"]]
                found |= set(split["cell_id"][split["set"].isin(SUMMED)])
            at = self.parent(at)
        return found

    def watched(self, one: Proven) -> set[str]:
        """Return the ids of the probe cells of earlier stages, which judged a version while it learned."""
        parent = self.parent(one)
        if not one.taught or parent is None or not parent.taught or not parent.holds(PROBE):
            return set()
        return set(_stored(parent, PROBE)["cell_id"])

    def kept(self, one: Proven) -> set[str]:
        """Return the ids of the cells that a version holds, expression and all: its bank and probe sets."""
        if not one.taught:
            return set()
        return {cell for name in (BANK, PROBE) if one.holds(name) for cell in _stored(one, name)["cell_id"]}

    def tested(self, one: Proven) -> set[str]:
        """Return the ids of the test cells of all stages that a version was measured on."""
        import pandas as pd

        if not one.taught or not one.holds(_PREDICTIONS):
            return set()
        return set(pd.read_csv(one.file(_PREDICTIONS), dtype=str, keep_default_na=False)["cell_id"])

    def _root_split(self, one: Proven, stage: str) -> pd.DataFrame | None:
        """Return the split that a backbone's key names: a version's, or the project's before there is one."""
        digest = one.key["split"]
        if digest not in self._splits:
            path = self._layout.split(stage)
            if not path.is_file() or file_digest(path) != digest:
                return None
            self._splits[digest] = read_split(path).assign(source=one.key["data"]["source"])
        return self._splits[digest]

    def _asked_split(self, stage: str, request: Mapping[str, object]) -> pd.DataFrame | None:
        """Return the split of a stage that a backbone saw besides the first, from a version of that stage."""
        for one in self.versions:
            if one.taught and one.key["stage"] == stage and one.key["request"]["cells"] == request:
                return self._splits[one.key["split"]]
        return None


def exclusions(config: Config) -> dict[str, Exclusion]:
    """Return the cells and batches that params.yaml excludes, by source; sources without any are left out."""
    return {
        name: source.exclude
        for name, source in config.sources.items()
        if source.exclude.cells or source.exclude.batches
    }


def excluded_cells(memory: Memory, config: Config) -> dict[str, str]:
    """Return the excluded cells that some version knows: digest of the content -> one of its cell ids.

    A cell is known by what it holds: the same content under another id, or in another source, is excluded
    as well.
    """
    cells = memory.cells
    found: dict[str, str] = {}
    for name, one in exclusions(config).items():
        named = cells["cell_id"].isin([f"{name}:{cell}" for cell in one.cells])
        rows = cells[(cells["source"] == name) & (named | cells["batch"].isin(one.batches))]
        found |= dict(zip(rows["cell_digest"], rows["cell_id"], strict=True))
    return found


def _split(one: Proven) -> pd.DataFrame:
    return read_split(one.file(_SPLIT)).assign(source=one.key["data"]["source"])


def _stored(one: Proven, name: str) -> pd.DataFrame:
    """Return id and type of the cells of a bank or of probe sets, in the order of the file."""
    import pandas as pd

    with open_h5ad(one.file(name)) as file:
        return pd.DataFrame({column: file.obs_column(column) for column in ("cell_id", "cell_type")})


def _parents_first(versions: Sequence[Proven]) -> list[Proven]:
    """Return versions so that each stands behind the one it was learned on."""
    left = {one.version.key: one for one in versions}
    ordered: list[Proven] = []
    while left:
        ready = [one for one in left.values() if (one.key["parent"] or "") not in left]
        if not ready:
            raise RegistryError(
                f"{next(iter(left.values())).name} descends from itself: its key is no digest"
            )
        ordered += [left.pop(one.version.key) for one in ready]
    return ordered
