"""Small files that claim to be huge: refused by arithmetic before anything is read."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np

from inputs.case import Case, write
from inputs.formats import write_10x_folder

if TYPE_CHECKING:
    from anndata import AnnData

Make = "Callable[[AnnData, Path], Path]"
_HUGE = 10**12


def _changed(change: Callable[[h5py.File], None]) -> "Make":
    def make(adata: "AnnData", folder: Path) -> Path:
        path = write(adata, folder)
        with h5py.File(path, "r+") as file:
            change(file)
        return path

    return make


def _claimed(file: h5py.File) -> None:
    """Claim a shape of 10^12 cells."""
    file["X"].attrs["shape"] = np.array([_HUGE, file["X"].attrs["shape"][1]])


def _long_pointers(file: h5py.File) -> None:
    """Let the pointers be a chunked array of 10^9 that holds nothing."""
    del file["X/indptr"]
    file.create_dataset("X/indptr", shape=(10**9,), dtype="i8", chunks=(10**6,), compression="gzip")


def _long_index(file: h5py.File) -> None:
    del file["obs/_index"]
    file.create_dataset("obs/_index", shape=(10**9,), dtype="S16", chunks=(10**6,), compression="gzip")


def _wide_chunk(file: h5py.File) -> None:
    """Store X dense in one chunk of gigabytes of zeros."""
    n, m = (int(size) for size in file["X"].attrs["shape"])
    del file["X"]
    file.create_dataset(
        "X", shape=(n, m), maxshape=(None, None), dtype="f4", chunks=(150_000, m), compression="gzip"
    )
    file["X"].attrs["encoding-type"], file["X"].attrs["encoding-version"] = "array", "0.2.0"
    file["X"][0, 0] = 1


def _too_many_values(file: h5py.File) -> None:
    """Claim more values than cells times genes, all of one cell and gene."""
    indptr = file["X/indptr"][:]
    n = int(np.prod(file["X"].attrs["shape"].astype(np.int64))) + 1000
    for key, kind in (("data", "f4"), ("indices", "i4")):
        del file[f"X/{key}"]
        file.create_dataset(f"X/{key}", shape=(n,), dtype=kind, chunks=(10**6,), compression="gzip")
    indptr[1:] = n
    file["X/indptr"][:] = indptr


def _mtx_claim(adata: "AnnData", folder: Path) -> Path:
    path = write_10x_folder(adata, folder)
    lines = (path / "matrix.mtx").read_text().splitlines()
    place = next(i for i, line in enumerate(lines) if not line.startswith("%"))
    lines[place] = f"{adata.n_vars} {_HUGE} {_HUGE}"
    (path / "matrix.mtx").write_text("\n".join(lines))
    return path


def _long_line(adata: "AnnData", folder: Path) -> Path:
    """One line of two gigabytes, packed to two megabytes."""
    path = write_10x_folder(adata, folder)
    (path / "barcodes.tsv").unlink()
    block = b"A" * 10**7
    with gzip.open(path / "barcodes.tsv.gz", "wb", compresslevel=9) as stream:
        for _ in range(200):
            stream.write(block)
    return path


def _bomb(name: str, make: "Make") -> Case:
    return Case("small files that claim to be huge", name, make, ("refused",), r".")


CASES = (
    _bomb("a shape of 10^12 cells", _changed(_claimed)),
    _bomb("10^9 pointers", _changed(_long_pointers)),
    _bomb("10^9 names of cells", _changed(_long_index)),
    _bomb("a chunk of gigabytes", _changed(_wide_chunk)),
    _bomb("more values than the matrix has places", _changed(_too_many_values)),
    _bomb("an mtx of 10^12 columns", _mtx_claim),
    _bomb("a line of two gigabytes", _long_line),
)
