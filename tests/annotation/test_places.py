"""Labels of several models stand beside each other, with colours, an embedding and a record of their own."""

import json
from dataclasses import replace
from itertools import pairwise

import anndata
import numpy as np
import pandas as pd
import pytest

from canal.annotation.annotate import annotate_adata, annotate_h5ad
from canal.annotation.labelled import open_labelled, read_back
from canal.annotation.markers import ExplainOptions, explain
from canal.annotation.novel import GroupingOptions, group_novel
from canal.annotation.options import Callbacks, Options
from canal.annotation.output import Output
from canal.annotation.places import OF_NO_TYPE, PALETTE, Places, check_free_adata, type_colours
from canal.annotation.records import Log, genuine, parse_record
from canal.annotation.sheet import cells_file, read_sheet, write_sheet
from canal.core.digests import canonical_json
from canal.core.errors import DataError
from tests.support.formats import write_csr, write_loom, write_zarr3
from tests.support.models import make_combined, make_expression
from tests.support.sums import make_exact

EVERYTHING = Options(probabilities=True, latent=True, key_added="atlas", vote="batch")


def read(path):
    return anndata.read_zarr(path) if path.suffix == ".zarr" else anndata.read_h5ad(path)


def write_into(adata, annotator, options):
    table = annotate_adata(annotator, adata, options)
    Places.of(table, canonical_json(table.attrs["canal"])).write_into(adata)


@pytest.mark.parametrize("write", [write_csr, write_zarr3])
def test_labels_under_another_key_leave_the_first_alone(annotator, adata, tmp_path, write):
    source = write(adata, tmp_path)
    one, two, three = (tmp_path / f"{name}{source.suffix}" for name in ("first", "second", "third"))
    annotate_h5ad(annotator, source, one)
    annotate_h5ad(annotator, one, two, EVERYTHING)
    first, both = read(one), read(two)
    own = [name for name in first.obs if name.startswith("canal_")]
    added = [name for name in both.obs if name not in first.obs]
    assert added == [*(name.replace("canal_", "atlas_") for name in own), "atlas_vote", "atlas_vote_share"]
    pd.testing.assert_frame_equal(both.obs[list(first.obs)], first.obs)
    assert both.uns["canal"] == first.uns["canal"]
    assert json.loads(both.uns["atlas"])["options"]["key_added"] == "atlas"
    assert both.obsm["X_atlas"].shape == (adata.n_obs, 128)
    assert both.obsm["X_atlas"].dtype == both.obsm["atlas_probabilities"].dtype == np.float32
    told = []
    annotate_h5ad(annotator, two, three, Options(key_added="atlas"), Callbacks(told.append))
    assert told[-1].endswith("atlas_vote, atlas_vote_share, obsm atlas_probabilities, obsm X_atlas")
    left = [*first.obs, *(name.replace("canal_", "atlas_") for name in own)]
    assert sorted(read(three).obs) == sorted(left)
    assert not [name for name in read(three).uns if "vote" in name]


def test_an_adata_is_written_as_a_file_is(annotator, adata, tmp_path):
    annotate_h5ad(annotator, write_csr(adata, tmp_path), tmp_path / "out.h5ad", EVERYTHING)
    cells, wanted = adata.copy(), read(tmp_path / "out.h5ad")
    write_into(cells, annotator, EVERYTHING)
    assert list(cells.obs) == list(wanted.obs)
    assert sorted(cells.obsm) == sorted(wanted.obsm)
    assert sorted(cells.uns) == sorted(wanted.uns)
    assert cells.uns["atlas_cell_type_colors"] == wanted.uns["atlas_cell_type_colors"].tolist()
    np.testing.assert_allclose(cells.obsm["X_atlas"], wanted.obsm["X_atlas"], atol=1e-5)
    with pytest.warns(UserWarning, match="obsm atlas_probabilities, obsm X_atlas"):
        write_into(cells, annotator, Options(key_added="atlas"))
    assert not len(cells.obsm)


