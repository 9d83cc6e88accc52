"""Load the annotator of a model folder, whatever its method; torch is imported only where it is needed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

import numpy as np

from canal.core.errors import ModelError
from canal.core.files import read_json
from canal.core.progress import doing
from canal.memory.answer import ExactAnnotator
from canal.memory.prediction import Prediction
from canal.model import COMBINATION, EXACT

if TYPE_CHECKING:
    from canal.config.sections import Method

Effort = Literal["full", "fast"]


class CellAnnotator(Protocol):
    """An annotator of cells: a network, sums, or both.

    ``labels`` are cell types in the order of the logits, ``genes`` the panel in the order of the columns of
    expression, ``ontology`` Cell Ontology ids of labels.
    """

    @property
    def labels(self) -> tuple[str, ...]:
        """Cell types, in the order of the logits."""

    @property
    def genes(self) -> tuple[str, ...]:
        """The panel."""

    @property
    def ontology(self) -> Mapping[str, str]:
        """Cell Ontology ids of labels."""

    @property
    def temperature(self) -> float:
        """Divides logits before they become probabilities."""

    def predict(self, expression: np.ndarray) -> Prediction:
        """Return types, confidence and novelty of cells from expression ``(n_cells, n_genes)``."""

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Return the probabilities of logits, ``(n_cells, n_types)``."""

    def without(self, missing: Collection[str]) -> Self:
        """Return the annotator for cells of which some genes were never measured."""

    def gene_weights(self) -> np.ndarray:
        """Return the weight of each gene for each type, at least 0, float64 ``(n_types, n_genes)``."""

    def gene_weights_by_side(self) -> Mapping[str, np.ndarray]:
        """Return what ``NETWORK`` and ``SUMS`` add to `gene_weights`, each ``(n_types, n_genes)``.

        The sums' are signed: below 0 where a cell is likelier of the type the less it expresses of the gene.
        """

    def represented(self, expression: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return an embedding of cells, ``(n_cells, any)``, and their logits, ``(n_cells, n_types)``."""

    def predict_represented(self, expression: np.ndarray) -> tuple[Prediction, np.ndarray]:
        """Return the prediction of cells, and their embedding, float32 ``(n_cells, any)``."""

    def on(self, device: str) -> Self:
        """Move the network, if there is one, to a device, and return the annotator."""

    def about(self) -> dict[str, Any]:
        """Return the settings of a prediction, for an annotation's record."""

    def digest(self) -> str:
        """Return the SHA-256 of all numbers that decide an answer."""


def method_of(folder: Path) -> Method:
    """Return the method that made a model folder."""
    if (folder / COMBINATION).is_file():
        return "combined"
    return "exact" if (folder / EXACT).is_dir() else "published"


@doing("loading the model")
def load_model(folder: Path, effort: Effort = "full") -> CellAnnotator:
    """Return the annotator of a model folder.

    Parameters
    ----------
    folder
        ``model/`` of a version.
    effort
        ``full``: network and sums as the version combines them. ``fast``: the sums, and the network for cells
        of which they are unsure. A version with one of them alone is loaded as it is. Where some types are
        known to the network alone, it always predicts: sums cannot be unsure of types that they never held.

    Raises
    ------
    CanalError
        If anything is missing, damaged or does not fit.
    ModelError
        If ``effort`` is fast and the version has no sums, or its network is needed and torch not installed.
    """
    method = method_of(folder)
    if sums_alone(folder, effort):
        return ExactAnnotator.load(folder / EXACT)
    if method == "published":
        if effort == "fast":
            raise ModelError(
                "this version was learned by the published method and has no sums for --effort fast: leave "
                "--effort out, or add sums with `canal sums backfill`"
            )
        _require_torch("")
        from canal.model.annotator import Annotator

        return Annotator.load(folder)
    if not runs_network(folder):
        return ExactAnnotator.load(folder / EXACT)
    lacking = bool(types_without_sums(folder))
    _require_torch("" if lacking else ', or by the sums alone: --effort fast, Options(effort="fast")')
    from canal.model.combined import CombinedAnnotator, FastAnnotator

    whole = CombinedAnnotator.load(folder)
    return FastAnnotator(whole) if effort == "fast" and not lacking else whole


def runs_network(folder: Path) -> bool:
    """Whether the model of a folder runs a network: not where the sums answer alone."""
    method = method_of(folder)
    if method == "combined":
        return _weight(folder) > 0 or bool(types_without_sums(folder))
    return method == "published"


def network_installed() -> bool:
    """Whether torch is installed, without which networks cannot be run."""
    return find_spec("torch") is not None


def sums_alone(folder: Path, effort: Effort) -> bool:
    """Whether the sums label all cells because torch, which decides unsure ones with them, is lacking."""
    if effort != "fast" or network_installed() or method_of(folder) != "combined":
        return False
    return _weight(folder) > 0 and not types_without_sums(folder)


def _require_torch(otherwise: str) -> None:
    if not network_installed():
        raise ModelError(
            f"this version's network needs torch, which is not installed: pip install "
            f"'canal-cells[network]'{otherwise}"
        )


def types_without_sums(folder: Path) -> tuple[str, ...]:
    """Return the types of a model folder of which the sums hold no cell."""
    path = folder / EXACT / "solution.json"
    try:
        known = set(read_json(path)["labels"])
        return tuple(str(name) for name in read_json(folder / "labels.json") if name not in known)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} is missing or damaged ({error}); restore the model") from error


def _weight(folder: Path) -> float:
    """Return the network's weight in a combination; `read_combination` checks the rest of the file."""
    try:
        return float(read_json(folder / COMBINATION)["weight"])
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder / COMBINATION} is damaged ({error}); restore the model") from error
