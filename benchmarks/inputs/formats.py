"""Formats as other programs write them, and files that are cut, packed, turned or of another kind."""

import gzip
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata
import h5py
import numpy as np
import pandas as pd
from scipy.io import mmwrite
from scipy.sparse import coo_matrix, csc_matrix, csr_matrix

from inputs.case import Case, Outcome, of_values, scaled, with_x, write

if TYPE_CHECKING:
    from anndata import AnnData

Make = "Callable[[AnnData, Path], Path]"


def write_10x_folder(adata: "AnnData", folder: Path, turned: bool = False, quote: str = "") -> Path:
    """Write matrix.mtx, barcodes.tsv and features.tsv; ``turned``: cells by genes."""
    path = folder / "filtered"
    path.mkdir()
    matrix = adata.X if turned else adata.X.T
    mmwrite(path / "matrix.mtx", coo_matrix(matrix.astype(int)), field="integer")
    (path / "barcodes.tsv").write_text("".join(f"{quote}{name}{quote}\n" for name in adata.obs_names))
    columns = [f"{quote}ENSG{i:011d}{quote}\t{quote}{name}{quote}" for i, name in enumerate(adata.var_names)]
    (path / "features.tsv").write_text("".join(f"{row}\tGene Expression\n" for row in columns))
    return path


def _turned(adata: "AnnData", folder: Path) -> Path:
    return write_10x_folder(adata, folder, turned=True)


def _quoted(adata: "AnnData", folder: Path) -> Path:
    return write_10x_folder(adata, folder, quote='"')


def _matrix_alone(adata: "AnnData", folder: Path) -> Path:
    path = folder / "GSM1_matrix.mtx.gz"
    with gzip.open(path, "wb") as stream:
        mmwrite(stream, coo_matrix(adata.X.T.astype(int)), field="integer")
    return path


def _prefixed(adata: "AnnData", folder: Path) -> Path:
    path = write_10x_folder(adata, folder)
    for file in list(path.iterdir()):
        file.rename(path / f"GSM1_S1-{file.name}")
    return path


def _genes_by_cells(adata: "AnnData", folder: Path) -> Path:
    return write(
        anndata.AnnData(csr_matrix(adata.X.T), obs=adata.var.copy(), var=adata.obs[[]].copy()), folder
    )


def _gzipped(adata: "AnnData", folder: Path) -> Path:
    whole = write(adata, folder, "whole.h5ad")
    with whole.open("rb") as source, gzip.open(folder / "in.h5ad.gz", "wb") as target:
        shutil.copyfileobj(source, target)
    whole.unlink()
    return folder / "in.h5ad.gz"


def _cut(adata: "AnnData", folder: Path) -> Path:
    path = write(adata, folder)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def _mudata(adata: "AnnData", folder: Path) -> Path:
    with h5py.File(folder / "in.h5mu", "w") as file:
        file.attrs["encoding-type"], file.attrs["encoding-version"] = "MuData", "0.1.0"
        anndata.io.write_elem(file, "obs", adata.obs)
        anndata.io.write_elem(file, "var", adata.var)
        file.create_group("mod")
        anndata.io.write_elem(file, "mod/rna", adata)
    return folder / "in.h5mu"


def _filtered(adata: "AnnData", folder: Path) -> Path:
    """Compress with Zstandard, which HDF5 reads by a plugin alone."""
    import hdf5plugin

    adata.write_h5ad(folder / "in.h5ad", compression=hdf5plugin.FILTERS["zstd"])
    return folder / "in.h5ad"


def _bytes_and_csc(adata: "AnnData", folder: Path) -> Path:
    matrix = csc_matrix(adata.X)
    with h5py.File(folder / "in.h5ad", "w") as file:
        group = file.create_group("X")
        group.attrs["encoding-type"], group.attrs["encoding-version"] = "csc_matrix", "0.1.0"
        group.attrs["shape"] = matrix.shape
        group["data"], group["indices"] = matrix.data.astype(np.float64), matrix.indices.astype(np.int64)
        group["indptr"] = matrix.indptr.astype(np.int64)
        for key, names in (("obs", adata.obs_names), ("var", adata.var_names)):
            table = file.create_group(key)
            table.attrs["encoding-type"], table.attrs["encoding-version"] = "dataframe", "0.2.0"
            table.attrs["_index"], table.attrs["column-order"] = "rownames", np.zeros(0)
            table["rownames"] = np.array([name.encode() for name in names])
    return folder / "in.h5ad"


def _nullable(adata: "AnnData", folder: Path) -> Path:
    own = adata.copy()
    own.obs.index = pd.Index(own.obs.index.astype(str), dtype="string")
    own.var.index = pd.Index(own.var.index.astype(str), dtype="string")
    with (
        anndata.settings.override(allow_write_nullable_strings=True),
        h5py.File(folder / "in.h5ad", "w") as file,
    ):
        file.attrs["encoding-type"], file.attrs["encoding-version"] = "anndata", "0.1.0"
        for key in ("X", "obs", "var"):
            anndata.io.write_elem(file, key, getattr(own, key))
        for key in ("obsm", "varm", "layers", "uns", "obsp", "varp"):
            anndata.io.write_elem(file, key, {})
    return folder / "in.h5ad"


