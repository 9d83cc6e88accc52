"""Levels of expression as whole numbers, linear scores of them, and their files: equal on every machine.

A lineage's basis names the genes whose levels are added up. It is chosen once, at the first stage with sums,
and never changes. Everything here is in whole numbers, so that sums and scores do not depend on the machine,
the number of threads or the order of cells.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file
from threadpoolctl import ThreadpoolController

from canal.core.digests import canonical_json, json_digest
from canal.core.errors import DataError, SumsError
from canal.core.files import new_folder, parse_json, read_json, usual_rights, write_json

FORMAT = 1
"""Of a basis."""

STEPS = 4
"""Levels a doubling of 1 + counts per 10,000: quarters of log2."""

HIGHEST = 63
"""Above 4 x log2(1 + 10,000) = 53, which 10,000 counts of one gene per 10,000 make: no level is ever cut."""

BASIS = "basis.json"
_LEVELS = {"steps_per_doubling": STEPS, "highest": HIGHEST}
_WHOLE_FLOAT = 2**53

_FINEST = 32
"""Binary places of the stored weights at most: far finer than the precision of their solution."""

_ABOUT = "about"


@dataclass(frozen=True, eq=False)
class Basis:
    """The genes whose levels are added up.

    Attributes
    ----------
    genes : tuple of str
        In the order of the columns of ``expression``.
    seen : dict
        The cells that the genes were chosen on: stage -> SHA-256 of its split.
    """

    genes: tuple[str, ...]
    seen: dict[str, str]

    @property
    def size(self) -> int:
        """Number of genes."""
        return len(self.genes)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that decides a level; ``seen`` is not part of it."""
        return json_digest(self._values())

    def levels(self, expression: np.ndarray) -> np.ndarray:
        """Return levels of expression ``(n_cells, >= n_genes)``, whole float64 ``(n_cells, n_genes)``.

        Columns behind the basis's genes, which were added to the panel later, are ignored.

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
            genes, seen, recorded = document["genes"], document["seen"], str(document["digest"])
            right = isinstance(genes, list) and genes and all(isinstance(one, str) for one in genes)
            if not right or len(set(genes)) < len(genes) or not isinstance(seen, dict):
                raise SumsError(f"{path} must hold genes, each once, and whose cells chose them")
            found = cls(tuple(genes), {str(name): str(digest) for name, digest in seen.items()})
            digest = found.digest
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SumsError(f"{path} is missing or damaged ({error}); restore the model") from error
        if digest != recorded:
            raise SumsError(
                f"{path}: the basis has digest {digest[:12]}..., recorded is {recorded[:12]}...; "
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


# Linear scores of levels.


@dataclass(frozen=True, eq=False)
class Linear:
    """Linear scores as they are solved: weights @ levels + bias.

    ``weights`` are float64 ``(n_centroids, n_genes)``, ``bias`` float64 ``(n_centroids,)``.
    """

    weights: np.ndarray
    bias: np.ndarray


@dataclass(frozen=True, eq=False)
class Whole:
    """Linear scores in whole numbers: weights @ centred levels + bias, over 2**places.

    Attributes
    ----------
    weights : numpy.ndarray
        int64 ``(n_centroids, n_genes)``.
    bias : numpy.ndarray
        int64 ``(n_centroids,)``.
    places : int
        Binary places. The sum of |weights| x the highest level + |bias|, times the number of genes, is below
        2**53 in every row, so that every product in float64 is exact, whatever library, chunk or thread count
        computes it.
    """

    weights: np.ndarray
    bias: np.ndarray
    places: int

    @classmethod
    def of(cls, linear: Linear) -> Whole:
        """Return linear scores as whole numbers, as fine as exact products let them be.

        Raises
        ------
        SumsError
            If a weight is not finite.
        """
        n_genes = linear.weights.shape[1]
        reach = n_genes * (np.abs(linear.weights).sum(axis=1) * HIGHEST + np.abs(linear.bias))
        if not np.isfinite(reach).all():
            raise SumsError("the sums have no solution with finite weights; raise memory.shrinkage")
        rounded = n_genes * (n_genes * HIGHEST + 1)  # what a unit in each entry adds
        places = int(np.floor(np.log2((_WHOLE_FLOAT - rounded) / max(float(reach.max()), 1.0)))) - 1
        places = min(_FINEST, places)
        weights, bias = np.ldexp(linear.weights, places), np.ldexp(linear.bias, places)
        return cls(np.rint(weights).astype(np.int64), np.rint(bias).astype(np.int64), places)

    @property
    def linear(self) -> Linear:
        """The scores as fractions: exact, but for the rounding to whole numbers."""
        weights, bias = self.weights.astype(np.float64), self.bias.astype(np.float64)
        return Linear(np.ldexp(weights, -self.places), np.ldexp(bias, -self.places))

    def scores(self, centred: np.ndarray, n_present: int) -> np.ndarray:
        """Return scores, float64 ``(n_cells, n_centroids)``, the same on every machine.

        ``centred`` are whole numbers, `ExactClassifier.centred`: ``n_present`` times what a score is of.
        """
        made = centred @ self.weights.T.astype(np.float64) + n_present * self.bias.astype(np.float64)
        result: np.ndarray = np.ldexp(made / n_present, -self.places)
        return result

    def fits(self, n_centroids: int, n_genes: int) -> bool:
        """Whether shapes are right and products exact."""
        whole = self.weights.dtype == self.bias.dtype == np.int64
        if not whole or self.weights.shape != (n_centroids, n_genes) or self.bias.shape != (n_centroids,):
            return False
        weights, bias = (np.abs(value.astype(np.float64)) for value in (self.weights, self.bias))
        return bool((n_genes * (weights.sum(axis=1) * HIGHEST + bias) < _WHOLE_FLOAT).all())


def linear_scores(centroids: np.ndarray, covariance: np.ndarray) -> Linear:
    """Return Gaussian scores of centroids under one covariance, less the term that all centroids share.

    Raises
    ------
    SumsError
        If the covariance has no inverse.
    """
    from scipy.linalg import LinAlgError, cho_factor, cho_solve

    try:
        weights: np.ndarray = cho_solve(cho_factor(covariance, lower=True), centroids.T).T
    except (LinAlgError, ValueError) as error:
        raise SumsError(
            f"the covariance of the sums has no inverse ({error}): there are fewer cells than genes, or some "
            "genes always go together; raise memory.shrinkage"
        ) from error
    return Linear(weights, -0.5 * np.einsum("cd,cd->c", centroids, weights))


def one_thread() -> AbstractContextManager[object]:
    """Return a block in which the linear algebra of numpy and scipy runs on one thread."""
    limits: AbstractContextManager[object] = _linear_algebra().limit(limits=1)
    return limits


@lru_cache(maxsize=1)
def _linear_algebra() -> ThreadpoolController:
    """Return the libraries that numpy and scipy compute with; looking for them takes milliseconds."""
    import scipy.linalg  # noqa: F401  # which loads the last of them

    return ThreadpoolController()


def log_sum_exp(scores: np.ndarray) -> np.ndarray:
    """Return the logarithm of the sum of exponentials of each row, ``(n_cells,)``."""
    scores = np.ascontiguousarray(scores)  # rows are added up in one order, however many there are
    highest = scores.max(axis=1)
    result: np.ndarray = np.log(np.exp(scores - highest[:, None]).sum(axis=1)) + highest
    return result


def log_normalised(scores: np.ndarray) -> np.ndarray:
    """Return scores less the log-sum-exp of their row: logarithms of probabilities."""
    result: np.ndarray = scores - log_sum_exp(scores)[:, None]
    return result


# Files of arrays.


def write_arrays(
    path: Path, arrays: Mapping[str, np.ndarray], about: Mapping[str, str] | None = None
) -> None:
    """Write arrays, and texts about them, to a safetensors file."""
    whole = {name: np.ascontiguousarray(value) for name, value in arrays.items()}
    # One text of all: safetensors writes several in an order that it draws anew each time.
    with usual_rights(path):
        save_file(whole, path, metadata={_ABOUT: canonical_json(dict(about))} if about else None)


def read_arrays(path: Path, names: Collection[str]) -> dict[str, np.ndarray]:
    """Return the arrays of a safetensors file, which must be just the named ones.

    Raises
    ------
    SumsError
        If the file is missing or damaged, or holds other arrays.
    """
    try:
        found = load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise SumsError(f"{path} is missing or damaged ({error}); restore the model") from error
    if set(found) != set(names):
        raise SumsError(f"{path} must hold {sorted(names)}, found {sorted(found)}; restore the model")
    return dict(found)


def read_about(path: Path) -> dict[str, str]:
    """Return the texts that `write_arrays` wrote beside the arrays; raises `SumsError` as `read_arrays`."""
    try:
        with safe_open(path, framework="numpy") as file:
            about = parse_json((file.metadata() or {})[_ABOUT])
            return {str(name): str(text) for name, text in about.items()}
    except (SafetensorError, OSError, ValueError, KeyError, AttributeError) as error:
        raise SumsError(f"{path} is missing or damaged ({error}); restore the model") from error
