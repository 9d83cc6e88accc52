"""Genes by other names."""

import gzip
import json

import anndata
import numpy as np
import pandas as pd
import pytest

from canal.annotation.annotate import annotate_adata, annotate_h5ad
from canal.annotation.naming import OWN_GENES, Naming, rename
from canal.annotation.options import Options
from canal.annotation.query import query_adata
from canal.annotation.summary import lost_weight
from canal.core.digests import file_digest
from canal.core.errors import DataError
from canal.data import genes
from canal.data.genes import HUMAN_TABLE, human_symbols, read_aliases, read_pairs
from tests.support.cells import gene_names, make_adata, write_adata

PANEL = gene_names(20)
IDS = [f"ENSG{i:011d}" for i in range(20)]
MICE = [f"Gene{i}a" for i in range(20)]


@pytest.fixture
def adata():
    return make_adata({"B": 12, "NK": 8}, n_genes=20)


def named(adata, names, **columns):
    other = adata.copy()
    other.var_names = list(names)
    for name, values in columns.items():
        other.var[name] = list(values)
    return other


def table(path, pairs):
    path.write_text("# from to\n" + "".join(f"{a}\t{b}\tmore\n" for a, b in pairs))
    return path


def renamed(adata, naming=None):
    return rename(query_adata(adata, "X", None), PANEL, naming or Naming(), chosen=False)


def test_known_names_stay():
    query, found = renamed(make_adata({"B": 5}, n_genes=20))
    assert (list(query.genes), found) == (PANEL, {})


SYMBOLS = {
    "CD3E": "ENSG00000198851", "MS4A1": "ENSG00000156738", "LYZ": "ENSG00000090382",
    "NKG7": "ENSG00000105374", "PTPRC": "ENSG00000081237", "MALAT1": "ENSG00000251562",
    "TRDC": "ENSG00000211829", "IGHM": "ENSG00000211899",
}  # fmt: skip


@pytest.mark.parametrize("version", ["", ".4"])
def test_ids_of_human_genes_alone_are_looked_up_in_canals_own_table(adata, version, tmp_path):
    ids = [f"{one}{version}" for one in SYMBOLS.values()]
    query = query_adata(named(adata[:, : len(ids)], ids), "X", None)
    found, how = rename(query, [*SYMBOLS], Naming(), chosen=False)
    assert list(found.genes) == [*SYMBOLS]
    about = {"name": HUMAN_TABLE.name, "sha256": file_digest(HUMAN_TABLE)}
    assert how == {"gene_map": len(ids), OWN_GENES: about}
    own = Naming(gene_map=table(tmp_path / "own.tsv", [(SYMBOLS["LYZ"], "LYZ")]))
    found, how = rename(query, [*SYMBOLS], own, chosen=False)  # a table of the user's own stands instead
    assert (how["gene_map"], OWN_GENES in how) == (1, False)
    _, how = rename(query, [*SYMBOLS.values()], Naming(), chosen=False)  # a model that knows ids
    assert OWN_GENES not in how


def test_the_table_of_human_genes_tells_where_it_is_from_and_is_small(tmp_path, monkeypatch):
    pairs = human_symbols()
    assert len(pairs) > 25_000
    assert all(len(symbols) == 1 for symbols in pairs.values())
    head = gzip.decompress(HUMAN_TABLE.read_bytes()).decode().split("\n")[:6]
    for words in (
        "Ensembl id",
        "GENCODE release 48",
        "MIT licence",
        "no restrictions",
        "Changed",
        "human_genes.py",
    ):
        assert any(words in line for line in head)
    assert HUMAN_TABLE.stat().st_size < 200_000
    monkeypatch.setattr(genes, "HUMAN_TABLE", tmp_path / "lost.tsv.gz")
    with pytest.raises(DataError, match="missing or damaged.*--gene-map FILE"):
        human_symbols()


@pytest.mark.parametrize("column", ["feature_name", "gene_symbols", "symbol"])
def test_ids_are_looked_up_in_the_files_own_column(annotator, adata, column):
    wanted = annotate_adata(annotator, adata)
    found = annotate_adata(annotator, named(adata, IDS, **{column: PANEL}))
    pd.testing.assert_frame_equal(found, wanted)
    assert found.attrs["canal"]["genes"]["renamed"] == {"column": column}


