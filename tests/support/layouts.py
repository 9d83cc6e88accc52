"""h5ad files as anndata wrote them before 0.7 and in 0.7, made by hand: today's anndata cannot."""

from pathlib import Path

import h5py
import numpy as np
from scipy.sparse import csr_matrix

NAMES = ["c1", "c2", "c3"]
GENES = ["CD4", "CD14", "LYZ"]
SCALED = np.array([[-1, 0.5, 0], [1, 0, 2], [0, 0, -3]], dtype=np.float32)
RAW = csr_matrix(np.array([[0, 2, 1], [3, 0, 0], [0, 0, 4]], dtype=np.float32))
LABELS = ["B", "", "NK"]


def write_pre_07(path: Path) -> Path:
    """Compound obs and var, raw.X and raw.var, categories in uns, sparse format in old attributes."""
    with h5py.File(path, "w") as file:
        kind = [("index", "S2"), ("label", "i1"), ("depth", "<f4")]
        rows = [(b"c1", 0, 1.5), (b"c2", -1, np.nan), (b"c3", 1, 2.0)]
        file["obs"] = np.array(rows, dtype=kind)
        file["uns/label_categories"] = np.array([b"B", b"NK"])
        file["var"] = np.array([(b"CD4",), (b"CD14",), (b"LYZ",)], dtype=[("index", "S5")])
        file["X"] = SCALED
        kind = [("index", "S5"), ("symbol", "S9")]
        file["raw.var"] = np.array([(b"E1", b"CD4"), (b"E2", b"CD14"), (b"E3", b"LYZ")], dtype=kind)
        group = file.create_group("raw.X")
        group.attrs["h5sparse_format"] = np.bytes_("csr")
        group.attrs["h5sparse_shape"] = np.array(RAW.shape)
        group["data"], group["indices"], group["indptr"] = RAW.data, RAW.indices, RAW.indptr
    return path


def write_07(path: Path) -> Path:
    """Groups of columns; categories stand in __categories behind a reference."""
    text = h5py.string_dtype()
    with h5py.File(path, "w") as file:
        obs = file.create_group("obs")
        obs.attrs.update({"encoding-type": "dataframe", "_index": "index", "column-order": ["label"]})
        obs["index"] = np.array(NAMES, dtype=text)
        obs["label"] = np.array([0, -1, 1], dtype=np.int8)
        obs["__categories/label"] = np.array(["B", "NK"], dtype=text)
        obs["label"].attrs["categories"] = obs["__categories/label"].ref
        for key in ("var", "raw/var"):
            var = file.create_group(key)
            var.attrs.update({"encoding-type": "dataframe", "_index": "index", "column-order": []})
            var["index"] = np.array(GENES, dtype=text)
        file["X"] = SCALED
        group = file.create_group("raw/X")
        group.attrs["encoding-type"] = "csr_matrix"
        group.attrs["shape"] = np.array(RAW.shape)
        group["data"], group["indices"], group["indptr"] = RAW.data, RAW.indices, RAW.indptr
    return path
