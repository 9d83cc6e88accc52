"""What the sums of a lineage are sums of: expression in whole-number levels, of the genes of its panel.

A basis is chosen once, at a lineage's first stage with sums, and never changes. Everything here is whole
numbers, so that sums are the same whatever machine, thread count or order of cells made them.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from canal.core.digests import json_digest
from canal.core.errors import DataError, SumsError
from canal.core.files import new_folder, read_json, write_json

FORMAT = 1
STEPS = 4
"""Levels a doubling of 1 + counts per 10,000: quarters of log2."""

HIGHEST = 63
"""Above 4 x log2(1 + 10,000) = 53, which 10,000 counts of one gene per 10,000 make: no level is ever cut."""

BASIS = "basis.json"
_LEVELS = {"steps_per_doubling": STEPS, "highest": HIGHEST}


@dataclass(frozen=True, eq=False)
class Basis:
    """The genes whose levels are added up.

    Attributes
    ----------
    genes : tuple of str
        In the order of the columns of ``expression``.
    seen : dict
        Whose cells the genes were chosen on: stage -> SHA-256 of its split.
    """

    genes: tuple[str, ...]
    seen: dict[str, str]

    @property
    def size(self) -> int:
        """Number of genes."""
        return len(self.genes)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that decides a level; whose cells the basis has seen stands outside."""
        return json_digest(self._values())

    def levels(self, expression: np.ndarray) -> np.ndarray:
        """Return levels of expression ``(n_cells, >= n_genes)``, whole float64 ``(n_cells, n_genes)``.

        Columns behind the basis's genes, which a panel gained later, are not looked at.

        Raises
        ------
        DataError
            If a value is negative, infinite or not a number.
        SumsError
            If there are fewer columns than genes.
        """
        if expression.ndim != 2 or expression.shape[1] < self.size:
            raise SumsError(
                f"the basis reads {self.size} genes, found expression of shape {expression.shape}"
            )
        return levels(expression[:, : self.size]).astype(np.float64)

    def present(self, missing: Collection[str]) -> np.ndarray:
        """Return which genes a file has that lacks ``missing``, bool ``(n_genes,)``."""
        gone = set(missing)
        return np.array([gene not in gone for gene in self.genes])

    def save(self, folder: Path) -> None:
        """Write ``basis.json``."""
        with new_folder(folder) as temporary:
            write_json(temporary / BASIS, self._values() | {"seen": self.seen, "digest": self.digest})

    @classmethod
    def load(cls, folder: Path) -> Basis:
        """Read what `save` wrote; see `read`."""
        return cls.read(folder / BASIS)

    @classmethod
    def read(cls, path: Path) -> Basis:
        """Read a file ``basis.json``.

        Raises
        ------
        SumsError
            If the file is missing or damaged, or holds another basis than its digest says.
        """
        try:
            document = read_json(path)
            if document["format"] != FORMAT or document["levels"] != _LEVELS:
                raise SumsError(f"{path} is of a format that this canal does not know")
            genes, seen, said = document["genes"], document["seen"], str(document["digest"])
            right = isinstance(genes, list) and genes and all(isinstance(one, str) for one in genes)
            if not right or len(set(genes)) < len(genes) or not isinstance(seen, dict):
                raise SumsError(f"{path} must hold genes, each once, and whose cells chose them")
            found = cls(tuple(genes), {str(name): str(digest) for name, digest in seen.items()})
            digest = found.digest
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SumsError(f"{path} is missing or damaged ({error}); restore the model") from error
        if digest != said:
            raise SumsError(
                f"{path}: the basis has digest {digest[:12]}..., recorded is {said[:12]}...; "
                "restore the model"
            )
        return found

    def _values(self) -> dict[str, Any]:
        return {"format": FORMAT, "levels": _LEVELS, "genes": list(self.genes)}


def levels(expression: np.ndarray) -> np.ndarray:
    """Return quarters of log2(1 + counts per 10,000), downwards, uint8 of the shape of ``expression``.

    Expression is float32 and, for counts, rounded correctly whatever the machine (`canal.data.expression`);
    a product with 4 is exact, so a level is a comparison with the numbers k / 4, and nothing else. A gene
    that a file lacks is level 0.

    Raises
    ------
    DataError
        If a value is negative, infinite or not a number.
    """
    values = np.asarray(expression, dtype=np.float32)
    wrong = ~((values >= 0) & (values < np.inf))  # NaN is neither
    if wrong.any():
        raise DataError(
            f"expression must be finite and >= 0, found {int(wrong.sum())} other value(s), such as "
            f"{values[wrong][0]}: check the source's declared values"
        )
    result: np.ndarray = np.minimum(values * np.float32(STEPS), HIGHEST).astype(np.uint8)
    return result
