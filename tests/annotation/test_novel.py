"""Novel cells in groups, the sheet in which a person names them, and the file that comes of it."""

import csv
import json

import anndata
import h5py
import numpy as np
import pytest
from scipy.sparse import csc_matrix

from canal.annotation.annotate import annotate_h5ad
from canal.annotation.clusters import ComputeOptions
from canal.annotation.labelled import open_labelled
from canal.annotation.naming import Naming
from canal.annotation.novel import GroupingOptions, group_novel
from canal.annotation.options import Options
from canal.annotation.sheet import cells_file, check_sheet, read_sheet, write_sheet, write_stage_file
from canal.core.digests import file_digest
from canal.core.errors import DataError
from tests.support.cells import gene_names, make_adata, write_adata
from tests.support.formats import write_10x_v3

OPTIONS = GroupingOptions(min_cells=5, resolution=0.5)


def quiet(said):
    """Say nothing."""


@pytest.fixture(scope="module")
def given():
    """Counts in a layer, genes by Ensembl ids with symbols beside, three donors."""
    cells = make_adata({"B": 90, "NK": 90}, n_genes=60, batches=("d1", "d2", "d3"))
    cells.var["feature_name"] = [*gene_names(20), *(f"OTHER{i}" for i in range(40))]
    cells.var_names = [f"ENSG{i:011d}" for i in range(60)]
    cells.layers["counts"] = cells.X.copy()
    cells.X = np.zeros(cells.shape, dtype=np.float32)
    return cells


@pytest.fixture(scope="module")
def file(annotator, given, tmp_path_factory):
    """The file that annotation wrote; a test that changes it works on a copy."""
    folder = tmp_path_factory.mktemp("labelled")
    source = write_adata(given, folder / "in.h5ad")
    options = Options(layer="counts", model_name={"model": "m", "version": 2, "key": "k" * 64})
    annotate_h5ad(annotator, source, folder / "out.h5ad", options)
    return folder / "out.h5ad"


def grouped(annotator, path, wishes=OPTIONS):
    with open_labelled(path) as labelled:
        return group_novel(annotator, labelled, wishes, quiet)


@pytest.fixture(scope="module")
def novel(annotator, file):
    return grouped(annotator, file)


@pytest.fixture
def sheet(annotator, file, novel, tmp_path):
    """A sheet beside nothing else."""
    with open_labelled(file) as labelled:
        write_sheet(tmp_path / "sheet.csv", labelled, file_digest(file), novel, OPTIONS)
    return tmp_path / "sheet.csv"


def fill(sheet, **given):
    """Write types into a sheet as a person does: by group, ``g1="Mast"``."""
    with sheet.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    for row in rows:
        row["cell_type"] = given.get(f"g{row['group']}", "")
    with sheet.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_every_novel_cell_is_in_one_group_or_left_out(file, novel):
    obs = anndata.read_h5ad(file).obs
    rows = [row for group in novel.groups for row in group.rows]
    assert len(rows) == len(set(rows)) == novel.n_novel - novel.left_out
    assert obs["canal_is_novel"].to_numpy()[rows].all()
    assert novel.n_novel == obs["canal_is_novel"].sum()
    sizes = [len(group.rows) for group in novel.groups]
    assert sizes == sorted(sizes, reverse=True)
    assert min(sizes) >= OPTIONS.min_cells
    assert len(sizes) > 1


def test_a_group_tells_genes_of_the_whole_file_nearest_types_and_batches(file, novel, annotator):
    obs = anndata.read_h5ad(file).obs
    for group in novel.groups:
        assert group.batches == obs["batch"].iloc[list(group.rows)].value_counts().to_dict()
        assert group.purity == max(group.batches.values()) / len(group.rows)
        assert set(group.nearest) <= set(annotator.labels)
        assert sum(group.nearest.values()) <= 1.001
        scores = [gene.score for gene in group.genes]
        assert scores == sorted(scores, reverse=True)
    assert any(gene.gene.startswith("OTHER") for group in novel.groups for gene in group.genes)
    assert novel.batch == "batch"


def test_neither_blocks_nor_layout_change_the_groups(annotator, given, novel, tmp_path):
    turned = given.copy()
    turned.layers["counts"] = csc_matrix(turned.layers["counts"])
    source = write_adata(turned, tmp_path / "in.h5ad")
    annotate_h5ad(annotator, source, tmp_path / "out.h5ad", Options(layer="counts"))
    again = grouped(
        annotator,
        tmp_path / "out.h5ad",
        GroupingOptions(min_cells=5, resolution=0.5, compute=ComputeOptions(17)),
    )
    assert [group.rows for group in again.groups] == [group.rows for group in novel.groups]
    assert [[gene.gene for gene in group.genes] for group in again.groups] == [
        [gene.gene for gene in group.genes] for group in novel.groups
    ]


def test_a_zarr_store_is_grouped_likewise(annotator, given, novel, tmp_path):
    given.write_zarr(tmp_path / "in.zarr")
    annotate_h5ad(annotator, tmp_path / "in.zarr", tmp_path / "out.zarr", Options(layer="counts"))
    found = grouped(annotator, tmp_path / "out.zarr")
    assert [group.rows for group in found.groups] == [group.rows for group in novel.groups]