def _h5(adata: "AnnData", file: h5py.File, genome: bool) -> None:
    group = file.create_group("matrix")
    group["data"], group["indices"] = adata.X.data.astype(np.int32), adata.X.indices.astype(np.int64)
    group["indptr"], group["shape"] = adata.X.indptr.astype(np.int64), np.array(adata.shape[::-1], np.int64)
    group["barcodes"] = np.array([name.encode() for name in adata.obs_names])
    features = group.create_group("features")
    features["id"] = np.array([f"ENSG{i:011d}".encode() for i in range(adata.n_vars)])
    features["name"] = np.array([name.encode() for name in adata.var_names])
    features["feature_type"] = np.array([b"Gene Expression"] * adata.n_vars)
    if genome:
        features["genome"] = np.array([b"GRCh38"] * adata.n_vars)


def _cellranger(adata: "AnnData", folder: Path) -> Path:
    with h5py.File(folder / "in.h5", "w") as file:
        _h5(adata, file, genome=True)
    return folder / "in.h5"


def _cellbender(adata: "AnnData", folder: Path) -> Path:
    with h5py.File(folder / "in.h5", "w") as file:
        _h5(adata, file, genome=False)
        file.create_group("droplet_latents")["cell_probability"] = np.ones(adata.n_obs)
    return folder / "in.h5"


def _two_genomes(adata: "AnnData", folder: Path) -> Path:
    with h5py.File(folder / "in.h5", "w") as file:
        for genome in ("hg19", "mm10"):
            group = file.create_group(genome)
            group["data"], group["indices"] = adata.X.data.astype(np.int32), adata.X.indices.astype(np.int64)
            group["indptr"] = adata.X.indptr.astype(np.int64)
            group["shape"] = np.array(adata.shape[::-1], np.int32)
            group["barcodes"] = np.array([name.encode() for name in adata.obs_names])
            group["genes"] = np.array([f"ENSG{i:011d}".encode() for i in range(adata.n_vars)])
            group["gene_names"] = np.array([name.encode() for name in adata.var_names])
    return folder / "in.h5"


def _loom(adata: "AnnData", folder: Path) -> Path:
    with h5py.File(folder / "in.loom", "w") as file:
        file["matrix"] = adata.X.toarray().T.astype(np.int32)
        file["row_attrs/var_names"] = np.array([name.encode() for name in adata.var_names])
        file["col_attrs/obs_names"] = np.array([name.encode() for name in adata.obs_names])
        for key in ("layers", "row_graphs", "col_graphs"):
            file.create_group(key)
        file.attrs["LOOM_SPEC_VERSION"] = "2.0.1"
    return folder / "in.loom"


def _empty_chunks(adata: "AnnData", folder: Path) -> Path:
    """Dense zarr in small chunks; those that are all zero are not stored."""
    own = adata.copy()
    own.X = own.X.toarray()
    own.write_zarr(folder / "in.zarr", chunks=(60, 300))
    return folder / "in.zarr"


def _no_x(adata: "AnnData", folder: Path) -> Path:
    logs = of_values(scaled(adata), np.log1p).astype(np.float32)
    return write(
        anndata.AnnData(obs=adata.obs, var=adata.var, layers={"counts": adata.X, "logs": logs}), folder
    )


def _noisy(adata: "AnnData", folder: Path) -> Path:
    """Counts less some background: fractions, most of them near whole numbers."""
    random = np.random.default_rng(0)
    less = of_values(adata.X, lambda x: np.maximum(x - random.uniform(0, 0.3, x.shape), 0.01))
    return write(with_x(adata, less), folder)


def _wide(adata: "AnnData", folder: Path) -> Path:
    wide = np.zeros((adata.n_obs, 4080), dtype=np.int8)
    table = pd.DataFrame(wide, columns=[f"score{i}" for i in range(4080)], index=adata.obs_names)
    own = adata.copy()
    own.obs = pd.concat([own.obs, table], axis=1)
    return write(own, folder)


def _read(
    name: str, make: "Make", right: tuple[Outcome, ...] = ("labels",), words: str = "", **more: Any
) -> Case:
    return Case("formats and messages", name, make, right, words, **more)


CASES = (
    _read("CellRanger's .h5", _cellranger),
    _read("CellBender's .h5", _cellbender),
    _read("two genomes in one .h5", _two_genomes, ("refused",), "hg19|mm10"),
    _read("10x folder", write_10x_folder),
    _read("10x folder, names in quotes", _quoted, ("labels", "refused"), "quote"),
    _read("10x folder, cells by genes", _turned, ("labels", "refused"), "transposed|turned"),
    _read("10x folder, prefixed names", _prefixed, ("labels", "refused"), "matrix.mtx|prefix"),
    _read("matrix.mtx.gz alone", _matrix_alone, ("refused",), "folder|barcodes"),
    _read("genes by cells", _genes_by_cells, ("refused",), "transpose|turned|genes"),
    _read("gzipped as a whole", _gzipped, ("labels", "refused"), "gzip|gunzip"),
    _read("cut in the middle", _cut, ("refused",), "cut short|damaged|truncated"),
    _read("MuData", _mudata, ("labels", "refused"), "MuData|modalit"),
    _read("Zstandard filter", _filtered, ("labels", "refused"), "zstd|Zstandard|filter"),
    _read("bytes, CSC, float64", _bytes_and_csc),
    _read("nullable strings", _nullable),
    _read("loom of anndata", _loom),
    _read("zarr without chunks of zeros", _empty_chunks),
    _read("no X", _no_x, ("refused",), "counts"),
    _read("no X, a layer named", _no_x, options={"layer": "counts"}),
    _read("counts with fractions", _noisy, ("refused",), "--values counts"),
    _read("counts with fractions, told", _noisy, options={"values": "counts"}, agree=0.9),
    _read("4,080 columns", _wide, ("labels",), target="labelled.h5ad"),
)