def test_what_canal_did_not_write_is_never_replaced(annotator, adata, tmp_path):
    cells = adata.copy()
    cells.obs["author_cell_type"] = "B"
    cells.uns["umap"], cells.obsm["X_umap"] = {"a": 1}, np.zeros((cells.n_obs, 2))
    for path in (write_csr(cells, tmp_path), write_zarr3(cells, tmp_path)):
        for key, taken in (("author", "obs author_cell_type"), ("umap", "obsm X_umap', 'uns umap")):
            with pytest.raises(DataError, match=f"would replace '{taken}'.*choose another --key-added"):
                annotate_h5ad(annotator, path, tmp_path / f"out{path.suffix}", Options(key_added=key))
            with pytest.raises(DataError, match="would replace"):
                check_free_adata(cells, key)
    cells.obs["batch"] = "a"
    loom = write_loom(cells, tmp_path)
    annotate_h5ad(annotator, loom, tmp_path / "loom.h5ad", Options(key_added="other"))
    assert "other_cell_type" in read(tmp_path / "loom.h5ad").obs
    assert not (tmp_path / "out.h5ad").exists()


@pytest.mark.parametrize(
    "key", ["", "a b", "1a", "a/b", "\u00e4", "canal_p", "a_p_b", "x_colors", "a" * 51, None, 3]
)
def test_keys_that_are_no_plain_names_are_refused(key):
    with pytest.raises(DataError, match="--key-added: expected a plain name"):
        Options(key_added=key)


def test_the_embedding_is_asked_for_in_the_same_pass(annotator):
    cells = make_expression(9)
    for model in (annotator, make_combined(), make_exact()):
        answer, latent = model.predict_represented(cells)
        assert answer.labels == model.predict(cells).labels
        np.testing.assert_allclose(latent, model.represented(cells)[0], rtol=1e-5, atol=1e-6)
        assert latent.dtype == np.float32


def test_a_table_holds_no_embedding(annotator, adata, tmp_path):
    source = write_csr(adata, tmp_path)
    for name in ("out.csv", "out.parquet"):
        with pytest.raises(DataError, match=r"a table of labels holds no embedding: leave --latent out"):
            annotate_h5ad(annotator, source, tmp_path / name, Options(latent=True))
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


def test_the_embedding_survives_a_break(annotator, adata, tmp_path):
    source = write_csr(adata, tmp_path)
    annotate_h5ad(
        annotator, source, tmp_path / "one.h5ad", Options(latent=True, key_added="a", chunk_cells=5)
    )

    def stop(done, total):
        if done >= 10:
            raise KeyboardInterrupt

    broken = Options(latent=True, key_added="a", chunk_cells=5)
    with pytest.raises(KeyboardInterrupt):
        annotate_h5ad(annotator, source, tmp_path / "two.h5ad", broken, Callbacks(on_cells=stop))
    for other in (Options(resume=True), Options(latent=True, resume=True, max_novelty=0.5, key_added="a")):
        with pytest.raises(DataError, match="another input, model or options"):
            annotate_h5ad(annotator, source, tmp_path / "two.h5ad", other)
    goes_on = Options(latent=True, key_added="a", resume=True)
    annotate_h5ad(annotator, source, tmp_path / "two.h5ad", goes_on)
    one, two = (read(tmp_path / f"{name}.h5ad") for name in ("one", "two"))
    np.testing.assert_allclose(one.obsm["X_a"], two.obsm["X_a"], atol=1e-5)
    assert list(two.obs) == list(one.obs)


# Colours.


