"""One link of a chain of versions: its folder, its key, and its files as far as they hold what it says."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from canal.config.sections import BACKBONE
from canal.core.digests import file_digest
from canal.core.errors import CanalError
from canal.core.files import read_json
from canal.registry.imported import IMPORTED
from canal.registry.key import Key
from canal.registry.store import Version

if TYPE_CHECKING:
    import pandas as pd

    from canal.continual.cells import StoredCells

Rows = Mapping[str, tuple[str, str, str, str]]
"""By cell id: cell type, batch, content digest and set."""

LABELS, GENES = "model/labels.json", "model/genes.json"
WEIGHTS, TEACHER = "model/weights.safetensors", "teacher/weights.safetensors"
SPLIT, VERDICT = "split/cells.csv", "validation/verdict.json"
ANCESTORS = "ancestors"
"""Folder of an imported version with what is needed of the versions that it was learned on."""
ORIGINS = "origins"
"""Folder of an imported version with record, ledger entries and manifest as they came."""
CARRIED = (
    "model/config.json",
    "model/labels.json",
    "model/genes.json",
    "panel.json",
    "split/cells.csv",
    "split/cells.json",
    "validation/verdict.json",
    "imported.json",
)
"""What a chain is checked with: of an ancestor these travel, where it has them, not its weights and cells."""
CARRIED_LATELY = ("sums/missing.json",)
"""What travels beside them since audits look at it; of what came before, an audit notes that it could not."""
BANK, PROBE, PANEL = "bank/bank.h5ad", "probe/probe.h5ad", "panel.json"


class Member:
    """A version, or an ancestor that came with an imported one; its key.json is the one that was registered.

    Attributes
    ----------
    name : str
        As findings call it.
    folder : Path
    key : dict
        key.json.
    digest : str
        SHA-256 of key.json.
    version : Version or None
        None for an ancestor that came with an import: of its files only some are there.
    """

    def __init__(self, name: str, folder: Path, key: Key, digest: str, version: Version | None) -> None:
        self.name = name
        self.folder = folder
        self.key = key
        self.digest = digest
        self.version = version
        self._found: dict[str, str | None] = {}

    @property
    def stage(self) -> str:
        """Name of the stage, ``backbone`` or ``imported``."""
        return str(self.key["stage"])

    @property
    def parent(self) -> str | None:
        """Digest of the parent's key.json."""
        parent: str | None = self.key["parent"]
        return parent

    @property
    def taught(self) -> bool:
        """Whether it is an annotator; a backbone is not."""
        return self.stage not in (BACKBONE, IMPORTED)

    @property
    def trained(self) -> bool:
        """Whether a network was trained: not where a stage was learned by sums alone."""
        asked = self.key["request"].get("continual")
        return not (isinstance(asked, Mapping) and asked.get("method") == "exact")

    @property
    def files(self) -> dict[str, str]:
        """The files that key.json names, with their digests."""
        files: dict[str, str] = self.key["files"]
        return files

    def sum(self, name: str) -> str | None:
        """Return the SHA-256 of a file as it lies there; None where there is none. Each is read once."""
        if name not in self._found:
            path = self.folder / name
            self._found[name] = file_digest(path) if path.is_file() else None
        return self._found[name]

    def intact(self, name: str) -> bool:
        """Whether key.json names the file and it holds those bytes."""
        return name in self.files and self.sum(name) == self.files[name]

    def document(self, name: str) -> Any:
        """Return the JSON document in an intact file; None where it is not intact, or no JSON."""
        if not self.intact(name):
            return None
        try:
            return read_json(self.folder / name)
        except ValueError:
            return None

    @cached_property
    def labels(self) -> list[str] | None:
        """The labels, in order; None where they cannot be read."""
        return _names(self.document(LABELS))

    @cached_property
    def genes(self) -> list[str] | None:
        """The panel, in order; a backbone's is in panel.json."""
        if self.taught:
            return _names(self.document(GENES))
        document = self.document(PANEL)
        return _names(document.get("genes")) if isinstance(document, dict) else None

    @property
    def extra_stages(self) -> tuple[str, ...]:
        """The stages beside the first that a backbone was asked to be pretrained on."""
        asked = self.key["request"].get("backbone")
        extra = asked.get("extra_stages", ()) if isinstance(asked, Mapping) else ()
        return tuple(extra) if isinstance(extra, (list, tuple)) else ()

    @property
    def grow(self) -> int:
        """How many genes the stage was asked to add at most."""
        panel = self.key["request"].get("panel")
        grow = panel.get("grow", 0) if isinstance(panel, Mapping) else 0
        return grow if isinstance(grow, int) else 0

    @cached_property
    def split(self) -> "pd.DataFrame | None":
        """The table of the stage's cells; None where it cannot be read."""
        from canal.data.split import read_split

        if not self.intact(SPLIT):
            return None
        try:
            return read_split(self.folder / SPLIT)
        except (CanalError, ValueError):
            return None

    @cached_property
    def rows(self) -> Rows | None:
        """The split by cell id: looked through for the version and for everything learned on it."""
        if self.split is None:
            return None
        columns = (self.split[name] for name in ("cell_type", "batch", "cell_digest", "set"))
        return dict(zip(self.split["cell_id"], zip(*columns, strict=True), strict=True))

    @cached_property
    def bank(self) -> "StoredCells | None":
        """The example bank; None where it cannot be read."""
        return self._cells(BANK, ranked=True)

    @cached_property
    def probe(self) -> "StoredCells | None":
        """The probe sets; None where they cannot be read."""
        return self._cells(PROBE, ranked=False)

    def _cells(self, name: str, ranked: bool) -> "StoredCells | None":
        from canal.continual.cells import load_cells

        if self.genes is None or not self.intact(name):
            return None
        try:
            return load_cells(self.folder / name, self.genes, ranked)
        except CanalError:
            return None


def _names(document: Any) -> list[str] | None:
    whole = isinstance(document, list) and all(isinstance(one, str) for one in document)
    return document if whole else None
