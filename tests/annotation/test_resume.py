"""An interrupted labelling goes on where it stopped, and only if nothing else changed."""

import os
import sys
from dataclasses import replace

import anndata
import numpy as np
import pandas as pd
import pytest

from canal.annotation import resuming as parts
from canal.annotation.annotate import annotate_h5ad
from canal.annotation.options import Callbacks, Options
from canal.annotation.resuming import Parts, parts_folder
from canal.core.errors import DataError
from tests.support.cells import make_adata, write_adata
from tests.support.formats import write_csc, write_csr, write_mtx


class Counting:
    """An annotator that counts the cells it is asked for."""

    def __init__(self, annotator):
        self._annotator, self.cells = annotator, 0

    def __getattr__(self, name):
        return getattr(self._annotator, name)

    def without(self, missing):
        return self

    def predict(self, expression):
        self.cells += len(expression)
        return self._annotator.predict(expression)


@pytest.fixture(params=[write_csr, write_csc, write_mtx])
def source(request, tmp_path):
    return request.param(make_adata({"B": 30, "NK": 25}, n_genes=20), tmp_path)


def interrupted(annotator, source, target, cells=20):
    def stop(done, total):
        if done >= cells:
            raise KeyboardInterrupt

    said = []
    with pytest.raises(KeyboardInterrupt) as caught:
        annotate_h5ad(annotator, source, target, Options(chunk_cells=5), Callbacks(said.append, stop))
    return said + getattr(caught.value, "__notes__", [])


def test_an_interrupted_run_goes_on(annotator, source, tmp_path):
    one, two = tmp_path / "one.h5ad", tmp_path / "two.h5ad"
    annotate_h5ad(annotator, source, one)
    said = interrupted(annotator, source, two)
    assert said == ["--resume continues after the first 20 cells"]
    assert not two.exists()
    counting = Counting(annotator)
    annotate_h5ad(counting, source, two, Options(resume=True), Callbacks(said.append))
    assert counting.cells == 35
    assert said[1] == "resuming after the first 20 cells"
    obs = [anndata.read_h5ad(path).obs for path in (one, two)]
    pd.testing.assert_frame_equal(obs[0], obs[1], rtol=1e-5)
    assert not parts_folder(two).exists()


def test_without_resume_it_begins_anew(annotator, source, tmp_path):
    interrupted(annotator, source, tmp_path / "out.h5ad")
    counting = Counting(annotator)
    annotate_h5ad(counting, source, tmp_path / "out.h5ad")
    assert counting.cells == 55
    assert not parts_folder(tmp_path / "out.h5ad").exists()


def test_a_killed_run_keeps_what_was_saved(annotator, source, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "_EVERY", 0.0)
    monkeypatch.setattr(parts.Parts, "__exit__", lambda *_: None)
    interrupted(annotator, source, tmp_path / "out.h5ad", cells=35)
    monkeypatch.undo()
    counting = Counting(annotator)
    annotate_h5ad(counting, source, tmp_path / "out.h5ad", Options(resume=True))
    assert counting.cells == 20


def test_answers_of_another_job_are_not_used(annotator, source, tmp_path):
    target = tmp_path / "out.h5ad"
    interrupted(annotator, source, target)
    for other, options in (
        (annotator, Options(resume=True, dtype="bfloat16")),
        (annotator, Options(resume=True, model_name={"version": 2})),
        (replace(annotator, novelty=None), Options(resume=True)),
    ):
        with pytest.raises(DataError, match="another input, model or options"):
            annotate_h5ad(other, source, target, options)
    if source.is_file():
        os.utime(source, ns=(1, 1))
        with pytest.raises(DataError, match="another input"):
            annotate_h5ad(annotator, source, target, Options(resume=True))


def test_with_nothing_to_resume_it_just_begins(annotator, source, tmp_path):
    assert annotate_h5ad(annotator, source, tmp_path / "out.h5ad", Options(resume=True)).n_cells == 55


def test_a_few_cells_are_reported_before_a_whole_block(annotator, tmp_path):
    source, told = write_adata(make_adata({"B": 130}, n_genes=20), tmp_path / "in.h5ad"), []
    for name, chunk in (("one", 2000), ("two", 50)):
        on_cells = Callbacks(on_cells=lambda done, total: told.append(done))
        annotate_h5ad(annotator, source, tmp_path / f"{name}.h5ad", Options(chunk_cells=chunk), on_cells)
    assert told == [0, 100, 130, 0, 50, 100, 130]
    one, two = (anndata.read_h5ad(tmp_path / f"{name}.h5ad").obs for name in ("one", "two"))
    pd.testing.assert_frame_equal(one, two)


def test_what_is_kept_needs_no_extra_and_comes_back_as_it_was(tmp_path, monkeypatch):
    """Types with a slash, of which HDF5 makes groups, too; Parquet would need a package beside the core."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setattr(parts, "_EVERY", 0.0)
    frame = pd.DataFrame(
        {
            "canal_cell_type": pd.Categorical(["CD4/CD8 T", None, "B"], ["B", "CD4/CD8 T", "NK"]),
            "canal_confidence": np.float32([0.1, np.nan, 1]),
            "canal_is_novel": [True, False, True],
            "canal_p_CD4/CD8 T": np.float32([0.5, 0.25, 0]),
        }
    )
    said = []
    with pytest.raises(KeyboardInterrupt), Parts(tmp_path / "kept", dict, False, said.append) as kept:
        kept.add(frame.iloc[:2].reset_index(drop=True))
        kept.add(frame.iloc[2:].reset_index(drop=True))
        raise KeyboardInterrupt
    again = Parts(tmp_path / "kept", dict, True, said.append)
    again.__enter__()
    assert again.done == 3
    pd.testing.assert_frame_equal(pd.concat(again.frames, ignore_index=True), frame)
