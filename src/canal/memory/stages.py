"""The sums of a lineage: a file a stage in every model folder, so that each version can be solved alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from canal.core.digests import canonical_json
from canal.core.errors import SumsError
from canal.core.files import parse_json, read_json, write_json
from canal.memory.basis import Basis
from canal.memory.sums import Sums

SUMS = "sums"
OWN_BATCHES = "batches/own.safetensors"
"""In a model folder: sums by stage, and those of its own stage by batch and type."""

MISSING = "missing.json"
"""Beside the sums: of each stage, the genes of the basis that its file lacks."""

BASIS = "model/exact/basis"


@dataclass(frozen=True, eq=False)
class StageSums:
    """The sums of a lineage so far.

    Attributes
    ----------
    basis : Basis
    stages : dict
        Stage -> its sums, oldest first; a stage that was learned before sums were kept has none.
    missing : dict
        Stage -> genes of the basis that its file lacks.
    """

    basis: Basis
    stages: Mapping[str, Sums] = field(default_factory=dict)
    missing: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path, stages: Sequence[str]) -> StageSums | None:
        """Read the sums of a model folder, of some of the lineage's ``stages``; None where it keeps none.

        Raises
        ------
        SumsError
            If a file is damaged, or of a stage that is none of the lineage's.
        """
        files = {path.stem: path for path in sorted((folder / SUMS).glob("*.safetensors"))}
        if not files:
            return None
        if strange := sorted(set(files) - set(stages)):
            raise SumsError(
                f"{folder / SUMS} holds sums of {', '.join(strange[:5])}, which is no stage of this lineage "
                f"({', '.join(stages)}); restore the model"
            )
        basis = Basis.load(folder / BASIS)
        sums = {name: Sums.load(files[name]) for name in stages if name in files}
        return cls(basis, sums, _read_missing(folder / SUMS / MISSING, basis, sums))

    def save(self, folder: Path) -> None:
        """Write a file for each stage into ``sums/`` of a model folder."""
        for name, sums in self.stages.items():
            sums.save(folder / SUMS / f"{name}.safetensors")
        lacking = {name: list(genes) for name, genes in self.missing.items()}
        write_json(folder / SUMS / MISSING, lacking)

    def plus(self, stage: str, sums: Sums, missing: Collection[str] = ()) -> StageSums:
        """Return the sums with those of one more stage, whose file lacks the genes ``missing``."""
        return StageSums(self.basis, {**self.stages, stage: sums}, {**self.missing, stage: tuple(missing)})

    def without_stage(self, stage: str) -> StageSums:
        """Return the sums as if a stage had never been added."""
        rest = {name: sums for name, sums in self.stages.items() if name != stage}
        return StageSums(self.basis, rest, {name: self.missing.get(name, ()) for name in rest})

    def without_types(self, names: Collection[str]) -> StageSums:
        """Return the sums as if no cell of these types had ever been added."""
        rest = {stage: sums.without(names) for stage, sums in self.stages.items()}
        return StageSums(self.basis, rest, self.missing)

    @cached_property
    def types(self) -> tuple[str, ...]:
        """Cell types with at least one cell."""
        return tuple(sorted({name for sums in self.stages.values() for name in sums.types}, key=str.encode))

    def lacking(self, labels: Sequence[str]) -> tuple[str, ...]:
        """Return the labels of which no cell was ever added."""
        return tuple(name for name in labels if name not in self.types)


def batch_and_type(batch: str, cell_type: str) -> str:
    """Return the name of the cells of a batch and type in the sums by batch."""
    return canonical_json([batch, cell_type])


def by_type(batches: Sums) -> Sums:
    """Return sums by batch and type as those by type."""
    return batches.renamed({name: str(parse_json(name)[1]) for name in batches.types})


def _read_missing(path: Path, basis: Basis, stages: Mapping[str, Sums]) -> dict[str, tuple[str, ...]]:
    try:
        found = {str(name): tuple(map(str, genes)) for name, genes in read_json(path).items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise SumsError(f"{path} is missing or damaged ({error}); restore the model") from error
    fits = set(found) == set(stages) and all(
        set(genes) <= set(basis.genes)
        and len(set(genes)) == len(genes)
        and not stages[name].totals[:, ~basis.present(genes)].any()
        for name, genes in found.items()
    )
    if not fits:
        raise SumsError(
            f"{path} must name genes of the basis that have no sums, for each of {', '.join(stages)}; "
            "restore the model"
        )
    return found
