"""What the sums of a lineage are sums of: expression in whole-number levels, and features made of them.

A basis is chosen once, at a lineage's first stage, and never changes. Everything here is whole numbers, so
that sums are the same whatever machine, thread count or order of cells made them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from canal.digests import json_digest
from canal.errors import DataError, SumsError
from canal.files import new_folder, read_json, write_json
from canal.memory.arrays import read_arrays, write_arrays

FORMAT = 1
STEPS = 4
"""Levels a doubling of 1 + counts per 10,000: quarters of log2."""

HIGHEST_LEVEL = 63
"""Above log2(1 + 10,000) = 13.3, which 10,000 counts of one gene per 10,000 make: no level is ever cut."""

HIGHEST_FEATURE = 4095
"""Projected features are cut here: the square of one is below 2**24."""

BASIS = "basis.json"
PROJECTION = "projection.safetensors"
Kind = Literal["genes", "relu"]

_SPARE_BITS = 24


@dataclass(frozen=True, eq=False)
class Projection:
    """Random ReLU features (RanPAC, McDonnell et al. 2023) in whole numbers: clip(relu(W q + b) >> shift).

    Attributes
    ----------
    weights : numpy.ndarray
        W, int16 ``(n_features, n_genes)``.
    bias : numpy.ndarray
        b, int32 ``(n_features,)``.
    shift : int
        Binary places by which the result is divided, downwards.
    """

    weights: np.ndarray
    bias: np.ndarray
    shift: int

    def __post_init__(self) -> None:
        right = (
            self.weights.ndim == 2
            and self.weights.dtype == np.int16
            and self.bias.dtype == np.int32
            and self.bias.shape == self.weights.shape[:1]
            and 0 <= self.shift < _SPARE_BITS
        )
        if not right:
            raise SumsError(
                f"a projection needs int16 weights (features x genes) and one int32 bias a feature, found "
                f"{self.weights.dtype} {self.weights.shape} and {self.bias.dtype} {self.bias.shape}"
            )
        reach = np.abs(self.weights.astype(np.int64)).sum(axis=1) * HIGHEST_LEVEL
        reach += np.abs(self.bias.astype(np.int64))
        if reach.size and reach.max() >= 2**_SPARE_BITS:
            raise SumsError(
                f"a projection's sum of |W| x {HIGHEST_LEVEL} + |b| must stay below 2**{_SPARE_BITS}, so "
                f"that single precision holds it exactly; found {int(reach.max())}"
            )

    @classmethod
    def draw(cls, levels: np.ndarray, size: int, seed: int) -> Projection:
        """Return ``size`` random features, scaled to the levels ``(n_cells, n_genes)`` of some cells.

        Weights are rounded normal numbers, a gene's smaller where its levels stray more; half of the cells
        lie above each feature's bias.

        Raises
        ------
        SumsError
            If there are no cells.
        """
        if not len(levels):
            raise SumsError("a projection is scaled to cells, found none")
        random = np.random.default_rng([seed, *b"projection"])
        spread = np.maximum(levels.astype(np.float64).std(axis=0), 1.0)
        n_genes = levels.shape[1]
        wanted = random.standard_normal((size, n_genes)) / spread
        reach = np.abs(wanted).sum(axis=1).max() * HIGHEST_LEVEL
        scale = min(2**_SPARE_BITS / (4 * reach), 2**14 / np.abs(wanted).max())
        weights = np.rint(wanted * scale).astype(np.int16)
        made = levels.astype(np.int64) @ weights.T.astype(np.int64)
        bias = -np.median(made, axis=0)
        bias = np.clip(np.rint(bias), -(2**_SPARE_BITS // 4), 2**_SPARE_BITS // 4).astype(np.int32)
        top = np.quantile(np.maximum(made + bias, 0), 0.999)
        shift = max(0, int(np.ceil(np.log2(max(top, 1.0) / HIGHEST_FEATURE))))
        return cls(weights, bias, shift)

    def of(self, levels: np.ndarray) -> np.ndarray:
        """Return features of levels ``(n_cells, n_genes)``: whole, float64 ``(n_cells, n_features)``."""
        made = levels.astype(np.float32) @ self.weights.T.astype(np.float32)  # exact: below 2**24
        whole = np.maximum(made.astype(np.int64) + self.bias, 0) >> self.shift
        result: np.ndarray = np.minimum(whole, HIGHEST_FEATURE).astype(np.float64)
        return result


@dataclass(frozen=True, eq=False)
class Basis:
    """The features whose sums a lineage keeps.

    Attributes
    ----------
    genes : tuple of str
        The genes whose levels are looked at, in the order of the columns of ``expression``.
    projection : Projection or None
        What is made of the levels; None: the levels themselves are the features.
    seen : dict
        Whose cells the choice of genes and the scale of a projection were made on: stage -> SHA-256 of its
        split.
    """

    genes: tuple[str, ...]
    projection: Projection | None
    seen: dict[str, str]

    @property
    def kind(self) -> Kind:
        """What the features are: ``genes`` or ``relu``."""
        return "genes" if self.projection is None else "relu"

    @property
    def size(self) -> int:
        """Number of features."""
        return len(self.genes) if self.projection is None else len(self.projection.weights)

    @property
    def highest(self) -> int:
        """The largest value that a feature may have."""
        return HIGHEST_LEVEL if self.projection is None else HIGHEST_FEATURE

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that decides a feature's value; whose cells it has seen stands outside."""
        return json_digest(self._values() | {"projection": self._projection_digest()})

    def features(self, expression: np.ndarray) -> np.ndarray:
        """Return features of expression ``(n_cells, >= n_genes)``, whole float64 ``(n_cells, size)``.

        Columns behind the basis's genes, which a panel gained later, are not looked at.

        Raises
        ------
        DataError
            If a value is negative or not a number.
        SumsError
            If there are fewer columns than genes.
        """
        if expression.ndim != 2 or expression.shape[1] < len(self.genes):
            raise SumsError(
                f"the basis reads {len(self.genes)} genes, found expression of shape {expression.shape}"
            )
        found = levels(expression[:, : len(self.genes)])
        return found.astype(np.float64) if self.projection is None else self.projection.of(found)

    def save(self, folder: Path) -> None:
        """Write ``basis.json`` and, where there is one, ``projection.safetensors``."""
        with new_folder(folder) as temporary:
            write_json(temporary / BASIS, self._values() | {"seen": self.seen, "digest": self.digest})
            if self.projection is not None:
                arrays = {"weights": self.projection.weights, "bias": self.projection.bias}
                write_arrays(temporary / PROJECTION, arrays)

    @classmethod
    def load(cls, folder: Path) -> Basis:
        """Read what `save` wrote.

        Raises
        ------
        SumsError
            If a file is missing or damaged, or holds another basis than its digest says.
        """
        path = folder / BASIS
        try:
            document = read_json(path)
            genes, seen, kind = document["genes"], document["seen"], document["kind"]
            if document["format"] != FORMAT or document["levels"] != _LEVELS or not genes:
                raise SumsError(f"{path} is of a format that this canal does not know")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SumsError(f"{path} is missing or damaged ({error}); restore the model") from error
        projection = None
        if kind != "genes":
            arrays = read_arrays(folder / PROJECTION, ("weights", "bias"))
            projection = Projection(arrays["weights"], arrays["bias"], int(document["shift"]))
        found = cls(tuple(genes), projection, dict(seen))
        if found.digest != document.get("digest"):
            raise SumsError(
                f"{path}: the basis has digest {found.digest[:12]}..., recorded is "
                f"{str(document.get('digest'))[:12]}...; restore the model"
            )
        return found

    def _values(self) -> dict[str, Any]:
        shift = {} if self.projection is None else {"shift": self.projection.shift}
        known = {"format": FORMAT, "kind": self.kind, "levels": _LEVELS, "genes": list(self.genes)}
        return known | shift

    def _projection_digest(self) -> str | None:
        if self.projection is None:
            return None
        digest = hashlib.sha256()
        digest.update(self.projection.weights.astype("<i2").tobytes())
        digest.update(self.projection.bias.astype("<i4").tobytes())
        return digest.hexdigest()


