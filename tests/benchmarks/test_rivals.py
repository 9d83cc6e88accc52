"""A rival that does not finish is a result, and no rival is measured by other cells than canal."""

import json
import sys

import anndata
import annotate
import h5py
import numpy as np
import pandas as pd
import pytest
import rival
import rivals
from anndata import AnnData
from rivals import Limits, finished, right
from scipy.sparse import csr_matrix


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("print(1)", ""),
        ("import time; time.sleep(60)", "1 s were over"),
        ("x = b'0' * (1 << 31)", "1 GiB were not enough"),
        ("raise SystemExit('no such gene')", "exit code 1: no such gene"),
        ("import os; os._exit(3)", "exit code 3: it said nothing"),
    ],
)
def test_why_it_did_not_finish(code, why):
    assert finished([sys.executable, "-c", code], Limits(1 if "sleep" in code else 60, 1)) == why


def test_a_rival_that_fails_is_a_row(tmp_path):
    arena = rivals.Arena(tmp_path, np.array(["B"], dtype=object), [])
    found = rivals.compete("celltypist", sys.executable, arena, tmp_path / "query.h5ad", Limits())
    assert found["who"] == "celltypist"
    assert "exit code 1: ModuleNotFoundError" in found["did_not_finish"]
    assert "did not finish: exit code 1" in annotate.line({"cells": 1000, "form": "csr", **found})


def test_accuracy_and_its_mean_over_types():
    found = right(["B", "B", "B", "T"], np.array(["B", "B", "T", "T"], dtype=object))
    assert found == {"accuracy": 0.75, "balanced": 0.75}
    assert right(["B"] * 4, np.array(["B", "B", "B", "T"], dtype=object))["balanced"] == 0.5


def test_generated_cells_have_the_genes_that_were_learned(tmp_path):
    annotate.generate(tmp_path / "cells.h5ad", 7, 50, "csr", ["CD3E", "MS4A1"])
    with h5py.File(tmp_path / "cells.h5ad") as file:
        names = file["var/_index"].asstr()[:]
    assert names[:2].tolist() == ["CD3E", "MS4A1"]
    assert len(set(names)) == annotate.GENES


def test_a_rival_learns_and_names_known_cells_and_the_query_each_in_its_own_way(tmp_path, monkeypatch):
    files = [tmp_path / name for name in ("train.h5ad", "tests.h5ad", "query.h5ad", "answer.json")]
    for path, value in zip(files[:3], (1, 2, 3), strict=True):
        obs = pd.DataFrame({"cell_type": ["B", "T"]}, index=["a", "b"])
        AnnData(csr_matrix(np.full((2, 1), value, dtype=np.float32)), obs).write_h5ad(path)
    monkeypatch.setattr(sys, "argv", ["rival", *map(str, files)])

    def learn(lesson):
        base = lesson.X.max()
        return lambda cells: [f"{base:g} {value:g}" for value in cells.X.toarray().ravel()]

    def times(factor):
        def changed(cells):
            cells.X = cells.X * factor
            return cells

        return changed

    rival.answer("1.0", learn, of_logs=times(10), of_counts=times(100))
    found = json.loads(files[3].read_text())
    assert (found["version"], found["said"]) == ("1.0", ["10 20", "10 20"])
    labelled = anndata.read_h5ad(tmp_path / "rival.h5ad")
    assert labelled.obs["label"].tolist() == ["10 300", "10 300"]


def test_canal_knows_which_rivals_there_are():
    assert set(annotate.RIVALS) == set(rivals.PACKAGES)