def test_ids_with_a_version_are_looked_up_in_a_table(annotator, adata, tmp_path):
    genes = table(tmp_path / "genes.tsv", zip(IDS, PANEL, strict=True))
    versioned = named(adata, [f"{name}.{i}" for i, name in enumerate(IDS)])
    with pytest.raises(DataError, match="--gene-map FILE"):
        annotate_adata(annotator, versioned)
    found = annotate_adata(annotator, versioned, Options(naming=Naming(gene_map=genes)))
    pd.testing.assert_frame_equal(found, annotate_adata(annotator, adata))
    assert found.attrs["canal"]["options"]["gene_map"]["name"] == "genes.tsv"
    assert found.attrs["canal"]["genes"]["renamed"] == {"gene_map": 20}


def test_a_panel_of_ids_is_found_with_any_version():
    adata = named(make_adata({"B": 5}, n_genes=20), [f"{name}.7" for name in IDS])
    query, found = rename(query_adata(adata, "X", None), IDS, Naming(), chosen=False)
    assert (list(query.genes), found) == (IDS, {"versions": 20})


def test_case_does_not_matter_but_an_exact_name_comes_first(adata):
    query, found = renamed(named(adata, [name.lower() for name in PANEL]))
    assert (list(query.genes), found) == (PANEL, {"case": 20})
    query, found = renamed(named(adata, [PANEL[0], PANEL[0].lower(), *PANEL[2:]]))
    assert list(query.genes)[:2] == [PANEL[0], PANEL[0].lower()]


def test_outdated_symbols_are_replaced_where_todays_are_missing(annotator, adata, tmp_path):
    aliases = table(tmp_path / "aliases.tsv", [("OLD3", PANEL[3]), (PANEL[4], "NEW4")])
    old = named(adata, [*PANEL[:3], "OLD3", "NEW4", *PANEL[5:]])
    found = annotate_adata(annotator, old, Options(naming=Naming(aliases=aliases)))
    pd.testing.assert_frame_equal(found, annotate_adata(annotator, adata))
    assert found.attrs["canal"]["genes"]["renamed"] == {"aliases": 2}
    both = named(adata, [*PANEL[:4], "OLD3", *PANEL[5:]])
    assert "OLD3" in renamed(both, Naming(aliases=aliases))[0].genes


HYPHENS = [name.replace("GENE0", "HLA-D").replace("GENE", "7-") for name in PANEL]
DRESSED = {
    "SYMBOL (ENSG)": lambda name, own_id: f"{name} ({own_id})",
    "SYMBOL_ENSG": lambda name, own_id: f"{name}_{own_id}",
    "SYMBOL|ENSG.version": lambda name, own_id: f"{name}|{own_id}.3",
    "ENSG_SYMBOL": lambda name, own_id: f"{own_id}_{name}",
    "hg19_": lambda name, _: f"hg19_{name}",
    "GRCh38_": lambda name, _: f"GRCh38_{name}",
    "GRCh38______": lambda name, _: f"GRCh38______{name}",
    "GRCh38-2020-A_": lambda name, _: f"GRCh38-2020-A_{name}",
    "R's quotes": lambda name, _: f'"{name}"',
    "quotes and genome": lambda name, own_id: f"'hg38_{name}_{own_id}'",
}


@pytest.mark.parametrize("panel", [PANEL, HYPHENS])
@pytest.mark.parametrize("kind", DRESSED)
def test_names_that_a_program_added_to_are_found(adata, panel, kind):
    dressed = [DRESSED[kind](name, own_id) for name, own_id in zip(panel, IDS, strict=True)]
    query, found = rename(query_adata(named(adata, dressed), "X", None), panel, Naming(), chosen=False)
    assert (list(query.genes), found) == (panel, {"parts_of_names": 20})


def test_a_panel_of_ids_is_found_beside_symbols(adata):
    dressed = [f"{name} ({own_id}.4)" for name, own_id in zip(PANEL, IDS, strict=True)]
    query, found = rename(query_adata(named(adata, dressed), "X", None), IDS, Naming(), chosen=False)
    assert (list(query.genes), found) == (IDS, {"parts_of_names": 20})


def test_ids_behind_a_genome_are_looked_up_in_a_table(adata, tmp_path):
    genes = table(tmp_path / "genes.tsv", zip(IDS, PANEL, strict=True))
    query, found = renamed(named(adata, [f"GRCh38_{name}" for name in IDS]), Naming(gene_map=genes))
    assert (list(query.genes), found) == (PANEL, {"parts_of_names": 20})


