"""The same cells in every format: ``from tests.support.formats import WRITERS``."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np
from scipy.sparse import csc_matrix

if TYPE_CHECKING:
    from anndata import AnnData


def ids(n: int) -> list[str]:
    return [f"ENSG{i:011d}" for i in range(n)]


def write_csr(adata: AnnData, folder: Path) -> Path:
    adata.write_h5ad(folder / "csr.h5ad")
    return folder / "csr.h5ad"


def write_csc(adata: AnnData, folder: Path) -> Path:
    turned = adata.copy()
    turned.X = csc_matrix(turned.X)
    turned.write_h5ad(folder / "csc.h5ad")
    return folder / "csc.h5ad"


def write_dense(adata: AnnData, folder: Path) -> Path:
    turned = adata.copy()
    turned.X = turned.X.toarray()
    turned.write_h5ad(folder / "dense.h5ad")
    return folder / "dense.h5ad"


def _write_zarr(adata: AnnData, path: Path, version: int) -> Path:
    import anndata

    with anndata.settings.override(zarr_write_format=version):
        adata.write_zarr(path)
    return path


def write_zarr2(adata: AnnData, folder: Path) -> Path:
    return _write_zarr(adata, folder / "two.zarr", 2)


def write_zarr3(adata: AnnData, folder: Path) -> Path:
    return _write_zarr(adata, folder / "three.zarr", 3)


def _write_10x(node: h5py.Group, adata: AnnData) -> None:
    """The matrix is genes by barcodes, compressed by barcode: the same three arrays as cells by genes."""
    node["data"], node["indices"] = adata.X.data.astype(np.int32), adata.X.indices.astype(np.int64)
    node["indptr"], node["shape"] = adata.X.indptr.astype(np.int64), np.array(adata.shape[::-1], np.int32)
    node["barcodes"] = np.array(list(adata.obs_names), dtype="S")


def write_10x_v3(adata: AnnData, folder: Path) -> Path:
    path = folder / "v3.h5"
    with h5py.File(path, "w") as file:
        node = file.create_group("matrix")
        _write_10x(node, adata)
        features = node.create_group("features")
        features["name"] = np.array(list(adata.var_names), dtype="S")
        features["id"] = np.array(ids(adata.n_vars), dtype="S")
        features["feature_type"] = np.array(["Gene Expression"] * adata.n_vars, dtype="S")
        features["genome"] = np.array(["GRCh38"] * adata.n_vars, dtype="S")
    return path


def write_10x_v2(adata: AnnData, folder: Path) -> Path:
    path = folder / "v2.h5"
    with h5py.File(path, "w") as file:
        node = file.create_group("hg19")
        _write_10x(node, adata)
        node["gene_names"] = np.array(list(adata.var_names), dtype="S")
        node["genes"] = np.array(ids(adata.n_vars), dtype="S")
    return path


def _mtx_lines(adata: AnnData, shuffled: bool) -> bytes:
    entries = adata.X.tocoo()
    order = np.arange(entries.nnz)
    if shuffled:
        np.random.default_rng(0).shuffle(order)
    lines = [f"{entries.col[i] + 1} {entries.row[i] + 1} {entries.data[i]:g}" for i in order]
    head = ["%%MatrixMarket matrix coordinate integer general", "%metadata_json: {}"]
    head.append(f"{adata.n_vars} {adata.n_obs} {entries.nnz}")
    return ("\n".join(head + lines) + "\n").encode()


def write_mtx(adata: AnnData, folder: Path) -> Path:
    """As CellRanger 2: plain text, in no order."""
    path = folder / "mtx"
    path.mkdir()
    (path / "matrix.mtx").write_bytes(_mtx_lines(adata, shuffled=True))
    rows = zip(ids(adata.n_vars), adata.var_names, strict=True)
    (path / "genes.tsv").write_text("".join(f"{a}\t{b}\n" for a, b in rows))
    (path / "barcodes.tsv").write_text("".join(f"{name}\n" for name in adata.obs_names))
    return path


def write_mtx_gz(adata: AnnData, folder: Path) -> Path:
    """As CellRanger 3: compressed."""
    path = folder / "mtx_gz"
    path.mkdir()
    rows = zip(ids(adata.n_vars), adata.var_names, strict=True)
    texts = {
        "matrix.mtx.gz": _mtx_lines(adata, shuffled=False),
        "features.tsv.gz": "".join(f"{a}\t{b}\tGene Expression\n" for a, b in rows).encode(),
        "barcodes.tsv.gz": "".join(f"{name}\n" for name in adata.obs_names).encode(),
    }
    for name, text in texts.items():
        (path / name).write_bytes(gzip.compress(text))
    return path


def write_loom(adata: AnnData, folder: Path) -> Path:
    path = folder / "cells.loom"
    with h5py.File(path, "w") as file:
        layout = {"chunks": (8, 8), "compression": "gzip"} if min(adata.shape) >= 8 else {}
        file.create_dataset("matrix", data=adata.X.toarray().T, **layout)
        file.create_group("layers")
        file["col_attrs/CellID"] = np.array(list(adata.obs_names), dtype="S")
        file["col_attrs/batch"] = np.array(list(adata.obs["batch"]), dtype="S")
        file["row_attrs/Gene"] = np.array(list(adata.var_names), dtype="S")
    return path


H5AD = (write_csr, write_csc, write_dense)
ZARR = (write_zarr2, write_zarr3)
OTHERS = (write_10x_v3, write_10x_v2, write_mtx, write_mtx_gz, write_loom)
WRITERS = (*H5AD, *ZARR, *OTHERS)
