import os
import stat

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest

from canal.annotation.output import check_target, write_copy, write_table, write_zarr_copy
from canal.core.digests import file_digest
from canal.core.errors import DataError
from canal.io.writer import DiskSpace
from tests.support.cells import make_adata, write_adata
from tests.support.layouts import RAW, SCALED, write_07, write_pre_07

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
    assert set(after.uns) == {*before.uns, "canal_cell_type_colors"}
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


EVERYTHING = COLUMNS.assign(
    canal_low_quality=False,
    cell_type_ontology_term_id=pd.Categorical(["CL:0000236", "unknown", "CL:0000236"]),
    canal_vote=pd.Categorical(["B", "B", "B"]),
    canal_vote_share=np.float32(0.75),
    canal_p_B=np.float32(0.5),
    canal_p_NK=np.float32(0.5),
)


@pytest.mark.parametrize("form", ["h5ad", "zarr"])
def test_what_an_earlier_labelling_alone_wrote_is_left_out(tmp_path, form):
    write = write_copy if form == "h5ad" else write_zarr_copy
    adata = anndata.read_h5ad(write_today(tmp_path / "in.h5ad"))
    adata.obs["canal_group"] = [1, 2, 3]  # of a lesson, not of a labelling
    source, one, two = (tmp_path / f"{name}.{form}" for name in ("in", "one", "two"))
    adata.write_h5ad(source) if form == "h5ad" else adata.write_zarr(source)
    read = anndata.read_h5ad if form == "h5ad" else anndata.read_zarr
    assert write(source, one, EVERYTHING, "{}") == []
    assert "canal_probabilities" in read(one).obsm
    gone = write(one, two, COLUMNS.assign(canal_low_quality=False), "{}")
    assert sorted(gone) == sorted(
        ["canal_vote", "canal_vote_share", "cell_type_ontology_term_id", "obsm canal_probabilities"]
    )
    after = read(two)
    assert list(after.obs) == [*adata.obs, *COLUMNS, "canal_low_quality"]
    assert list(after.obsm) == ["X_pca"]


def test_ids_of_the_authors_stay(tmp_path):
    adata = anndata.read_h5ad(write_today(tmp_path / "in.h5ad"))
    adata.obs["cell_type_ontology_term_id"] = "CL:0000236"
    adata.write_h5ad(tmp_path / "in.h5ad")
    write_copy(tmp_path / "in.h5ad", tmp_path / "one.h5ad", COLUMNS.assign(canal_low_quality=False), "{}")
    assert write_copy(tmp_path / "one.h5ad", tmp_path / "two.h5ad", COLUMNS, "{}") == ["canal_low_quality"]
    assert set(anndata.read_h5ad(tmp_path / "two.h5ad").obs["cell_type_ontology_term_id"]) == {"CL:0000236"}


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(
    ("umask", "given", "wanted"),
    [(0o022, 0o644, 0o644), (0o022, 0o600, 0o600), (0o077, 0o644, 0o600), (0o002, 0o664, 0o664)],
)
def test_a_copy_may_be_read_by_nobody_who_may_not_read_the_input(tmp_path, umask, given, wanted):
    source = write_today(tmp_path / "in.h5ad")
    source.chmod(given)
    before = os.umask(umask)
    try:
        write_copy(source, tmp_path / "out.h5ad", COLUMNS, "{}")
        write_table(tmp_path / "out.csv", COLUMNS, "{}", like=source)
    finally:
        os.umask(before)
    assert [mode_of(tmp_path / name) for name in ("out.h5ad", "out.csv")] == [wanted] * 2


def test_inputs_that_may_only_be_read_are_copied(tmp_path):
    """As a user who is not root, for whom rights count; the store is that of a read-only folder."""
    source = write_today(tmp_path / "in.h5ad")
    anndata.read_h5ad(source).write_zarr(tmp_path / "in.zarr")
    paths = [source, tmp_path / "in.zarr", *(tmp_path / "in.zarr").rglob("*")]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    write_copy(source, tmp_path / "out.h5ad", COLUMNS, "{}")
    write_zarr_copy(tmp_path / "in.zarr", tmp_path / "out.zarr", COLUMNS, "{}")
    copies = [tmp_path / "out.h5ad", tmp_path / "out.zarr", *(tmp_path / "out.zarr").rglob("*")]
    assert all(mode_of(path) & 0o200 for path in copies)
    assert anndata.read_zarr(tmp_path / "out.zarr").obs["canal_cell_type"].tolist() == [
        "B",
        "Unassigned",
        "B",
    ]


def test_room_is_taken_where_the_system_has_no_call_for_it(tmp_path, monkeypatch):
    """macOS has none."""
    monkeypatch.delattr("os.posix_fallocate", raising=False)
    path = tmp_path / "file"
    path.write_bytes(b"head")
    DiskSpace(path).take(3_000_000)
    assert path.stat().st_size == 4 + 3_000_000 + (1 << 20)
    assert path.read_bytes()[:6] == b"head\0\0"


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

    monkeypatch.setattr("canal.annotation.output._add_members", full)
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