@pytest.mark.parametrize("resolution", [float("nan"), float("inf"), -1.0])
def test_a_resolution_that_is_no_number_is_refused(annotator, file, resolution):
    with pytest.raises(DataError, match="--resolution must be a number of at least 0"):
        grouped(annotator, file, GroupingOptions(resolution=resolution))


def test_what_is_no_gene_counts_nowhere_in_a_file_that_came_from_10x(annotator, given, novel, tmp_path):
    """Antibodies of CITE-seq have names of genes, and counts far above theirs."""
    cells = anndata.AnnData(given.layers["counts"], obs=given.obs[[]])
    cells.var_names = given.var["feature_name"].tolist()
    extra = cells[:, :5].copy()
    extra.X = extra.X * 50
    source = write_10x_v3(anndata.concat([cells, extra], axis=1), tmp_path)
    with h5py.File(source, "r+") as stored:
        del stored["matrix/features/feature_type"]
        kinds = ["Gene Expression"] * 60 + ["Antibody Capture"] * 5
        stored["matrix/features/feature_type"] = np.array(kinds, dtype="S")
    options = Options(origin={"input": {"name": source.name, "sha256": "0" * 64}})
    annotate_h5ad(annotator, source, tmp_path / "out.h5ad", options)
    found = grouped(annotator, tmp_path / "out.h5ad")
    assert [group.rows for group in found.groups] == [group.rows for group in novel.groups]


def test_few_cells_are_one_group(annotator, file, novel):
    assert [len(group.rows) for group in grouped(annotator, file, GroupingOptions(min_cells=50)).groups] == [
        novel.n_novel
    ]


def test_a_group_from_one_batch_alone_is_warned_of(annotator, given, file, novel, tmp_path):
    cells = anndata.read_h5ad(file)
    cells.obs["plate"] = "p1"
    cells.obs.loc[cells.obs_names[list(novel.groups[0].rows)], "plate"] = "p2"
    cells.write_h5ad(tmp_path / "plates.h5ad")
    found = grouped(
        annotator, tmp_path / "plates.h5ad", GroupingOptions(batch="plate", min_cells=5, resolution=0.5)
    )
    assert found.groups[0].purity == 1.0
    assert any("one batch alone (plate)" in warning for warning in found.warnings)
    with pytest.raises(DataError, match=r"no column 'well' \(--batch\)"):
        grouped(annotator, tmp_path / "plates.h5ad", GroupingOptions(batch="well"))


def change_record(cells):
    record = json.loads(cells.uns["canal"])
    record["model"]["version"] = 3
    cells.uns["canal"] = json.dumps(record)


def relabel(cells):
    cells.obs["canal_cell_type"] = "B"


BROKEN = {
    "no annotation record": lambda cells: cells.uns.pop("canal"),
    "its annotation record was edited": change_record,
    "no column canal_cell_type": lambda cells: cells.obs.pop("canal_cell_type"),
    "the number of cells differs for": relabel,
}


@pytest.mark.parametrize("why", BROKEN)
def test_a_file_that_is_not_as_it_was_labelled_is_refused(annotator, file, tmp_path, why):
    cells = anndata.read_h5ad(file)
    BROKEN[why](cells)
    cells.write_h5ad(tmp_path / "broken.h5ad")
    with pytest.raises(DataError, match=why):
        grouped(annotator, tmp_path / "broken.h5ad")


def test_cells_left_out_values_changed_and_tables_are_refused(annotator, file, tmp_path):
    cells = anndata.read_h5ad(file)
    cells[:100].write_h5ad(tmp_path / "part.h5ad")
    with pytest.raises(DataError, match="the file holds 100 cells, 180 were labelled"):
        grouped(annotator, tmp_path / "part.h5ad")
    cells.layers["counts"] = cells.layers["counts"][:, ::-1]
    cells.write_h5ad(tmp_path / "turned.h5ad")
    with pytest.raises(DataError, match="genes or values were changed"):
        grouped(annotator, tmp_path / "turned.h5ad")
    with pytest.raises(DataError, match="a table of labels holds no cells"):
        grouped(annotator, tmp_path / "labels.csv")
    table = tmp_path / "genes.tsv"
    table.write_text("old\tnew\n")
    with pytest.raises(DataError, match="was labelled with no --aliases, found genes.tsv"):
        grouped(annotator, file, GroupingOptions(naming=Naming(aliases=table)))


def test_the_sheet_has_a_line_a_group_to_be_filled_in(sheet, novel, file):
    with sheet.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [int(row["n_cells"]) for row in rows] == [len(group.rows) for group in novel.groups]
    assert all(row["cell_type"] == "" and row["top_genes"] and row["nearest_types"] for row in rows)
    about = json.loads(cells_file(sheet).read_text())
    assert about["file"]["sha256"] == file_digest(file)
    assert about["model"]["key"] == "k" * 64
    assert str(file.parent) not in cells_file(sheet).read_text().replace(about["file"]["path"], "")
    with pytest.raises(DataError, match="sheet.csv exists already"):
        check_sheet(sheet, overwrite=False)
    check_sheet(sheet, overwrite=True)
    with pytest.raises(DataError, match="is a CSV file"):
        check_sheet(sheet.with_suffix(".xlsx"), overwrite=False)