@pytest.mark.parametrize("letter", [".", "_"])
def test_names_that_went_through_make_names_are_found(adata, letter):
    passed = [f"X{name}" if name[0].isdigit() else name for name in HYPHENS]
    passed = [name.replace("-", letter) for name in passed]
    query, found = rename(query_adata(named(adata, passed), "X", None), HYPHENS, Naming(), chosen=False)
    hyphens = sum("-" in name for name in HYPHENS)
    assert (list(query.genes), found) == (HYPHENS, {"punctuation": hyphens})


def test_cellxgenes_shared_symbols_are_found_in_its_column(annotator, adata):
    """Where genes share a symbol, feature_name holds SYMBOL_ENSG…; of one in the panel there is one here."""
    names = [
        f"{name}_{own_id}" if i < 3 else name for i, (name, own_id) in enumerate(zip(PANEL, IDS, strict=True))
    ]
    found = annotate_adata(annotator, named(adata, IDS, feature_name=names))
    pd.testing.assert_frame_equal(found, annotate_adata(annotator, adata))
    assert found.attrs["canal"]["genes"]["renamed"] == {"column": "feature_name", "parts_of_names": 3}


def test_two_names_for_one_gene_are_left_alone_and_told(annotator, adata):
    both = [f"{PANEL[0]}_{IDS[0]}", f"{PANEL[0]}_{IDS[1]}"]
    query, found = renamed(named(adata, [*both, *PANEL[2:]]))
    assert (list(query.genes)[:2], found) == (both, {"ambiguous": both})
    panel = ["A-1", "A_1", *PANEL[2:]]  # one name for two genes
    query, found = rename(
        query_adata(named(adata, ["A.1", "other", *PANEL[2:]]), "X", None), panel, Naming(), chosen=False
    )
    assert (query.genes[0], found) == ("A.1", {"ambiguous": ["A.1"]})
    mixed = named(adata, [*(f"{name}_{own}" for name in PANEL[:10] for own in IDS[:2])])
    with pytest.raises(DataError, match=r"0 of the model's 20 genes.*20 symbols may be a gene of the model"):
        annotate_adata(annotator, mixed)


def test_an_exact_name_comes_before_its_parts(adata):
    names = [PANEL[0], f"{PANEL[0]}_{IDS[1]}", *PANEL[2:]]
    query, found = renamed(named(adata, names))
    assert (list(query.genes), found) == (names, {})


def test_genes_of_a_mouse_behind_a_genome_are_no_human_ones(adata):
    names = [*(f"hg19_{name}" for name in PANEL[:10]), *(f"mm10_{name}" for name in PANEL[:10])]
    query, found = renamed(named(adata, names))
    assert (list(query.genes), found) == ([*PANEL[:10], *names[10:]], {"parts_of_names": 10})


HGNC = "hgnc_id\tsymbol\talias_symbol\tprev_symbol\n"


def hgnc(path, *rows):
    path.write_text(HGNC + "".join(f"HGNC:{i}\t{row}\n" for i, row in enumerate(rows)))
    return path


def test_hgncs_own_table_names_genes_both_ways(adata, tmp_path):
    rows = [f'{PANEL[0]}\t"A0|B0"\t', f'NEW1\t\t"OLD1|{PANEL[1]}"', f"{PANEL[2]}\tNEW1\tOLD2"]
    query, found = renamed(
        named(adata, ["B0", "NEW1", "OLD2", *PANEL[3:]]), Naming(aliases=hgnc(tmp_path / "h.tsv", *rows))
    )
    assert (list(query.genes), found) == (PANEL, {"aliases": 3})  # NEW1 is a symbol, so no alias of another


