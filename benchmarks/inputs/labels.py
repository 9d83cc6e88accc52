"""Labels that are no cell types, and cell types that are spelt in several ways."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inputs.case import Case, Outcome, frequent, write

if TYPE_CHECKING:
    from anndata import AnnData

NO_TYPES = (
    "nan",
    "None",
    "NA",
    "unknown",
    "Unclassified",
    "doublet",
    "filtered",
    " ",
    "unassigned",
    "Unassigned",
)


def _some(label: str) -> "Callable[[AnnData, Path], Path]":
    """Give the first thirty cells another label."""

    def make(adata: "AnnData", folder: Path) -> Path:
        own = frequent(adata)
        labels = own.obs["cell_type"].astype(str).to_numpy(dtype=object)
        labels[:30] = label
        own.obs["cell_type"] = labels
        return write(own, folder)

    return make


def _spelt(*names: str) -> "Callable[[AnnData, Path], Path]":
    """Spell one type in several ways by turns."""

    def make(adata: "AnnData", folder: Path) -> Path:
        own = frequent(adata)
        labels = own.obs["cell_type"].astype(str).to_numpy(dtype=object)
        most = own.obs["cell_type"].value_counts().index[0]
        for turn, place in enumerate((labels == most).nonzero()[0]):
            labels[place] = names[turn % len(names)]
        own.obs["cell_type"] = labels
        return write(own, folder)

    return make


def _gate(name: str, make: Any, right: tuple[Outcome, ...], words: str = "", **declared: Any) -> Case:
    about = {"label": "cell_type", "values": "counts", **declared}
    return Case("words that are no cell types", name, make, right, words, declared=about)


CASES = (
    *(_gate(f"label {name!r}", _some(name), ("refused",), r"label|no cell type|type") for name in NO_TYPES),
    _gate("blanks and case", _spelt("CD8 T", "CD8 T ", " CD8 t"), ("refused", "warned"), r"case|blank|CD8"),
    _gate("case alone", _spelt("Treg cell", "TREG cell"), ("refused", "warned"), r"case|TREG"),
    _gate("signs in labels", _spelt("CD4+ T", "γδ T", "NK/T (CD56++)", "Mono, CD14%"), ("passed",)),
)
