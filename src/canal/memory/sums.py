"""Sums over the training cells of a stage by cell type: all that the exact memory stores of them.

For each type n, s = sum of levels and G = sum of products of levels, as whole numbers: adding is exact, so
the order of cells, chunks and stages, threads and machines make no difference.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from canal.core.errors import SumsError
from canal.core.files import new_file
from canal.memory.levels import HIGHEST, Basis, read_about, read_arrays, write_arrays

FORMAT = "1"
_ARRAYS = ("counts", "totals", "products")
_WHOLE_FLOAT = 2**53
_WHOLE_INT = 2**63 - 1


@dataclass(frozen=True, eq=False)
class Sums:
    """Sums of cells by cell type.

    Attributes
    ----------
    basis : str
        Digest of the basis that the levels are of.
    types : tuple of str
        Cell types, sorted by their UTF-8 bytes; each has at least one cell.
    counts : numpy.ndarray
        n, int64 ``(n_types,)``.
    totals : numpy.ndarray
        s, int64 ``(n_types, n_genes)``.
    products : numpy.ndarray
        The upper triangle of G by rows, int64 ``(n_types, n_genes * (n_genes + 1) / 2)``.

    Raises
    ------
    SumsError
        If shapes or types of the arrays do not fit, or no cells can have such sums.
    """

    basis: str
    types: tuple[str, ...]
    counts: np.ndarray
    totals: np.ndarray
    products: np.ndarray

    def __post_init__(self) -> None:
        n, size = len(self.types), self.size
        shapes = {"counts": (n,), "totals": (n, size), "products": (n, size * (size + 1) // 2)}
        for name, shape in shapes.items():
            value: np.ndarray = getattr(self, name)
            if value.dtype != np.int64 or value.shape != shape:
                raise SumsError(
                    f"sums of {n} types and {size} levels need {name} as int64 {shape}, found "
                    f"{value.dtype} {value.shape}"
                )
        if list(self.types) != sorted(set(self.types), key=str.encode):
            raise SumsError(f"types of sums must be unique and sorted, found {list(self.types)[:20]}")
        self._check_possible()

    @classmethod
    def empty(cls, basis: Basis) -> Sums:
        """Return the sums of no cells."""
        size = basis.size
        return cls(
            basis.digest,
            (),
            np.zeros(0, dtype=np.int64),
            np.zeros((0, size), dtype=np.int64),
            np.zeros((0, size * (size + 1) // 2), dtype=np.int64),
        )

    @property
    def size(self) -> int:
        """Number of levels."""
        return int(self.totals.shape[1])

    @property
    def n_cells(self) -> int:
        """Number of cells that were added up."""
        return int(self.counts.sum())

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the basis and, of each type with cells, its name, n, s and the upper triangle of G.

        Types come sorted by their UTF-8 names, numbers as little-endian int64: equal cells, equal digest.
        """
        digest = hashlib.sha256(bytes.fromhex(self.basis))
        for row, name in enumerate(self.types):
            text = name.encode()
            digest.update(len(text).to_bytes(8, "little") + text)
            for value in (self.counts[row : row + 1], self.totals[row], self.products[row]):
                digest.update(value.astype("<i8").tobytes())
        return digest.hexdigest()

    def contents(self) -> dict[str, str]:
        """Return by type the SHA-256 of its n, s and G, whatever it is called: equal cells, equal digest."""
        rows = zip(self.types, self.counts, self.totals, self.products, strict=True)
        return {
            name: hashlib.sha256(b"".join(value.astype("<i8").tobytes() for value in values)).hexdigest()
            for name, *values in rows
        }

    def scatter(self, row: int) -> np.ndarray:
        """Return G of one type, the whole of it, float64 ``(n_genes, n_genes)``."""
        full = np.zeros((self.size, self.size))
        full[np.triu_indices(self.size)] = self.products[row]
        result: np.ndarray = full + np.triu(full, 1).T
        return result

    def plus(self, other: Sums) -> Sums:
        """Return the sums of the cells of both.

        Raises
        ------
        SumsError
            If they are not of one basis, or numbers would grow beyond what 64 bits hold.
        """
        self._check_same(other)
        cells = self.n_cells + other.n_cells
        if cells * HIGHEST**2 > _WHOLE_INT:
            raise SumsError(
                f"sums of {cells:,} cells with levels up to {HIGHEST} may not fit in 64 bits: "
                "begin a new lineage"
            )
        return _joined(self, other, 1)

    def minus(self, other: Sums) -> Sums:
        """Return the sums without cells that are in them.

        Raises
        ------
        SumsError
            If they are not of one basis, or do not contain the cells to remove.
        """
        self._check_same(other)
        if unknown := [name for name in other.types if name not in self.types]:
            raise SumsError(f"cells of {', '.join(unknown[:5])} cannot be removed: these sums have none")
        return _joined(self, other, -1)

    def without(self, types: Collection[str]) -> Sums:
        """Return the sums of all other types."""
        rows = [row for row, name in enumerate(self.types) if name not in types]
        return self._rows(rows)

    def renamed(self, names: Mapping[str, str]) -> Sums:
        """Return the sums with types under other names; types that come to share one are added up."""
        result: Sums | None = None
        for row, name in enumerate(self.types):
            one = replace(self._rows([row]), types=(names.get(name, name),))
            result = one if result is None else result.plus(one)
        return self if result is None else result

    def save(self, path: Path) -> None:
        """Write the sums to a safetensors file, whole or not at all; equal sums, equal bytes."""
        about = {
            "format": FORMAT,
            "basis": self.basis,
            "digest": self.digest,
            "types": json.dumps(list(self.types), ensure_ascii=False),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_file(path) as temporary:
            write_arrays(temporary, {name: getattr(self, name) for name in _ARRAYS}, about)

    @classmethod
    def load(cls, path: Path) -> Sums:
        """Read what `save` wrote.

        Raises
        ------
        SumsError
            If the file is missing or damaged, or holds other sums than its digest says.
        """
        about, arrays = read_about(path), read_arrays(path, _ARRAYS)
        try:
            if about["format"] != FORMAT:
                raise SumsError(f"{path}: this canal reads sums of format {FORMAT}, found {about['format']}")
            types = tuple(str(name) for name in json.loads(about["types"]))
            found = cls(about["basis"], types, *(arrays[name] for name in _ARRAYS))
            digest = found.digest
        except (KeyError, ValueError, TypeError) as error:
            raise SumsError(f"{path} is damaged ({error}); restore the model") from error
        if digest != about.get("digest"):
            raise SumsError(
                f"{path} holds sums with digest {digest[:12]}..., recorded is "
                f"{about.get('digest', '')[:12]}...; restore the model"
            )
        return found

    def _rows(self, rows: Sequence[int]) -> Sums:
        types = tuple(self.types[row] for row in rows)
        return Sums(self.basis, types, *(getattr(self, name)[list(rows)] for name in _ARRAYS))

    def _check_same(self, other: Sums) -> None:
        if self.basis != other.basis:
            raise SumsError(
                f"sums of two bases cannot be put together: {self.basis[:12]}... and {other.basis[:12]}...; "
                "adopt one basis for both lineages (`canal basis adopt`)"
            )

    def _check_possible(self) -> None:
        """Raise unless n > 0, 0 <= s <= n * highest, likewise the diagonal of G, and `_is_of_few` holds."""
        n = self.counts[:, None]
        diagonal = self.products[:, _diagonal(self.size)]
        right = (
            (self.counts > 0).all()
            and sum(map(int, self.counts)) * HIGHEST**2 <= _WHOLE_INT
            and ((self.totals >= 0) & (self.totals <= n * HIGHEST)).all()
            and ((diagonal >= self.totals) & (diagonal <= self.totals * HIGHEST)).all()
            and (self.products >= 0).all()
            and self._is_of_few()
        )
        if not right:
            raise SumsError(
                "no cells can have these sums: a count, a sum or a product of levels is outside of the range "
                f"of {self.n_cells:,} cells with levels of 0...{HIGHEST}"
            )

    def _is_of_few(self) -> bool:
        """Whether n G >= s**2 on the diagonal, and the products of a single cell are those of its levels."""
        diagonal = self.products[:, _diagonal(self.size)].astype(np.float64)
        least = self.totals.astype(np.float64) ** 2 * (1 - 1e-9)  # of whole numbers that a float may round
        single = np.flatnonzero(self.counts == 1)
        first, second = np.triu_indices(self.size if len(single) else 0)
        return bool((self.counts[:, None] * diagonal >= least).all()) and all(
            np.array_equal(self.products[row], self.totals[row, first] * self.totals[row, second])
            for row in single
        )


class Adder:
    """Adds up cells, a chunk at a time; memory grows with the levels' square, not with cells.

    Parameters
    ----------
    basis
        Turns expression into levels.
    """

    def __init__(self, basis: Basis) -> None:
        self.basis = basis
        self._counts: dict[str, int] = {}
        self._totals: dict[str, np.ndarray] = {}
        self._products: dict[str, np.ndarray] = {}
        self._triangle = np.triu_indices(basis.size)

    def add(self, expression: np.ndarray, cell_types: Sequence[str]) -> None:
        """Add cells of expression ``(n_cells, >= n_genes)``.

        Raises
        ------
        SumsError
            If a product of this machine's floating-point library is wrong, or there are too many cells.
        """
        levels = self.basis.levels(expression)
        if len(levels) != len(cell_types):
            raise SumsError(f"{len(levels)} cells need one type each, found {len(cell_types)}")
        names = np.array(cell_types, dtype=object)
        for name in sorted(set(cell_types)):
            own = levels[names == name]
            products = exact_products(own)[self._triangle]
            total = own.sum(axis=0).astype(np.int64)  # whole numbers below 2**53
            if name not in self._counts:
                self._counts[name], self._totals[name], self._products[name] = len(own), total, products
                continue
            self._counts[name] += len(own)
            if self._counts[name] * HIGHEST**2 > _WHOLE_INT:
                raise SumsError(f"{self._counts[name]:,} cells of {name} are too many for sums of 64 bits")
            self._totals[name] += total
            self._products[name] += products

    def sums(self) -> Sums:
        """Return the sums of all cells so far."""
        types = tuple(sorted(self._counts, key=str.encode))
        if not types:
            return Sums.empty(self.basis)
        return Sums(
            self.basis.digest,
            types,
            np.array([self._counts[name] for name in types], dtype=np.int64),
            np.stack([self._totals[name] for name in types]),
            np.stack([self._products[name] for name in types]),
        )


def add_up(basis: Basis, chunks: Iterable[tuple[np.ndarray, Sequence[str]]]) -> Sums:
    """Return the sums of chunks of (expression, cell types)."""
    adder = Adder(basis)
    for expression, cell_types in chunks:
        adder.add(expression, cell_types)
    return adder.sums()


def total(parts: Iterable[Sums], basis: Basis) -> Sums:
    """Return the sums of all cells of several sums."""
    result = Sums.empty(basis)
    for part in parts:
        result = result.plus(part)
    return result


def exact_products(levels: np.ndarray) -> np.ndarray:
    """Return the whole numbers of levels.T @ levels, int64 ``(n_genes, n_genes)``.

    The product is one of float64: whole numbers below 2**53 are exact in it in any order of adding, fused or
    not. That the library computed it right is checked (Freivalds 1977): G r = F.T (F r) in whole numbers of
    64 bits, modulo 2**64, for numbers r of 32 bits drawn from the product itself.

    Parameters
    ----------
    levels
        Whole numbers of 0...HIGHEST as float64, ``(n_cells, n_genes)``.

    Raises
    ------
    SumsError
        If levels are not whole or out of range, there are too many cells, or the check fails.
    """
    if len(levels) * HIGHEST**2 >= _WHOLE_FLOAT:
        raise SumsError(
            f"{len(levels):,} cells at a time are too many for exact products of levels up to {HIGHEST}: "
            f"take chunks of {_WHOLE_FLOAT // HIGHEST**2 - 1:,}"
        )
    if levels.size and not (
        (levels >= 0).all() and (levels <= HIGHEST).all() and (levels == np.rint(levels)).all()
    ):
        raise SumsError(f"levels must be whole numbers of 0...{HIGHEST}")
    product = levels.T @ levels
    whole = product.astype(np.int64)
    cells = levels.astype(np.int64)
    digest = hashlib.blake2b(whole.tobytes(), digest_size=8).digest()
    drawn = np.random.default_rng(list(digest)).integers(-(2**31), 2**31, size=levels.shape[1])
    if not ((whole == product).all() and (whole @ drawn == cells.T @ (cells @ drawn)).all()):
        raise SumsError(
            "this machine's floating-point library computed a product of whole numbers wrongly, so sums "
            "made here could not be trusted: set OPENBLAS_CORETYPE or MKL_DEBUG_CPU_TYPE to another kernel, "
            "or install another build of numpy"
        )
    result: np.ndarray = whole
    return result


def _joined(left: Sums, right: Sums, sign: int) -> Sums:
    """Return left + sign * right, types without cells left out."""
    types = tuple(sorted({*left.types, *right.types}, key=str.encode))
    made = {name: np.zeros((len(types), *getattr(left, name).shape[1:]), dtype=np.int64) for name in _ARRAYS}
    for sums, factor in ((left, 1), (right, sign)):
        rows = [types.index(name) for name in sums.types]
        for name in _ARRAYS:
            made[name][rows] += factor * getattr(sums, name)
    if (made["counts"] < 0).any():
        raise SumsError("more cells of a type were to be removed than the sums hold")
    gone = made["counts"] == 0
    if any(made[name][gone].any() for name in _ARRAYS):
        raise SumsError(
            "the cells to remove are not those that were added: a type has sums left, but no cell"
        )
    kept = np.flatnonzero(~gone)
    names = tuple(types[row] for row in kept)
    return Sums(left.basis, names, *(made[name][kept] for name in _ARRAYS))


def _diagonal(size: int) -> np.ndarray:
    """Return the positions of the diagonal in the upper triangle by rows."""
    rows = np.arange(size)
    result: np.ndarray = rows * size - rows * (rows - 1) // 2
    return result
