"""`canal share`: basis, labels and sums of a version in one file, for `canal merge` at another site.

The file holds no cell, no name of a cell, no split, no probe or bank, and no sums by batch. Types of few
cells are left out, since a sum of few cells gives them away (docs/privacy.md). A file is read as hostile
input.
"""

import hashlib
import hmac
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from canal.annotation.columns import UNASSIGNED
from canal.app.project import Project
from canal.config.sections import NAME_PATTERN
from canal.core.digests import file_digest
from canal.core.errors import AuditError, DataError, HistoryError, RegistryError, SumsError, no_such_file
from canal.core.files import read_json, scratch_folder, write_json
from canal.data.split import SUMMED
from canal.memory.joining import n_recovered
from canal.memory.stage_sums import BASIS, MISSING, SUMS, StageSums
from canal.memory.sums import Sums
from canal.registry.ledger.ledger import plain_name
from canal.registry.provenance.registered import ancestry, summed_splits
from canal.registry.store.database import Version
from canal.registry.transfer.bundle import SHARED, About, unpacked, write_bundle
from canal.registry.versions.history import verified

if TYPE_CHECKING:
    import pandas as pd

FORMAT = 1
ABOUT = "shared.json"
_SHORTEST_KEY = 16
_FIELDS = {"format", "basis", "labels", "stages", "min_cells", "withheld", "overlap"}
Keyed = Mapping[str, Mapping[str, Sequence[str]]]
"""Stage -> type -> digests of its cells under the sites' key."""


@dataclass(frozen=True)
class Shared:
    """A written bundle.

    Attributes
    ----------
    path, size, sha256
        The file.
    basis : str
        Digest of the basis.
    stages, withheld : dict
        Stage -> type -> number of cells: in the bundle, and left out since they are fewer than ``min_cells``.
    left_out : tuple of str
        Stages without any type in the bundle, and those of other lineages that were merged into the version.
    keyed : bool
        Whether it holds digests of cells under the sites' key.
    given_away : dict
        Stage -> type -> number of cells whose levels a reader computes exactly from the bundle.
    """

    path: str
    size: int
    sha256: str
    basis: str
    min_cells: int
    stages: dict[str, dict[str, int]]
    withheld: dict[str, dict[str, int]]
    left_out: tuple[str, ...]
    keyed: bool
    given_away: dict[str, dict[str, int]]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON document."""
        return asdict(self)


@dataclass(frozen=True)
class SharedSums:
    """What a bundle holds, all of it checked.

    Attributes
    ----------
    digest : str
        SHA-256 of its manifest, which names every file by its digest.
    sums : StageSums
    min_cells, withheld
        Under how many cells a type of a stage was left out, and which were.
    key : str or None
        Which key its cells' digests are under, as `OverlapKey.name`; None without such digests.
    keyed : dict
    """

    digest: str
    sums: StageSums
    min_cells: int
    withheld: Mapping[str, Sequence[str]]
    key: str | None
    keyed: Keyed


@dataclass(frozen=True)
class OverlapKey:
    """A secret that the sites agreed on, under which contents of cells are compared."""

    secret: bytes

    @classmethod
    def read(cls, path: Path) -> "OverlapKey":
        """Read the key from a file.

        Raises
        ------
        DataError
            If the file is missing, or holds too few bytes to be a secret.
        """
        if not path.is_file():
            raise DataError(no_such_file(path, "it must hold the secret that the sites agreed on"))
        secret = path.read_bytes().strip()
        if len(secret) < _SHORTEST_KEY:
            raise DataError(
                f"{path} holds {len(secret)} bytes, too few for a secret: one site makes 32 by chance "
                "(openssl rand -hex 32) and hands them to the others"
            )
        return cls(secret)

    @property
    def name(self) -> str:
        """Tells two keys apart, and nothing of them."""
        return self.of("canal overlap key")[:16]

    def of(self, content: str) -> str:
        """Return the digest of a cell's content digest under the key: HMAC-SHA256."""
        return hmac.new(self.secret, content.encode(), hashlib.sha256).hexdigest()