def test_a_type_has_one_colour_whatever_the_file_holds(annotator, adata, tmp_path):
    wanted = type_colours(annotator.labels)
    for name, cells in (("all", adata), ("few", adata[:3].copy())):
        folder = tmp_path / name
        folder.mkdir()
        annotate_h5ad(annotator, write_csr(cells, folder), folder / "out.h5ad", Options(vote="batch"))
        found = read(folder / "out.h5ad")
        for column in ("canal_cell_type", "canal_best_type", "canal_vote"):
            categories = found.obs[column].cat.categories
            assert found.uns[f"{column}_colors"].tolist() == [wanted[one] for one in categories]


def test_types_learned_later_never_change_the_colours_of_earlier_ones():
    names = [f"type {i}" for i in range(80)]
    for shorter, longer in pairwise([names[:1], names[:13], names[:64], names]):
        before, after = type_colours(shorter), type_colours(longer)
        assert {name: after[name] for name in before} == before
    first = type_colours(names[:64])
    assert len(set(first.values())) == 64 + len(OF_NO_TYPE)
    assert type_colours(["B", "Unassigned"])["Unassigned"] == "#bdbdbd"
    assert type_colours(["B"])["B"] == type_colours(["B", "T"])["B"]


def test_colours_are_distinct_and_none_is_grey():
    assert len(set(PALETTE)) == len(PALETTE) == 64
    rgb = [[int(one[i : i + 2], 16) for i in (1, 3, 5)] for one in PALETTE]
    assert min(max(one) - min(one) for one in rgb) > 24


# Reading back.


@pytest.fixture
def twice(annotator, adata, tmp_path):
    annotate_h5ad(annotator, write_csr(adata, tmp_path), tmp_path / "one.h5ad", Options(key_added="one"))
    annotate_h5ad(annotator, tmp_path / "one.h5ad", tmp_path / "two.h5ad", Options(key_added="two"))
    return tmp_path


def test_the_only_labels_of_a_file_are_found_by_themselves(twice):
    with open_labelled(twice / "one.h5ad") as labelled:
        assert labelled.key == "one"
        assert len(labelled.types) == len(labelled.novel) == 21
    found = read_back(twice / "one.h5ad")
    assert (found.mismatch(), found.others) == ("", ())


def test_novel_cells_are_grouped_and_explained_under_any_key(twice, annotator):
    options = GroupingOptions(min_cells=1, key="two")
    with open_labelled(twice / "two.h5ad", options.key) as labelled:
        novel = group_novel(annotator, labelled, options, lambda message: None)
        write_sheet(twice / "sheet.csv", labelled, "0" * 64, novel, options)
        explained = explain(annotator, labelled, ExplainOptions(cells=3, top=2), lambda message: None)
    assert novel.n_novel == labelled.novel.sum() > 0
    assert {one.cell_type for one in explained} == set(labelled.types) - {"Unassigned"}
    about = json.loads(cells_file(twice / "sheet.csv").read_text())
    assert about["key_added"] == "two"
    sheet = (twice / "sheet.csv").read_text().splitlines()
    filled = sheet[1].rsplit(",", 2)
    (twice / "sheet.csv").write_text("\n".join([sheet[0], f"{filled[0]},new type,{filled[2]}", *sheet[2:]]))
    assert read_sheet(twice / "sheet.csv").about["key_added"] == "two"


def test_several_labels_are_chosen_among(annotator, twice):
    with pytest.raises(DataError, match="under 'one', 'two': choose one with --key-added"):
        read_back(twice / "two.h5ad")
    with pytest.raises(DataError, match="no annotation record.*there are records under 'one', 'two'"):
        read_back(twice / "two.h5ad", key="canal")
    found = read_back(twice / "two.h5ad", key="two")
    assert (found.record["options"]["key_added"], found.others) == ("two", ("one",))
    annotate_h5ad(annotator, twice / "two.h5ad", twice / "three.h5ad")
    assert read_back(twice / "three.h5ad").others == ("one", "two")


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_a_table_has_the_columns_of_its_key(annotator, adata, tmp_path, suffix):
    records = []
    target = tmp_path / f"out{suffix}"
    callbacks = Callbacks(on_record=records.append)
    annotate_h5ad(annotator, write_csr(adata, tmp_path), target, Options(key_added="one"), callbacks)
    log = Log((parse_record(records[0]),), 0)
    assert read_back(target, log).mismatch() == ""
    assert read_back(target, log, "one").record["n_cells"] == 21
    with pytest.raises(DataError, match="expected labels under 'canal', found some under 'one'"):
        read_back(target, log, "canal")