def test_a_filled_in_sheet_is_read_whatever_a_spreadsheet_made_of_it(sheet):
    fill(sheet, g1=" Mast ", g2="Mast")
    found = read_sheet(sheet)
    assert found.types == {1: "Mast", 2: "Mast"}
    rows = list(csv.reader(sheet.open(newline="")))
    with sheet.open("w", newline="", encoding="utf-8-sig") as stream:
        csv.writer(stream, delimiter=";").writerows([*rows, [""] * len(rows[0])])
    assert read_sheet(sheet).types == found.types


def edited(sheet, old, new):
    sheet.write_text(sheet.read_text().replace(old, new))


def test_a_sheet_that_does_not_hold_is_refused(sheet, tmp_path):
    with pytest.raises(DataError, match="none of its . groups was given a type"):
        read_sheet(sheet)
    fill(sheet, g1="Mast")
    whole, cells = sheet.read_text(), cells_file(sheet).read_text()
    for old, new, why in (
        ("cell_type", "type", "missing are cell_type"),
        ("\n1,", "\n99,", "no group '99'"),
        ("\n2,", "\n1,", "group 1 has two lines"),
    ):
        edited(sheet, old, new)
        with pytest.raises(DataError, match=why):
            read_sheet(sheet)
        sheet.write_text(whole)
    edited(cells_file(sheet), '"seed":0', '"seed":1')
    with pytest.raises(DataError, match="belongs to another sheet"):
        read_sheet(sheet)
    cells_file(sheet).write_text(cells[:-20])
    with pytest.raises(DataError, match="cannot be read"):
        read_sheet(sheet)
    cells_file(sheet).write_text("[]")
    with pytest.raises(DataError, match="was not written by `canal novel`"):
        read_sheet(sheet)
    cells_file(sheet).unlink()
    with pytest.raises(DataError, match="holds the cells of sheet.csv"):
        read_sheet(sheet)
    with pytest.raises(DataError, match=r"no such file; `canal novel LABELLED.h5ad -o other.csv` writes one"):
        read_sheet(tmp_path / "other.csv")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": "\\ud800"}', '{"a": NaN}'])
def test_cells_beside_a_sheet_that_are_no_document_are_refused(sheet, text):
    fill(sheet, g1="Mast")
    cells_file(sheet).write_text(text)
    with pytest.raises(DataError, match="cannot be read"):
        read_sheet(sheet)


def test_a_group_of_thousands_of_digits_is_none(sheet):
    fill(sheet, g1="Mast")
    sheet.write_text(sheet.read_text().replace("\n1,", "\n" + "9" * 5000 + ",", 1))
    with pytest.raises(DataError, match="there is no group '99999"):
        read_sheet(sheet)


def test_the_lesson_holds_the_named_cells_with_the_counts_that_were_labelled(
    annotator, given, file, novel, sheet, tmp_path
):
    fill(sheet, g2="Mast")
    filled = read_sheet(sheet)
    with open_labelled(file) as labelled:
        reading = labelled.reading(annotator, Naming())[0]
        lesson = write_stage_file(
            tmp_path / "lesson.h5ad", labelled, reading, filled, {"a": 1}, chunk_cells=7
        )
        write_stage_file(tmp_path / "again.h5ad", labelled, reading, filled, {"a": 1})
    rows = list(novel.groups[1].rows)
    cells = anndata.read_h5ad(tmp_path / "lesson.h5ad")
    assert (lesson.values, lesson.batch) == ("counts", True)
    np.testing.assert_array_equal(cells.X.toarray(), given.layers["counts"][rows].toarray())
    assert cells.obs_names.tolist() == given.obs_names[rows].tolist()
    assert cells.obs["batch"].tolist() == given.obs["batch"].iloc[rows].tolist()
    assert set(cells.obs["cell_type"]) == {"Mast"}
    assert cells.var_names.tolist() == given.var["feature_name"].tolist()
    assert json.loads(cells.uns["canal_novel"]) == {"a": 1}
    assert file_digest(tmp_path / "lesson.h5ad") == file_digest(tmp_path / "again.h5ad")


def test_cells_that_are_not_where_the_sheet_says_are_refused(annotator, file, sheet, tmp_path):
    fill(sheet, g1="Mast")
    filled = read_sheet(sheet)
    filled.about["groups"][0]["cells"][0] = "gone"
    filled.about["groups"][0]["rows"][1] = 10_000
    with open_labelled(file) as labelled, pytest.raises(DataError, match=r"2 of .* such as \['gone'"):
        write_stage_file(tmp_path / "x.h5ad", labelled, labelled.reading(annotator, Naming())[0], filled, {})
    assert not (tmp_path / "x.h5ad").exists()