def share(
    project: Project, wanted: str, output: Path, min_cells: int | None = None, key: Path | None = None
) -> Shared:
    """Write the bundle of a version of this project.

    Raises
    ------
    RegistryError
        If there is no such version, it came from elsewhere, or ``output`` exists.
    HistoryError
        If it keeps no sums, or no type has enough cells.
    """
    least = project.config.share.min_cells if min_cells is None else min_cells
    if least < 1:
        raise DataError(f"--min-cells must be 1 or more, found {least}")
    if output.exists():
        raise RegistryError(f"{output} exists already: give another output")
    version, sums = _version_to_share(project, wanted)
    chain = ancestry(project.store, version)
    others = {name for one in chain for name in one.key.get("merged", {}).get("stages", ())}
    own = {name: one for name, one in sums.stages.items() if name not in others}
    kept = {name: one.without(_few(one, least)) for name, one in own.items()}
    kept = {name: one for name, one in kept.items() if one.types}
    withheld = {name: few for name, one in own.items() if (few := _few(one, least))}
    if not kept:
        raise HistoryError(
            f"no type of version {version.number} has {least} summed cells in a stage, so nothing may be "
            "shared: lower share.min_cells (canal's docs/privacy.md says what that gives away)"
        )
    given = StageSums(sums.basis, kept, {name: sums.missing.get(name, ()) for name in kept})
    splits = summed_splits(chain[0], {one.digest: one for one in chain})
    about = {
        "format": FORMAT,
        "basis": sums.basis.digest,
        "labels": list(given.types),
        "stages": {name: one.digest for name, one in kept.items()},
        "min_cells": least,
        "withheld": {name: sorted(few) for name, few in withheld.items()},
        "overlap": None if key is None else _keyed(OverlapKey.read(key), given, splits),
    }
    named = About(version.model, version.number, version.key, version.record)
    with scratch_folder("share") as scratch:
        given.save(scratch)
        given.basis.save(scratch / BASIS)
        write_json(scratch / ABOUT, about)
        files: dict[str, Path | bytes] = {name: scratch / name for name in _names(kept)}
        write_bundle(output, named, files, SHARED)
        read_shared(output)
    return Shared(
        path=str(output),
        size=output.stat().st_size,
        sha256=file_digest(output),
        basis=sums.basis.digest,
        min_cells=least,
        stages={name: _counts(one) for name, one in kept.items()},
        withheld=withheld,
        left_out=tuple(name for name in sums.stages if name not in kept),
        keyed=key is not None,
        given_away={name: n_recovered(one) for name, one in kept.items()},
    )


def _version_to_share(project: Project, wanted: str) -> tuple[Version, StageSums]:
    """Return a version whose sums may leave the project, and these."""
    version = project.store.version(wanted)
    if version.imported:
        raise RegistryError(
            f"version {version.number} was learned elsewhere: the project that learned it shares its sums"
        )
    if version.retired:
        raise RegistryError(
            f"version {version.number} ({version.stage}) is retired, such as after canal unlearn: its sums "
            "may be of cells that were withdrawn since; share a version that may serve"
        )
    _, record = verified(project.store, version)
    folder = project.store.artifacts(version)
    sums = StageSums.load(folder, list(record["sums"])) if "sums" in record else None
    if sums is None:
        raise HistoryError(
            f"version {version.number} ({version.stage}) keeps no sums, which are what is shared: `canal "
            f"sums backfill {version.stage}` adds them"
        )
    return version, sums


def _few(sums: Sums, least: int) -> dict[str, int]:
    """Return the types with fewer cells than may be shared, and how many they have."""
    return {name: n for name, n in _counts(sums).items() if n < least}


def _counts(sums: Sums) -> dict[str, int]:
    return dict(zip(sums.types, sums.counts.tolist(), strict=True))


def _names(stages: Iterable[str]) -> list[str]:
    """Return the files of a bundle."""
    sums = (f"{SUMS}/{name}.safetensors" for name in stages)
    return [ABOUT, f"{BASIS}/basis.json", f"{SUMS}/{MISSING}", *sums]


def _keyed(key: OverlapKey, given: StageSums, splits: "Mapping[str, pd.DataFrame | None]") -> dict[str, Any]:
    """Return digests of the shared cells' contents under the key, by stage and type."""
    cells: dict[str, dict[str, list[str]]] = {}
    for stage, sums in given.stages.items():
        split = splits.get(stage)
        if split is None:
            raise HistoryError(f"the split of {stage} is not here, so its cells cannot be compared")
        rows = split[split["set"].isin(SUMMED)]
        cells[stage] = {
            name: sorted(map(key.of, rows["cell_digest"][rows["cell_type"] == name])) for name in sums.types
        }
    return {"key": key.name, "cells": cells}


