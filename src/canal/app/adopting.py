"""A lineage on another's basis: the basis goes out of a version, into a project, and to what needs it.

Sums can be put together, and are equal byte for byte in any order, on one basis alone.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from canal.app.project import Project
from canal.config.sections import BACKBONE
from canal.core.errors import HistoryError, RegistryError, SumsError
from canal.core.files import new_file
from canal.registry.history import verified

if TYPE_CHECKING:
    from canal.memory.levels import Basis

_IN_VERSION = "model/exact/basis/basis.json"


@dataclass(frozen=True)
class Adopted:
    """What came of an adoption: the basis's folder, its digest, its size, and whose cells chose it."""

    path: str
    digest: str
    genes: int
    seen: dict[str, str]
    changed: bool

    def to_json(self) -> dict[str, Any]:
        """Return a JSON document."""
        return dict(self.__dict__)


def export_basis(project: Project, wanted: str, output: Path) -> Path:
    """Write the basis of a version to a file, or into a folder as ``basis.json``; return the file.

    Raises
    ------
    RegistryError
        If there is no such version, or it keeps no sums; or another file lies there.
    """
    version = project.store.version(wanted)
    folder, key = verified(project.store, version)
    if _IN_VERSION not in key["files"]:
        raise RegistryError(
            f"version {version.number} ({version.stage}) keeps no sums, so it has no basis: "
            f"`canal sums backfill {version.stage}` adds them"
        )
    content = (folder / _IN_VERSION).read_bytes()
    target = output if output.suffix == ".json" else output / "basis.json"
    if target.exists() and (not target.is_file() or target.read_bytes() != content):
        raise RegistryError(f"{target} is there already and is something else: name another place")
    with new_file(target) as temporary:
        temporary.write_bytes(content)
    return target


def adopt_basis(project: Project, source: Path) -> Adopted:
    """Make another lineage's basis that of this project's, which has not begun; again, it changes nothing.

    The basis is copied to ``bases/NAME``, then params.yaml names it: a kill between leaves what a second call
    completes.

    Raises
    ------
    SumsError
        If the file is missing, damaged, or no basis.
    HistoryError
        If the lineage has begun on a basis of its own.
    RegistryError
        If another basis of that name was adopted.
    """
    from canal.config.edit import save, with_basis
    from canal.memory.levels import Basis

    path = source / "basis.json" if source.is_dir() else source
    basis, layout, adopted = Basis.read(path), project.layout, project.config.memory.basis
    folder = layout.basis(_name(path))
    relative = folder.relative_to(layout.root).as_posix()
    if adopted is None or adopted.digest != basis.digest:
        _refuse_begun(project)
    elif adopted.path != relative and adopted_basis(project) is not None:
        return Adopted(adopted.path, basis.digest, basis.size, basis.seen, changed=False)
    if (folder / "basis.json").is_file() and Basis.load(folder).digest != basis.digest:
        raise RegistryError(
            f"{folder} holds another basis; give the file another name, or remove that folder"
        )
    basis.save(folder)
    changed = adopted is None or adopted.digest != basis.digest
    if changed:
        save(layout.params, with_basis(layout.params.read_text(encoding="utf-8"), relative, basis.digest))
    return Adopted(relative, basis.digest, basis.size, basis.seen, changed)


def adopted_basis(project: Project) -> "Basis | None":
    """Return the basis that params.yaml names; None where the lineage chooses its own.

    Raises
    ------
    SumsError
        If it is not there, or not the one that is meant.
    """
    from canal.memory.levels import Basis

    wanted = project.config.memory.basis
    if wanted is None:
        return None
    basis = Basis.load(project.layout.root / wanted.path)
    if basis.digest != wanted.digest:
        raise SumsError(
            f"memory.basis: {wanted.path} holds the basis {basis.digest[:12]}..., params.yaml names "
            f"{wanted.digest[:12]}...: run `canal basis adopt` for the one that is meant"
        )
    return basis


def _refuse_begun(project: Project) -> None:
    """Refuse where the backbone was learned: its panel is another, and every request would change."""
    try:
        begun = project.learned(BACKBONE) is not None
    except HistoryError:
        begun = True
    if begun:
        raise HistoryError(
            "this lineage has begun on a basis of its own: on another one each of its stages would be asked "
            "for otherwise, and the past is not learned again. Adopt the basis in a new project folder, "
            "before its first `make run`, or begin anew here: `canal stage relearn backbone`, then adopt"
        )


def _name(path: Path) -> str:
    """Return a folder's name for a basis: that of its file, or of the folder of a ``basis.json``."""
    stem = path.resolve().parent.name if path.name == "basis.json" else path.stem
    return re.sub(r"[^a-z0-9_]+", "-", stem.lower()).strip("-_")[:64] or "basis"
