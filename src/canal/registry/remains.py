"""Models that lie in project folders, by key: what a registry is made of again."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from canal.config.layout import Layout
from canal.config.sections import BACKBONE
from canal.core.digests import file_digest
from canal.registry.imported import IMPORT_KEY, import_of
from canal.registry.key import KEY_FILE
from canal.registry.publish import whole_key


@dataclass(frozen=True)
class Remain:
    """One model folder.

    Attributes
    ----------
    folder : Path
        With a key.json; for an import that only models/backbone remembers, the folder of that.
    layout : Layout
        The project folder that it lies in.
    stage : str or None
        The stage that it was learned as; None for an import.
    adopted : bool
        Whether the import has to be taken out of models/backbone.
    """

    folder: Path
    layout: Layout
    stage: str | None
    adopted: bool = False


@dataclass(frozen=True)
class Remains:
    """What was found, and what was looked for in vain."""

    found: Mapping[str, Remain]
    places: tuple[Path, ...]

    def lacks(self, key: str) -> str | None:
        """Return why the model with this key cannot be used; None where it can."""
        remain = self.found.get(key)
        if remain is None:
            looked = ", ".join(str(place / "models") for place in self.places)
            return f"no model with key {key[:12]}... lies in {looked}"
        measured = remain.stage in (None, BACKBONE) or _measured(remain)
        return None if measured else f"{remain.layout.metrics(str(remain.stage))} holds no evaluation.json"

    @contextmanager
    def folder(self, key: str) -> Iterator[Remain]:
        """Give the folder of a model, checked file by file.

        Raises
        ------
        RegistryError
            Naming every file that is not what the key says.
        """
        remain = self.found[key]
        whole_key(remain.folder)
        if not remain.adopted:
            yield remain
            return
        with tempfile.TemporaryDirectory(prefix="canal-import-") as scratch:
            yield replace(remain, folder=import_of(remain.folder, Path(scratch)))


def find_remains(layouts: Sequence[Layout]) -> Remains:
    """Look through ``models/`` and ``backbones/`` of project folders; what comes first counts."""
    found: dict[str, Remain] = {}
    for layout in layouts:
        for key in sorted((layout.root / "models").glob(f"*/{KEY_FILE}")):
            found.setdefault(file_digest(key), Remain(key.parent, layout, key.parent.name))
        for key in sorted((layout.root / "backbones").glob(f"*/{KEY_FILE}")):
            found.setdefault(file_digest(key), Remain(key.parent, layout, None))
        path = layout.model(BACKBONE) / IMPORT_KEY
        if path.is_file():
            found.setdefault(file_digest(path), Remain(path.parent, layout, None, adopted=True))
    return Remains(found, tuple(layout.root for layout in layouts))


def _measured(remain: Remain) -> bool:
    return (remain.layout.metrics(str(remain.stage)) / "evaluation.json").is_file()