_LEVELS = {"steps_per_doubling": STEPS, "highest": HIGHEST_LEVEL}


def levels(expression: np.ndarray) -> np.ndarray:
    """Return quarters of log2(1 + counts per 10,000), downwards, uint8 of the shape of ``expression``.

    Expression is float32 and, for counts, rounded correctly whatever the machine (`canal.data.expression`);
    a product with 4 is exact, so a level is a comparison with stored numbers, k / 4, and nothing else.

    Raises
    ------
    DataError
        If a value is negative or not a number.
    """
    values = np.asarray(expression, dtype=np.float32)
    wrong = ~(values >= 0)  # NaN is not >= 0 either
    if wrong.any():
        raise DataError(
            f"expression must be >= 0, found {int(wrong.sum())} other value(s), such as {values[wrong][0]}: "
            "check the source's declared values"
        )
    result: np.ndarray = np.minimum(values * np.float32(STEPS), HIGHEST_LEVEL).astype(np.uint8)
    return result


def choose_basis(
    genes: Sequence[str], kind: Kind, size: int, expression: np.ndarray, seen: dict[str, str], seed: int
) -> Basis:
    """Return the basis of a lineage.

    Parameters
    ----------
    genes
        The panel.
    kind
        ``genes``: their levels; ``relu``: ``size`` random features of them.
    expression
        Of the first stage's training cells, ``(n_cells, n_genes)``: a projection is scaled to them.
    seen
        Stage -> SHA-256 of the split that says which cells these are.
    """
    projection = None if kind == "genes" else Projection.draw(levels(expression), size, seed)
    return Basis(tuple(genes), projection, dict(seen))
