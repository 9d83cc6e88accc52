"""Genes under other names, and rows that are no genes."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import anndata
import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix, hstack

from inputs.case import Case, of_values, scaled, totals, with_x, write

if TYPE_CHECKING:
    from anndata import AnnData

Make = "Callable[[AnnData, Path], Path]"


def _id(place: int) -> str:
    return f"ENSG{place:011d}"


def _renamed(rename: Callable[[str, int], str]) -> "Make":
    def make(adata: "AnnData", folder: Path) -> Path:
        own = adata.copy()
        own.var_names = [rename(name, place) for place, name in enumerate(adata.var_names)]
        return write(own, folder)

    return make


def _cellxgene(adata: "AnnData", folder: Path) -> Path:
    """Ensembl ids, symbols in feature_name, some of them with the id behind."""
    own = adata.copy()
    names = [f"{name}_{_id(i)}" if i % 7 == 0 else name for i, name in enumerate(adata.var_names)]
    own.var["feature_name"] = pd.Categorical(names)
    own.var["feature_biotype"] = pd.Categorical(["gene"] * own.n_vars)
    own.var_names = [_id(i) for i in range(own.n_vars)]
    logs = with_x(own, of_values(scaled(own), np.log1p))
    logs.raw = own
    return write(logs, folder)


def _names_in_raw(adata: "AnnData", folder: Path) -> Path:
    logs = with_x(adata, of_values(scaled(adata), np.log1p))
    logs.raw = adata
    logs.var_names = [str(i) for i in range(logs.n_vars)]
    return write(logs, folder)


def _antibodies(column: str, word: str, store: str) -> "Make":
    def make(adata: "AnnData", folder: Path) -> Path:
        depth = np.outer(totals(adata) / 3, np.ones(30))
        surface = csr_matrix(np.random.default_rng(3).poisson(depth).astype(np.float32))
        own = anndata.AnnData(csr_matrix(hstack([adata.X, surface])), obs=adata.obs.copy())
        own.var_names = [*adata.var_names, *(f"CD{i}_TotalSeqB" for i in range(30))]
        genes = "Gene Expression" if column != "feature_biotype" else "gene"
        own.var[column] = [genes] * adata.n_vars + [word] * 30
        if store == "zarr":
            own.write_zarr(folder / "in.zarr")
            return folder / "in.zarr"
        return write(own, folder)

    return make


_SPELLINGS: tuple[tuple[str, Callable[[str, int], str]], ...] = (
    ("R's make.names", lambda name, _: name.replace("-", ".")),
    ("symbol and id in parentheses", lambda name, i: f"{name} ({_id(i)})"),
    ("id before the symbol", lambda name, i: f"{_id(i)}_{name}"),
    ("symbol before the id", lambda name, i: f"{name}_{_id(i)}"),
    ("hg19_ before the symbol", lambda name, _: f"hg19_{name}"),
    ("GRCh38_ before the symbol", lambda name, _: f"GRCh38_{name}"),
    ("quotes of R", lambda name, _: f'"{name}"'),
    ("lower case", lambda name, _: name.lower()),
    ("blanks around", lambda name, _: f" {name} "),
)

_LOST = r"gene|symbol|Ensembl"
CASES = (
    *(
        Case("names of genes", name, _renamed(rename), ("labels", "refused"), _LOST)
        for name, rename in _SPELLINGS
    ),
    Case(
        "names of genes", "Ensembl ids alone", _renamed(lambda _, i: f"{_id(i)}.3"), ("refused",), "gene-map"
    ),
    Case("names of genes", "numbers, symbols in raw", _names_in_raw, ("refused",), "raw"),
    Case("names of genes", "numbers, --use-raw", _names_in_raw, ("labels",), options={"layer": "raw"}),
    Case("names of genes", "CELLxGENE", _cellxgene, ("labels",)),
    Case("names of genes", "CELLxGENE, raw", _cellxgene, ("labels",), options={"layer": "raw"}),
    *(
        Case(
            "rows that are no genes",
            f"{word}, {column}, {store}",
            _antibodies(column, word, store),
            ("labels",),
        )
        for word, column in (
            ("Antibody Capture", "feature_types"),
            ("CRISPR Guide Capture", "feature_types"),
            ("Multiplexing Capture", "feature_types"),
            ("spike-in", "feature_biotype"),
        )
        for store in ("h5ad", "zarr")
    ),
)
