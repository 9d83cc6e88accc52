"""Mouse genes by the table of orthologs that canal ships."""

import gzip
from dataclasses import replace

import anndata
import pandas as pd
import pytest

from canal.annotation.annotate import annotate_adata, annotate_h5ad
from canal.annotation.labelled import open_labelled
from canal.annotation.naming import OWN_TABLE, Naming
from canal.annotation.options import Options
from canal.core.digests import file_digest
from canal.core.errors import DataError
from canal.data import genes
from canal.data.genes import MOUSE_TABLE, mouse_orthologs
from tests.support.cells import make_adata, write_adata

# Named otherwise in a mouse: not by upper case alone. Ensembl calls each pair one-to-one.
OTHERWISE = {"Jchain": "JCHAIN", "mt-Co1": "MT-CO1", "H2-Ea": "HLA-DRA", "Cd163l1": "SCART1"}
SAME = ("Cd79a", "Ms4a1", "Cd3e", "Ccr7", "Nkg7", "Cd74", "Ppbp", "Il7r", "Ptprc", "Trdc", "Ighm", "Cd14")
SEVERAL = {"Gzmb": "GZMB", "Fcgr4": "FCGR3A", "Cd8b1": "CD8B"}


@pytest.fixture
def human(annotator):
    """The small model with twenty genes of people, and cells of theirs."""
    known = {mouse: human for mouse, (human,) in mouse_orthologs().items() if mouse in {*OTHERWISE, *SAME}}
    more = [(mouse, human) for mouse, (human,) in mouse_orthologs().items() if mouse.startswith("Cd2")]
    pairs = [*known.items(), *(pair for pair in more if pair[0] not in known)][:20]
    adata = make_adata({"B": 12, "NK": 8}, n_genes=20)
    adata.var_names = [human for _, human in pairs]
    mice = adata.copy()
    mice.var_names = [mouse for mouse, _ in pairs]
    return replace(annotator, genes=tuple(adata.var_names)), adata, mice


@pytest.mark.parametrize("species", ["auto", "mouse"])
def test_mouse_cells_get_the_labels_of_the_same_cells_with_human_genes(human, species):
    model, people, mice = human
    found = annotate_adata(model, mice, Options(naming=Naming(species=species)))
    pd.testing.assert_frame_equal(found, annotate_adata(model, people))
    renamed = found.attrs["canal"]["genes"]["renamed"]
    assert renamed["orthologs"] == 20
    assert renamed[OWN_TABLE] == {"name": MOUSE_TABLE.name, "sha256": file_digest(MOUSE_TABLE)}
    assert any("mouse genes were read" in one for one in found.attrs["canal"]["warnings"])


def test_human_cells_have_nothing_of_a_mouse_in_their_record(human):
    model, people, _ = human
    record = annotate_adata(model, people).attrs["canal"]
    assert "mouse" not in str(record)


def test_a_table_of_ones_own_is_taken_alone(human, tmp_path):
    model, _, mice = human
    own = tmp_path / "own.tsv"
    own.write_text("".join(f"{a}\t{b}\n" for a, b in zip(mice.var_names, model.genes, strict=True)))
    record = annotate_adata(model, mice, Options(naming=Naming("mouse", own))).attrs["canal"]
    assert OWN_TABLE not in record["genes"]["renamed"]
    assert record["options"]["orthologs"]["name"] == "own.tsv"


def test_a_labelled_mouse_is_read_back_by_the_same_table_or_not_at_all(human, tmp_path, monkeypatch):
    model, people, mice = human
    source, target = write_adata(mice, tmp_path / "mice.h5ad"), tmp_path / "out.h5ad"
    annotate_h5ad(model, source, target)
    with open_labelled(target) as labelled:
        assert labelled.reading(model, Naming())[0].coverage.found == 20
        other = tmp_path / MOUSE_TABLE.name
        other.write_bytes(gzip.compress(gzip.decompress(MOUSE_TABLE.read_bytes()) + b"Xa\tXB\n"))
        monkeypatch.setattr("canal.annotation.labelled.MOUSE_TABLE", other)
        with pytest.raises(DataError, match="another release of canal's table of mouse genes"):
            labelled.reading(model, Naming())[0]
    assert list(anndata.read_h5ad(target).var_names) == list(mice.var_names)


def test_the_table_holds_each_symbol_once_and_tells_where_it_is_from():
    table = mouse_orthologs()
    humans = [one for values in table.values() for one in values]
    assert len(table) == len(humans) == len(set(humans)) > 17_000
    assert {mouse: table[mouse] for mouse in OTHERWISE if mouse in table}["H2-Ea"] == ("HLA-DRA",)
    assert not SEVERAL.keys() & table.keys()
    head = gzip.decompress(MOUSE_TABLE.read_bytes()).decode().split("\n")[:5]
    assert all(line.startswith("# ") for line in head)
    assert "Ensembl" in head[1]
    assert "MIT licence" in head[2]
    assert MOUSE_TABLE.stat().st_size < 400_000


def test_a_damaged_table_is_told_with_the_way_out(human, tmp_path, monkeypatch):
    model, _, mice = human
    for content in (b"no gzip", MOUSE_TABLE.read_bytes()[:5000]):
        (tmp_path / "table.tsv.gz").write_bytes(content)
        monkeypatch.setattr(genes, "MOUSE_TABLE", tmp_path / "table.tsv.gz")
        with pytest.raises(DataError, match="missing or damaged.*--orthologs FILE"):
            annotate_adata(model, mice)