def test_a_record_that_was_moved_is_refused(twice):
    cells = read(twice / "one.h5ad")
    cells.uns["moved"] = cells.uns.pop("one")
    cells.write_h5ad(twice / "moved.h5ad")
    with pytest.raises(DataError, match="no annotation record"):
        read_back(twice / "moved.h5ad")
    with pytest.raises(DataError, match=r"uns\['moved'\] is the record of labels under 'one'"):
        read_back(twice / "moved.h5ad", key="moved")


# Limits.


def test_limits_add_to_the_rule_of_the_version(annotator, adata, tmp_path):
    plain = annotate_adata(annotator, adata)
    novelty, confidence = (float(plain[f"canal_{name}"].median()) for name in ("novelty", "confidence"))
    options = Options(max_novelty=novelty, min_confidence=confidence, vote="batch")
    summary = annotate_h5ad(annotator, write_csr(adata, tmp_path), tmp_path / "out.h5ad", options)
    found = read(tmp_path / "out.h5ad").obs
    beyond = plain["canal_novelty"] > np.float32(novelty)
    beyond |= plain["canal_confidence"] < np.float32(confidence)
    wanted = plain["canal_cell_type"].astype(str).where(~beyond, "Unassigned")
    assert found["canal_cell_type"].astype(str).tolist() == wanted.tolist()
    same = [name for name in plain if name != "canal_cell_type"]
    pd.testing.assert_frame_equal(found[same].astype(str), plain[same].astype(str), check_index_type=False)
    assert summary.unassigned == sum(summary.unassigned_by.values()) == (wanted == "Unassigned").sum()
    assert summary.unassigned_by["is_novel"] == plain["canal_is_novel"].sum()
    back = read_back(tmp_path / "out.h5ad")
    assert (back.mismatch(), genuine(back.record)) == ("", True)
    assert back.record["options"]["max_novelty"] == novelty
    assert back.record["unassigned_by"] == dict(summary.unassigned_by)


def test_limits_that_cut_nothing_change_nothing(annotator, adata):
    plain, cut = annotate_adata(annotator, adata), annotate_adata(annotator, adata, Options(max_novelty=1))
    assert cut["canal_cell_type"].tolist() == plain["canal_cell_type"].tolist()
    assert "unassigned_by" not in plain.attrs["canal"]
    assert cut.attrs["canal"]["unassigned_by"]["max_novelty"] == 0


@pytest.mark.parametrize("name", ["max_novelty", "min_confidence", "min_share"])
@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan"), "0.5", True])
def test_limits_out_of_range_are_refused(name, value):
    with pytest.raises(DataError, match=rf"--{name.replace('_', '-')}: expected a number from 0 to 1, found"):
        Options(vote="batch", **{name: value})


def test_novelty_is_not_limited_where_none_is_scored(annotator, adata):
    with pytest.raises(DataError, match="--max-novelty: this version scores no novelty"):
        annotate_adata(replace(annotator, novelty=None), adata, Options(max_novelty=0.5))


def test_a_target_that_is_a_table_needs_no_free_names(annotator, adata, tmp_path):
    cells = adata.copy()
    cells.obs["author_cell_type"] = "B"
    source = write_csr(cells, tmp_path)
    output = Output.find(source, tmp_path / "out.csv", only_obs=False)
    annotate_h5ad(annotator, source, output, Options(key_added="author"))
    assert "author_cell_type" in pd.read_csv(tmp_path / "out.csv")
