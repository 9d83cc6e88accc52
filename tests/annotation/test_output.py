import anndata
import h5py
import numpy as np
import pandas as pd
import pytest

from canal.annotation.output import check_target, write_copy
from canal.digests import file_digest
from canal.errors import DataError
from tests.data.layouts import RAW, SCALED, write_07, write_pre_07
from tests.make import make_adata, write_adata

COLUMNS = pd.DataFrame(
    {
        "canal_cell_type": pd.Categorical(["B", "Unassigned", "B"]),
        "canal_confidence": np.array([0.5, 0.25, 1.0], dtype=np.float32),
        "canal_is_novel": [False, True, False],
    }
)


def write_today(path):
    adata = make_adata({"B": 2, "NK": 1}, n_genes=4)
    adata.obs["depth"] = [1.5, 2.5, 3.5]
    adata.obs["label"] = pd.Categorical(["B", None, "NK"])
    adata.uns["note"] = {"nested": np.arange(3)}
    adata.obsm["X_pca"] = np.eye(3)
    return write_adata(adata, path)


def write_07_with_versions(path):
    """As anndata 0.7 wrote it: today's anndata reads no group without a version."""
    with h5py.File(write_07(path), "r+") as file:
        for key in ("obs", "var", "raw/var", "raw/X"):
            file[key].attrs["encoding-version"] = "0.1.0"
    return path


@pytest.mark.parametrize("write", [write_today, write_07_with_versions, write_pre_07])
def test_anndata_reads_every_layout_with_its_new_columns(write, tmp_path):
    source, target = write(tmp_path / "in.h5ad"), tmp_path / "out.h5ad"
    before, digest = anndata.read_h5ad(source), file_digest(source)
    write_copy(source, target, COLUMNS, "{}")
    after = anndata.read_h5ad(target)
    assert list(after.obs) == [*before.obs, *COLUMNS]
    assert after.obs["canal_cell_type"].tolist() == ["B", "Unassigned", "B"]
    assert after.obs["canal_is_novel"].tolist() == [False, True, False]
    assert after.obs["canal_confidence"].dtype == np.float32
    for name in before.obs:
        pd.testing.assert_series_equal(after.obs[name], before.obs[name], check_index_type=False)
    pd.testing.assert_frame_equal(after.var, before.var)
    np.testing.assert_array_equal(_dense(after.X), _dense(before.X))
    assert after.uns.pop("canal") == "{}"
    assert set(after.uns) == set(before.uns)
    assert file_digest(source) == digest


def test_raw_survives_in_the_oldest_layout(tmp_path):
    write_copy(write_pre_07(tmp_path / "in.h5ad"), tmp_path / "out.h5ad", COLUMNS, "{}")
    adata = anndata.read_h5ad(tmp_path / "out.h5ad")
    np.testing.assert_array_equal(adata.raw.X.toarray(), RAW.toarray())
    np.testing.assert_array_equal(adata.X, SCALED)
    assert adata.obs["label"].astype(object).fillna("").tolist() == ["B", "", "NK"]
    assert adata.obs["label"].dtype == "category"
    assert "label_categories" not in adata.uns


def test_a_second_labelling_replaces_the_first(tmp_path):
    write_copy(write_today(tmp_path / "in.h5ad"), tmp_path / "one.h5ad", COLUMNS, '{"n": 1}')
    other = COLUMNS.assign(canal_cell_type=pd.Categorical(["NK", "NK", "NK"]))
    write_copy(tmp_path / "one.h5ad", tmp_path / "two.h5ad", other, '{"n": 2}')
    adata = anndata.read_h5ad(tmp_path / "two.h5ad")
    assert adata.obs["canal_cell_type"].tolist() == ["NK"] * 3
    assert list(adata.obs).count("canal_cell_type") == 1
    assert adata.uns["canal"] == '{"n": 2}'


def test_a_file_without_uns_gets_its_note(tmp_path):
    source = write_07_with_versions(tmp_path / "in.h5ad")
    with h5py.File(source) as file:
        assert "uns" not in file
    write_copy(source, tmp_path / "out.h5ad", COLUMNS, "{}")
    assert anndata.read_h5ad(tmp_path / "out.h5ad").uns["canal"] == "{}"


def test_what_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    source = write_today(tmp_path / "in.h5ad")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("canal.annotation.output._add_note", full)
    (tmp_path / "out.h5ad").write_text("old")
    with pytest.raises(DataError, match="No space left"):
        write_copy(source, tmp_path / "out.h5ad", COLUMNS, "{}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.h5ad", "out.h5ad"]
    assert (tmp_path / "out.h5ad").read_text() == "old"


def test_targets_that_may_not_be_written(tmp_path):
    source, other = tmp_path / "in.h5ad", tmp_path / "out.h5ad"
    source.write_text("in")
    check_target(source, other, overwrite=False)
    other.write_text("out")
    with pytest.raises(DataError, match="--overwrite"):
        check_target(source, other, overwrite=False)
    check_target(source, other, overwrite=True)
    link = tmp_path / "link.h5ad"
    link.symlink_to(source)
    for same in (source, link, tmp_path / "." / "in.h5ad"):
        with pytest.raises(DataError, match="the input itself"):
            check_target(source, same, overwrite=True)
    with pytest.raises(DataError, match="is a folder"):
        check_target(source, tmp_path, overwrite=True)


def _dense(matrix):
    return matrix.toarray() if hasattr(matrix, "toarray") else matrix