def read_shared(path: Path) -> SharedSums:
    """Read a bundle.

    Raises
    ------
    AuditError
        If it is no whole bundle, or a file differs from the digest in its manifest.
    SumsError
        If no cells can have its sums, or they are not those that it says they are.
    """
    with unpacked(path, SHARED) as (folder, manifest):
        about = _about(folder / ABOUT, path)
        stages = list(about["stages"])
        if set(manifest.files) != set(_names(stages)):
            raise AuditError(f"{path} holds other files than those of the sums that it names")
        sums = StageSums.load(folder, stages)
        if sums is None or set(sums.stages) != set(stages):
            raise SumsError(f"{path} lacks the sums of a stage that it names")
        for stage, one in sums.stages.items():
            if one.basis != sums.basis.digest or sums.basis.digest != about["basis"]:
                raise SumsError(f"{path}: the sums of {stage} are of another basis than it says")
            if one.digest != about["stages"][stage]:
                raise SumsError(f"{path}: the sums of {stage} are not those that it names")
            if few := _few(one, about["min_cells"]):
                raise SumsError(
                    f"{path}: {stage} has {', '.join(few)} of fewer than {about['min_cells']} cells, which "
                    "it says are left out"
                )
            _require_possible(one, f"{path}: {stage}")
        require_types(sums.types, str(path))
        if list(sums.types) != about["labels"]:
            raise SumsError(f"{path}: its sums are of other types than it names")
        overlap = about["overlap"] or {"key": None, "cells": {}}
        _check_keyed(overlap["cells"], sums, path)
        named = About(manifest.model, manifest.version, manifest.key, manifest.record)
        again = folder.with_name("again")
        write_bundle(again, named, {name: folder / name for name in manifest.files}, SHARED)
        if file_digest(again) != file_digest(path):
            raise AuditError(f"{path} holds other bytes than this canal writes for its content")
        digest = hashlib.sha256(manifest.text().encode()).hexdigest()
        withheld = {str(name): list(map(str, few)) for name, few in about["withheld"].items()}
    return SharedSums(digest, sums, about["min_cells"], withheld, overlap["key"], overlap["cells"])


def _about(file: Path, path: Path) -> dict[str, Any]:
    """Return shared.json, if its fields are as this canal writes them."""
    try:
        about = read_json(file)
        right = (
            set(about) == _FIELDS
            and about["format"] == FORMAT
            and type(about["min_cells"]) is int
            and about["min_cells"] >= 1
            and all(isinstance(one, str) for one in (about["basis"], *about["stages"].values()))
            and all(isinstance(few, list) for few in about["withheld"].values())
            and (about["overlap"] is None or set(about["overlap"]) == {"key", "cells"})
            and bool(about["stages"])
            and all(NAME_PATTERN.fullmatch(name) for name in (*about["stages"], *about["withheld"]))
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise AuditError(f"{path}: {ABOUT} is missing or damaged ({error}): ask for it again") from error
    if not right:
        raise AuditError(f"{path}: {ABOUT} is not as this canal writes it, or of a later format")
    document: dict[str, Any] = about
    return document


def require_types(names: Sequence[str], what: str) -> None:
    """Raise for names of cell types that nobody can read, or that are reserved."""
    for name in names:
        if name.strip().casefold() == UNASSIGNED.casefold():
            raise DataError(f"{what}: no cell type is called {UNASSIGNED}: cells of no known type are")
        try:
            plain_name(name, f"the cell type {ascii(name[:60])}")
        except RegistryError as error:
            raise DataError(f"{what}: {error}") from error


def _require_possible(sums: Sums, what: str) -> None:
    """Raise where two genes go together more than their variances let any cells do."""
    rows = np.arange(sums.size)
    diagonal = sums.products[:, rows * sums.size - rows * (rows - 1) // 2].astype(np.float64)
    first, second = np.triu_indices(sums.size)
    for row, name in enumerate(sums.types):
        n, total = float(sums.counts[row]), sums.totals[row].astype(np.float64)
        variance = np.maximum(n * diagonal[row] - total**2, 0.0)
        together = n * sums.products[row].astype(np.float64) - total[first] * total[second]
        if (together**2 > variance[first] * variance[second] * (1 + 1e-6) + 1e-3 * n**2).any():
            raise SumsError(
                f"{what}: no {int(n)} cells of {name} can have these products of levels: the bundle was made "
                "up or damaged; ask for it again"
            )


def _check_keyed(cells: Any, sums: StageSums, path: Path) -> None:
    """Raise unless there is a digest for each cell of each type, or none at all."""
    wanted = {stage: _counts(one) for stage, one in sums.stages.items()}
    try:
        right = (
            not cells
            or {
                stage: {name: len(digests) for name, digests in types.items()}
                for stage, types in cells.items()
            }
            == wanted
        )
        right = right and all(
            isinstance(one, str) and len(one) == 64  # noqa: PLR2004 - hexadecimal digits of a SHA-256
            for types in cells.values()
            for digests in types.values()
            for one in digests
        )
    except (TypeError, AttributeError):
        right = False
    if not right:
        raise AuditError(f"{path}: its keyed digests are not one for each cell of its sums")
