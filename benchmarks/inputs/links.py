"""Files, stores and folders that lead elsewhere, and those that only seem to."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import h5py

from inputs.case import Case, Outcome, write
from inputs.formats import write_10x_folder

if TYPE_CHECKING:
    from anndata import AnnData

Make = "Callable[[AnnData, Path], Path]"


def _changed(change: Callable[[h5py.File, Path], None]) -> "Make":
    """Write the cells beside another file of them, and change the first."""

    def make(adata: "AnnData", folder: Path) -> Path:
        write(adata, folder, "other.h5ad")
        path = write(adata, folder)
        with h5py.File(path, "r+") as file:
            change(file, folder)
        return path

    return make


def _external(key: str, there: str | None = None) -> "Make":
    def change(file: h5py.File, folder: Path) -> None:
        del file[key]
        file[key] = h5py.ExternalLink(str(folder / "other.h5ad"), there or key)

    return _changed(change)


def _text_as_names(file: h5py.File, folder: Path) -> None:
    """Let the cells' names be the bytes of a file of somebody else."""
    n = file["obs/_index"].shape[0]
    secret = folder / "secret.txt"
    secret.write_bytes(b"secret! " * n)
    del file["obs/_index"]
    file.create_dataset("obs/_index", shape=(n,), dtype="S8", external=[(str(secret), 0, 8 * n)])


def _virtual(file: h5py.File, folder: Path) -> None:
    shape = file["X/data"].shape
    layout = h5py.VirtualLayout(shape, dtype="f4")
    layout[:] = h5py.VirtualSource(str(folder / "other.h5ad"), "X/data", shape)
    del file["X/data"]
    file.create_virtual_dataset("X/data", layout)


def _virtual_of_itself(file: h5py.File, _: Path) -> None:
    shape = file["X/data"].shape
    del file["X/data"]
    layout = h5py.VirtualLayout(shape, dtype="f4")
    layout[:] = h5py.VirtualSource(".", "X/data", shape)
    file.create_virtual_dataset("X/data", layout)


def _circle(file: h5py.File, _: Path) -> None:
    del file["X"]
    file["X"] = h5py.SoftLink("/layers/again")
    file["layers/again"] = h5py.SoftLink("/X")


def _inside(file: h5py.File, _: Path) -> None:
    file.move("X", "layers/counts")
    file["X"] = h5py.SoftLink("/layers/counts")


def _zarr_link(adata: "AnnData", folder: Path) -> Path:
    adata.write_zarr(folder / "other.zarr")
    adata.write_zarr(folder / "in.zarr")
    _to_link(folder / "in.zarr" / "X" / "data", folder / "other.zarr" / "X" / "data")
    return folder / "in.zarr"


def _mtx_link(adata: "AnnData", folder: Path) -> Path:
    (folder / "elsewhere").mkdir()
    path = write_10x_folder(adata, folder)
    (path / "barcodes.tsv").rename(folder / "elsewhere" / "barcodes.tsv")
    (path / "barcodes.tsv").symlink_to(folder / "elsewhere" / "barcodes.tsv")
    return path


def _mtx_pipe(adata: "AnnData", folder: Path) -> Path:
    path = write_10x_folder(adata, folder)
    (path / "barcodes.tsv").unlink()
    os.mkfifo(path / "barcodes.tsv")
    return path


def _pipe(_: "AnnData", folder: Path) -> Path:
    os.mkfifo(folder / "in.h5ad")
    return folder / "in.h5ad"


def _path_is_a_link(adata: "AnnData", folder: Path) -> Path:
    write(adata, folder, "cells.h5ad")
    (folder / "in.h5ad").symlink_to("cells.h5ad")
    return folder / "in.h5ad"


def _to_link(path: Path, target: Path) -> None:
    """Let a folder be a link to another one."""
    path.rename(path.with_name(f"{path.name}.gone"))
    path.symlink_to(target, target_is_directory=True)
    for one in sorted(path.with_name(f"{path.name}.gone").rglob("*"), reverse=True):
        one.rmdir() if one.is_dir() else one.unlink()
    path.with_name(f"{path.name}.gone").rmdir()


def _out_of(name: str, make: "Make", target: str = "labels.csv") -> Case:
    words = r"link|outside|another file|elsewhere|external|virtual|pipe|regular"
    return Case(
        "links out of the input", name, make, ("refused",), words, target=target, outside=("other.h5ad",)
    )


def _within(name: str, make: "Make", right: Outcome = "labels") -> Case:
    return Case("links within the input", name, make, (right,), "link|circle|loop|itself")


CASES = (
    _out_of("X is an external link", _external("X")),
    _out_of("X/data is an external link", _external("X/data")),
    _out_of("obs is an external link", _external("obs")),
    _out_of("var's index is an external link", _external("var/_index")),
    _out_of("uns is an external link, written to", _external("uns"), "labelled.h5ad"),
    _out_of("obs is an external link, written to", _external("obs"), "labelled.h5ad"),
    _out_of("cells' names stand in a text file", _changed(_text_as_names)),
    _out_of("X/data is a virtual dataset", _changed(_virtual)),
    _out_of("X/data is a virtual dataset of itself", _changed(_virtual_of_itself)),
    _out_of("a zarr array is a symlink", _zarr_link),
    _out_of("a table of an mtx folder is a symlink", _mtx_link),
    _out_of("a table of an mtx folder is a pipe", _mtx_pipe),
    _out_of("the file is a pipe", _pipe),
    _within("a soft link", _changed(_inside)),
    _within("the path is a symlink", _path_is_a_link),
    _within("soft links in a circle", _changed(_circle), "refused"),
)
