"""The cells that leave a stage, and what remains: its split without their rows, its sums without theirs.

Sums are whole numbers, so what remains is exact: the sums by batch give a whole batch, the prepared file the
sums of single cells, which are subtracted.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from canal.app.project import Project
from canal.core.errors import DataError, HistoryError, SumsError, did_you_mean, no_such_file
from canal.core.files import parse_json
from canal.data.panel import choose_panel
from canal.data.prepared import PreparedCells
from canal.data.split import SUMMED, read_split
from canal.memory.stage_sums import OWN_BATCHES, StageSums, batch_and_type, by_type
from canal.memory.sums import Sums, add_up

if TYPE_CHECKING:
    import pandas as pd

_EXAMPLES = 5


@dataclass(frozen=True)
class Withdrawal:
    """The cells that leave: a whole source, a batch of it, or cells by name.

    Attributes
    ----------
    source : str
        A source of params.yaml.
    batch : str or None
        The whole batch, such as a donor.
    cells : tuple of str
        Names of cells, as the file has them, or ``SOURCE:NAME``.
    """

    source: str
    batch: str | None = None
    cells: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether the whole source leaves, with its stages."""
        return self.batch is None and not self.cells

    @property
    def ids(self) -> set[str]:
        """The named cells as splits name them."""
        prefix = f"{self.source}:"
        return {name if name.startswith(prefix) else f"{prefix}{name}" for name in self.cells}


@dataclass(frozen=True)
class Remainder:
    """A stage without the withdrawn cells: its split and sums; no sums where the whole stage leaves."""

    stage: str
    split: "pd.DataFrame"
    gone: "pd.DataFrame"
    sums: Sums | None
    batches: Sums | None


