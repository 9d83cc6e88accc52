"""The two sides of a merge: the lineage of params.yaml and the other one, and what the other's types mean."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from canal.app.project import Project
from canal.app.sharing import SharedSums, read_shared, require_types
from canal.core.errors import DataError, HistoryError, RegistryError, SumsError, no_such_file
from canal.data.split import SUMMED
from canal.memory.joining import Meaning
from canal.memory.stage_sums import StageSums
from canal.registry.manifest.version_folder import Key
from canal.registry.provenance.registered import RegisteredVersion, ancestry, summed_splits
from canal.registry.store.database import Version
from canal.registry.versions.history import verified

if TYPE_CHECKING:
    import pandas as pd

_EXAMPLES = 5


@dataclass(frozen=True)
class Own:
    """The lineage of params.yaml that the other's sums are added to; ``partly`` as in `Other`."""

    version: Version
    folder: Path
    key: Key
    sums: StageSums
    splits: "Mapping[str, pd.DataFrame | None]"
    partly: bool = False

    @property
    def name(self) -> str:
        """For people."""
        return f"version {self.version.number} ({self.version.stage})"


@dataclass(frozen=True)
class Other:
    """The lineage whose sums are added.

    Attributes
    ----------
    name, digest : str
        For people; and the digest of its key, or of its bundle.
    sums : StageSums
    splits : dict
        Stage -> its cells, where they are known.
    shared : SharedSums or None
        What the bundle holds, where it is one.
    partly : bool
        Whether some of its sums are what a site released, not all that it learned from.
    """

    name: str
    digest: str
    sums: StageSums
    splits: "Mapping[str, pd.DataFrame | None]"
    shared: SharedSums | None = None
    partly: bool = False


def sides(project: Project, wanted: tuple[str, str]) -> tuple[Own, Other]:
    """Return the lineage of params.yaml, and the other one, in whatever order they are named.

    Raises
    ------
    RegistryError
        If there is no such version, or both are one.
    HistoryError
        If neither is the newest version of a lineage in params.yaml, one keeps no sums, or the other has
        cells that params.yaml excludes.
    """
    versions = [None if is_bundle(one) else project.store.version(one) for one in wanted]
    if len({one.key for one in versions if one is not None}) == 1 and None not in versions:
        raise RegistryError(f"{wanted[0]} and {wanted[1]} are one version: a merge needs two lineages")
    reasons = []
    for place, version in enumerate(versions):
        why = f"{wanted[place]} is a bundle" if version is None else _why_not_own(project, version)
        if why is not None and version is not None:
            version = _begun(project, version, wanted[1 - place]) or version
            why = _why_not_own(project, version)
        if version is not None and why is None:
            other = versions[1 - place]
            side = _bundle(Path(wanted[1 - place])) if other is None else _other(project, other)
            if other is not None and not other.imported:
                _refuse_excluded(project, side)
            return _own(project, version), side
        reasons.append(str(why))
    raise HistoryError(
        "one of both has to be the newest version of a lineage in params.yaml, to which the other's sums are "
        f"added: {'; '.join(reasons)}"
    )


def made_already(project: Project, wanted: tuple[str, str]) -> tuple[Own, Own, Other] | None:
    """Return the version of params.yaml that both are merged to, and both sides; None where there is none."""
    for first, second in (wanted, wanted[::-1]):
        if is_bundle(first):
            continue
        version = project.store.version(first)
        if version.imported or version.stage not in project.config.stages:
            continue
        now = project.learned(version.stage)
        key = {} if now is None else verified(project.store, now)[1]
        if now is None or "merged" not in key or version.key not in (key["parent"], now.key):
            continue
        version = _with_key(project, key["parent"]) or version  # an alias has moved to the merged version
        other = _bundle(Path(second)) if is_bundle(second) else _other(project, project.store.version(second))
        if other.digest == key["merged"]["other"]:
            return _own(project, now), _own(project, version), other
    return None


def _refuse_excluded(project: Project, other: Other) -> None:
    """Refuse sums of cells that params.yaml excludes: by a merge, withdrawn cells would be back."""
    back = 0
    for split in (one for one in other.splits.values() if one is not None):
        summed = split[split["set"].isin(SUMMED)]
        for name, source in project.config.sources.items():
            ids = {f"{name}:{cell}" for cell in source.exclude.cells}
            of_source = summed["cell_id"].str.startswith(f"{name}:")
            excluded = of_source & summed["batch"].isin(source.exclude.batches)
            back += int((summed["cell_id"].isin(ids) | excluded).sum())
    if back:
        raise HistoryError(
            f"{back:,} summed cells of {other.name} are excluded by params.yaml (sources.NAME.exclude), such "
            "as after canal unlearn: by this merge they would be back. Merge a version without them, or take "
            "them out of `exclude` first if they may come back"
        )


def _begun(project: Project, version: Version, other: str) -> Version | None:
    """Return the parent of a merged version that params.yaml does not ask for yet; an alias moved to it."""
    merged = verified(project.store, version)[1] if version.ready and not version.erased else {}
    if "merged" not in merged:
        return None
    side = _bundle(Path(other)).digest if is_bundle(other) else project.store.version(other).key
    return _with_key(project, merged["parent"]) if side == merged["merged"]["other"] else None


def _with_key(project: Project, key: str) -> Version | None:
    return next((one for one in project.store.versions() if one.key == key), None)