@pytest.mark.parametrize(
    ("rows", "names"),
    [
        ([f"{PANEL[0]}\t\tOLD", "OTHER\t\tOLD"], ["OLD"]),  # two genes were called so
        ([f"{PANEL[0]}\t\tOLD", "OLD\t\tOLDER"], ["OLD"]),  # today another gene is called so
        ([f"{PANEL[0]}\tX|Y\t"], ["X", "Y"]),  # two names of the query for one gene
        ([f"{PANEL[0]}\tX\t", f"{PANEL[1]}\tX\t"], ["X"]),
        ([f"NEW\t\t{PANEL[0]}|{PANEL[1]}"], ["NEW"]),  # one gene under two names in the panel
        ([f"NEW\t\t{PANEL[0]}", f"OTHER\t\t{PANEL[0]}"], ["NEW"]),  # the panel's own name is unclear
    ],
)
def test_what_is_not_clear_is_left_alone_and_told(annotator, adata, tmp_path, rows, names):
    naming = Naming(aliases=hgnc(tmp_path / "h.tsv", *rows))
    some = named(adata, [*names, *(f"GENE{i}" for i in range(90, 92 - len(names))), *PANEL[2:]])
    with pytest.warns(UserWarning, match=f"{len(names)} symbols may be a gene of the model that is missing"):
        found = annotate_adata(annotator, some, Options(naming=naming))
    assert found.attrs["canal"]["genes"]["renamed"] == {"ambiguous": names}
    assert PANEL[0] in found.attrs["canal"]["genes"]["missing"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HGNC + "HGNC:1\t\tA\tB\n", "line 2 has no symbol; columns are hgnc_id, symbol"),
        (HGNC + "HGNC:1\tA\t\t\n", "no line has a value in prev_symbol or alias_symbol"),
        (HGNC, "no line has a value in prev_symbol or alias_symbol"),
        ("", "no pairs found"),
        (HGNC + f"HGNC:1\tA\t{'B' * 200_000}\n", "line 2 cannot be read .field larger"),
        ("one column\n", "line 1 has no two columns"),
    ],
)
def test_tables_of_symbols_that_are_none_are_refused(tmp_path, text, message):
    (tmp_path / "h.tsv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_aliases(tmp_path / "h.tsv")


def test_mice_of_whom_canals_own_table_knows_nothing_need_another_one(annotator, adata, tmp_path):
    mice = named(adata, MICE)
    with pytest.raises(DataError, match=r"mouse genes, such as 'Gene0a'.*--species mouse --orthologs FILE"):
        annotate_adata(annotator, mice)
    with pytest.raises(DataError, match="--species mouse was given"):
        annotate_adata(annotator, adata, Options(naming=Naming(species="mouse")))
    orthologs = table(tmp_path / "mouse.tsv", zip(MICE, PANEL, strict=True))
    naming = Naming(species="mouse", orthologs=orthologs)
    found = annotate_adata(annotator, mice, Options(naming=naming))
    pd.testing.assert_frame_equal(found, annotate_adata(annotator, adata))
    assert found.attrs["canal"]["options"]["species"] == "mouse"


def test_mice_of_equal_spelling_are_no_humans(annotator, adata):
    """Cd3e is not CD3E: only --species human says so; else they are told to be a mouse's."""
    titled = named(adata, [name.title() for name in PANEL])
    with pytest.warns(UserWarning, match="mouse genes were read.*species='human'"):
        annotate_adata(annotator, titled)
    found = annotate_adata(annotator, titled, Options(naming=Naming(species="human")))
    pd.testing.assert_frame_equal(found, annotate_adata(annotator, adata))


@pytest.mark.parametrize(
    ("text", "message"),
    [("only\n", "line 1 has no two columns"), ("# nothing\n", "no pairs found"), ("\tx\n", "line 1")],
)
def test_tables_that_are_none_are_refused(tmp_path, text, message):
    (tmp_path / "t.tsv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_pairs(tmp_path / "t.tsv")
    (tmp_path / "t.tsv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="expected a table"):
        read_pairs(tmp_path / "t.tsv")
    with pytest.raises(DataError, match="no such file"):
        read_pairs(tmp_path / "none.tsv")


def test_the_ladder(annotator, adata, tmp_path):
    none = named(adata, [f"X{i}" for i in range(20)])
    with pytest.raises(DataError, match="0 of the model's 20 genes were found"):
        annotate_adata(annotator, none, Options(force=True))
    few = named(adata, [*PANEL[:5], *(f"X{i}" for i in range(15))])
    with pytest.raises(DataError, match="5 of the model's 20 genes.*--force labels"):
        annotate_adata(annotator, few)
    summary = annotate_h5ad(
        annotator, write_adata(few, tmp_path / "in.h5ad"), tmp_path / "out.h5ad", Options(force=True)
    )
    assert any("these types lose most with the missing genes: " in text for text in summary.warnings)
    note = json.loads(anndata.read_h5ad(tmp_path / "out.h5ad").uns["canal"])
    assert note["options"]["force"] is True
    assert set(note["genes"]["lost_weight"]) == {"B", "NK", "T"}
    assert note["warnings"] == list(summary.warnings)


def test_weight_is_lost_with_the_genes_it_lies_on(annotator):
    assert set(lost_weight(annotator, ()).values()) == {0.0}
    assert set(lost_weight(annotator, annotator.genes).values()) == {1.0}
    some = lost_weight(annotator, annotator.genes[:5])
    assert list(some.values()) == sorted(some.values(), reverse=True)
    rest = lost_weight(annotator, annotator.genes[5:])
    np.testing.assert_allclose([some[label] + rest[label] for label in some], 1.0, atol=1e-3)
