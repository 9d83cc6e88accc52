"""A declaration from what a person said."""

import pytest

from canal.annotation.label_maps import read_label_map
from canal.app.declaring import declare, declare_labelled, trimmed_labels
from canal.core.digests import file_digest
from canal.core.errors import ConfigError, SourceError
from tests.support.cells import make_adata, write_adata


def test_a_file_inside_the_project_is_named_relative_to_it(tmp_path):
    file = tmp_path / "raw" / "x.h5ad"
    file.parent.mkdir()
    file.write_bytes(b"x")
    entry = declare(file, {"label": "cell_type", "batch": None}, None, tmp_path)
    assert entry == {"path": "raw/x.h5ad", "sha256": file_digest(file), "label": "cell_type"}
    assert declare(file, {}, None, tmp_path / "raw")["path"] == "x.h5ad"
    assert declare(file, {}, None, tmp_path / "elsewhere")["path"] == str(file)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(SourceError, match="no such file; give the path of an h5ad file"):
        declare(tmp_path / "x.h5ad", {}, None, tmp_path)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (None, {"B": "B", " B ": "B", "NK": "NK"}),
        ({"B": "B cell"}, {" B ": "B cell"}),
        ({"B": None, " B ": "Bs"}, {}),
    ],
)
def test_blanks_at_the_ends_of_labels_are_mapped_away(tmp_path, given, wanted):
    adata = make_adata({"B": 4, "NK": 2})
    adata.obs["cell_type"] = ["B", " B ", "B", "B", "NK", "NK"]
    file = write_adata(adata, tmp_path / "x.h5ad")
    assert trimmed_labels(file, "cell_type", given) == wanted
    assert trimmed_labels(file, "batch", None) == {}


def test_labels_are_dropped_by_name_and_all_others_stay(tmp_path):
    file = write_adata(make_adata({"B": 4, "NK": 2, "doublet": 1}), tmp_path / "x.h5ad")
    declared = {"label": None, "values": "counts"}
    source, _ = declare_labelled(file, declared, None, tmp_path, ["doublet", "NK"])
    assert source["label_map"] == {"B": "B", "NK": None, "doublet": None}
    source, _ = declare_labelled(file, declared, {"B": "B cell", "NK": "NK"}, tmp_path, ["doublet"])
    assert source["label_map"] == {"B": "B cell", "NK": "NK", "doublet": None}
    blanks = make_adata({"B": 2, "NK": 2})
    blanks.obs["cell_type"] = ["B", " B ", "NK", "NK"]
    source, _ = declare_labelled(write_adata(blanks, tmp_path / "y.h5ad"), declared, None, tmp_path, ["B"])
    assert source["label_map"] == {"B": None, " B ": None, "NK": "NK"}
    with pytest.raises(ConfigError, match="--drop 'doublets': no cell has it; .* did you mean 'doublet'"):
        declare_labelled(file, declared, None, tmp_path, ["doublets"])


def test_a_label_map_drops_what_has_no_type(tmp_path):
    path = tmp_path / "map.csv"
    path.write_text('CD4+ T, CD4 T\n"B, naive",B\ndoublet,\n')
    read = read_label_map(path)
    assert read.types == {"CD4+ T": "CD4 T", "B, naive": "B", "doublet": None}
    assert read.ontology == {}


@pytest.mark.parametrize("text", ["", "a,b,c\n", "only\n", ",B\n"])
def test_a_broken_label_map_is_refused(tmp_path, text):
    path = tmp_path / "map.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match="lines of two columns"):
        read_label_map(path)


@pytest.mark.parametrize("content", ["γδ T,gdT\n".encode("utf-16"), "Zellen für,B\n".encode("latin-1")])
def test_a_label_map_of_another_encoding_is_refused(tmp_path, content):
    path = tmp_path / "map.csv"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="cannot be read as a CSV file in UTF-8"):
        read_label_map(path)