@dataclass(frozen=True)
class Unlearned:
    """The result of an unlearning.

    Attributes
    ----------
    source : str
    n_cells : int
        Withdrawn cells, of all sets; ``n_summed`` of them were in sums.
    withdrawn : str
        SHA-256 of the sorted content digests of the withdrawn cells.
    versions : dict
        Stage -> the old version's number and the new one's (None in a dry run).
    lost_types : tuple of str
        Cell types that have no cell any more, or that only a network knew.
    not_calibrated : tuple of str
        Types with so few probe cells that nothing can be said on how far their confidence may be believed.
    basis : dict
        Stage whose withdrawn cells had a part in the choice of genes -> ``"same"``, the genes that would be
        others, or why that was not checked.
    holding : tuple of int
        Versions that still hold the cells and may serve; the champion among them is named in ``champion``.
    """

    source: str
    n_cells: int
    n_summed: int
    withdrawn: str
    versions: dict[str, dict[str, int | None]]
    lost_types: tuple[str, ...]
    not_calibrated: tuple[str, ...]
    basis: dict[str, Any]
    holding: tuple[int, ...] = ()
    champion: int | None = None
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return a JSON document."""
        return asdict(self)


def remainder_of(project: Project, stage: str, folder: Path, withdrawal: Withdrawal) -> Remainder:
    """Return split and sums of a stage without the withdrawn cells; ``folder`` holds its verified version.

    Raises
    ------
    HistoryError
        If the stage has no such cells or keeps no sums, or sums of single cells need a file that is gone.
    SumsError
        If the remaining sums do not count the remaining cells.
    """
    split = read_split(folder / "split" / "cells.csv")
    if withdrawal.whole:
        return Remainder(stage, split[:0], split, None, None)
    leaves = split["cell_id"].isin(withdrawal.ids)
    if withdrawal.batch is not None:
        leaves |= split["batch"] == withdrawal.batch
    unknown = withdrawal.ids - set(split["cell_id"])
    if unknown or not leaves.any():
        near = ""
        if withdrawal.batch is not None:
            asked, what = f"batch {withdrawal.batch!r}", "batches such as"
            known = sorted(set(split["batch"]))[:_EXAMPLES]
            near = did_you_mean(withdrawal.batch, split["batch"])
        else:
            asked = f"{len(unknown):,} of the {len(withdrawal.ids):,} named cells"
            what, known = "unknown are, for example,", sorted(one[:80] for one in unknown)[:_EXAMPLES]
        raise HistoryError(f"{stage} has no {asked} of {withdrawal.source}: {what} {', '.join(known)}{near}")
    gone, rest = split[leaves], split[~leaves].reset_index(drop=True)
    summed = gone[gone["set"].isin(SUMMED)]
    if not rest["set"].isin(SUMMED).any():
        raise HistoryError(
            f"all training cells of {stage} would leave, and a stage without cells is none: `canal impact "
            f"{withdrawal.source}` lists the steps that take the whole stage out"
        )
    sums = StageSums.load(folder, project.config.summed_stages(stage))
    if sums is None or stage not in sums.stages:
        raise HistoryError(
            f"{stage} keeps no sums, and a network cannot unlearn: `canal sums backfill {stage}` adds sums, "
            "or learn the stage again without the cells (`canal impact` lists the steps)"
        )
    own, batches = sums.stages[stage], None
    by_batch = folder / OWN_BATCHES
    if by_batch.is_file():
        batches = Sums.load(by_batch)
    if batches is not None and withdrawal.batch is not None and not withdrawal.cells:
        batches = batches.without([one for one in batches.types if parse_json(one)[0] == withdrawal.batch])
        own = by_type(batches)
    else:
        own, batches = _subtracted(project, summed, sums, batches)
    left = rest[rest["set"].isin(SUMMED)]["cell_type"].value_counts().to_dict()
    counts = dict(zip(own.types, own.counts.tolist(), strict=True))
    if counts != left:
        raise SumsError(f"{stage}: the remaining sums count {counts}, its split {left}: run `canal audit`")
    return Remainder(stage, rest, gone, own, batches)


def _subtracted(
    project: Project, gone: "pd.DataFrame", sums: StageSums, batches: Sums | None
) -> tuple[Sums, Sums | None]:
    """Return the sums of the newest stage, and those by batch, minus those of cells in its prepared file."""
    stage, own = list(sums.stages)[-1], sums.stages[list(sums.stages)[-1]]
    if gone.empty:
        return own, batches
    source = project.config.stages[stage].source
    prepared = PreparedCells(project.layout.prepared(source) / "cells.h5ad")
    # Other cells of the file may have left since, so what is compared is the content of these.
    recorded = dict(zip(gone["cell_id"], gone["cell_digest"], strict=True))
    if not (
        prepared.path.is_file()
        and prepared.values == project.config.sources[source].values
        and set(recorded) <= set(prepared.obs.index)
        and prepared.digests(list(recorded)) == recorded
    ):
        raise HistoryError(
            f"sums of single cells of {stage} need the prepared file that it was learned from, and "
            f"{prepared.path} is {'another one' if prepared.path.is_file() else 'gone'}: restore it (dvc "
            "checkout, dvc pull), withdraw whole batches, or learn the stage again without the cells"
        )
    by_cell = dict(zip(gone["cell_id"], zip(gone["batch"], gone["cell_type"], strict=True), strict=True))
    chunks = list(prepared.chunks(list(by_cell), sums.basis.genes))
    withdrawn = add_up(sums.basis, ((values, [by_cell[one][1] for one in ids]) for ids, values in chunks))
    if batches is not None:
        pairs = ((values, [batch_and_type(*by_cell[one]) for one in ids]) for ids, values in chunks)
        batches = batches.minus(add_up(sums.basis, pairs))
    return own.minus(withdrawn), batches


def read_names_of_cells(path: Path | None) -> tuple[str, ...]:
    """Return the names in a text file, one a line; none without a file.

    Raises
    ------
    DataError
        If the file is missing, is no text in UTF-8 or names no cell.
    """
    if path is None:
        return ()
    if not path.is_file():
        raise DataError(no_such_file(path, "it must hold a name of a cell on each line"))
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is no text in UTF-8 ({error}): it must hold a name of a cell on each line"
        ) from error
    names = tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not names:
        raise DataError(f"{path} names no cell: it must hold a name of a cell on each line")
    return names


def basis_checks(
    project: Project, folders: Mapping[str, Path], remainders: Mapping[str, Remainder]
) -> Iterator[tuple[str, Any]]:
    """Yield, for each stage whose cells had a part in the choice of the basis, what it would be without them.

    ``"same"``, ``{"other": genes}`` with the genes that are in one of both alone, or why it was not checked.
    """
    for stage, remainder in remainders.items():
        sums = StageSums.load(folders[stage], project.config.summed_stages(stage))
        if sums is None or stage not in sums.basis.seen:
            continue
        if not project.available(stage):
            yield stage, "not checked: its prepared cells are gone"
            continue
        genes = project.panel
        again = choose_panel(project.prepared(stage), remainder.split, project.config.panel, len(genes))
        differ = set(again.genes) ^ set(genes)
        yield stage, {"other": sorted(differ)} if differ else "same"