def is_bundle(wanted: str) -> bool:
    """Whether an argument names a file and no version."""
    return not wanted.isdigit() and Path(wanted).is_file()


def _bundle(path: Path) -> Other:
    shared = read_shared(path)
    return Other(path.name, shared.digest, shared.sums, {}, shared, partly=True)


def _why_not_own(project: Project, version: Version) -> str | None:
    """Return why a version is not one that the other's sums can be added to; None where it is."""
    config, name = project.config, f"version {version.number} ({version.stage})"
    if version.imported or version.stage not in config.stages:
        return f"{name} is of another project"
    now = project.learned(version.stage)
    if now is None or now.number != version.number:
        return f"{name} is not what params.yaml asks {version.stage} to be" + (
            "" if now is None else f", which is version {now.number}"
        )
    if later := [stage for stage, one in config.stages.items() if one.parent == version.stage]:
        return f"{later[0]} was learned on {name}: name its newest version"
    return None


def _own(project: Project, version: Version) -> Own:
    folder, key = verified(project.store, version)
    sums, chain = _sums(project, version, folder, key)
    # Cells of a stage without sums count, too: they measure the version, or its network learned from them.
    splits = {one.stage: one.split for one in chain if one.is_annotator and one.stage not in key["sums"]}
    return Own(version, folder, key, sums, {**splits, **_splits(chain)}, _partly(chain))


def _other(project: Project, version: Version) -> Other:
    folder, key = verified(project.store, version)
    sums, chain = _sums(project, version, folder, key)
    name = f"version {version.number} ({version.stage})"
    return Other(name, version.key, sums, _splits(chain), partly=_partly(chain))


def _sums(
    project: Project, version: Version, folder: Path, key: Key
) -> tuple[StageSums, list[RegisteredVersion]]:
    """Return the sums of a version, and its ancestors."""
    sums = StageSums.load(folder, list(key["sums"])) if "sums" in key else None
    if sums is None:
        raise HistoryError(
            f"version {version.number} ({version.stage}) keeps no sums, and networks cannot be merged: "
            f"`canal sums backfill {version.stage}` adds sums, in the project that learned it"
        )
    return sums, ancestry(project.store, version)


def _partly(chain: Sequence[RegisteredVersion]) -> bool:
    return any("released" in one.key.get("merged", {}) for one in chain)


def _splits(chain: Sequence[RegisteredVersion]) -> "Mapping[str, pd.DataFrame | None]":
    return summed_splits(chain[0], {one.digest: one for one in chain})


def require_same(found: Mapping[str, Meaning], same: Sequence[str], other: str) -> None:
    """Refuse names that mean other cells in the other lineage, unless a person called them the same."""
    if unknown := sorted(set(same) - set(found)):
        raise SumsError(f"--same {unknown[0]}: no such type is in both lineages, so there is nothing to say")
    different = {name: one for name, one in found.items() if one.differs and name not in same}
    if not different:
        return
    lines = [
        f"{name}: its cells there are {one.distance:.1f} levels from those here, {one.ratio:.2f} times as "
        f"far as the nearest other type, {one.nearest} (spread within types {one.spread:.1f})"
        + (f"; it looks exchanged with {one.exchanged}" if one.exchanged else "")
        for name, one in different.items()
    ]
    raise SumsError(
        f"{len(different)} names seem to mean other cells in {other} than here:\n  "
        + "\n  ".join(lines[:_EXAMPLES])
        + "\nGive the other's types their names here (--map FILE, lines `their name,our name`), or say that "
        f"they are the same nevertheless, which is kept on record (--same {next(iter(different))!r})"
    )


def read_type_names(path: Path | None, types: Sequence[str]) -> dict[str, str]:
    """Return the other's types that have another name here, from a CSV or YAML table: their name, our name.

    Raises
    ------
    DataError
        If the file is missing or no such table, or names a type that the other lineage has not.
    """
    if path is None:
        return {}
    if not path.is_file():
        raise DataError(no_such_file(path, "it must hold lines `their name,our name`"))
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix in (".yaml", ".yml"):
            document = YAML(typ="safe").load(text)
            pairs: list[tuple[Any, ...]] = [*document.items()] if isinstance(document, Mapping) else [()]
        else:
            pairs = [tuple(map(str.strip, row)) for row in csv.reader(text.splitlines()) if any(row)]
    except (UnicodeDecodeError, YAMLError, csv.Error) as error:
        raise DataError(f"{path} is no table of two columns ({error})") from error
    wrong = [
        pair for pair in pairs if len(pair) != 2 or not all(isinstance(one, str) and one for one in pair)
    ]
    if wrong or not pairs:
        raise DataError(
            f"{path} must hold two names in each line, theirs and ours (CSV `their name,our name`, YAML "
            f"`their name: our name`), found {list(wrong[0]) if wrong else 'nothing'}"
        )
    names: dict[str, str] = dict(pairs)
    if len(names) < len(pairs):
        raise DataError(f"{path} names a type of theirs twice")
    if unknown := sorted(set(names) - set(types)):
        raise DataError(
            f"{path} names {', '.join(unknown[:_EXAMPLES])}, which the other lineage has not; it has "
            f"{', '.join(types)}"
        )
    require_types([*names.values()], str(path))
    return {theirs: ours for theirs, ours in names.items() if theirs != ours}
