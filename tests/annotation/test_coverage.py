import pytest

from canal.annotation.coverage import cover
from canal.annotation.query import query_adata
from canal.core.errors import DataError
from tests.support.cells import gene_names, make_adata

PANEL = gene_names(20)


def renamed(names):
    adata = make_adata({"B": 5}, n_genes=20)
    adata.var_names = list(names)
    return adata


def test_full_coverage_needs_no_word():
    coverage = cover(query_adata(make_adata({"B": 5}, n_genes=20), "X", None), PANEL, 0.4)
    assert (coverage.found, coverage.panel, coverage.missing) == (20, 20, ())
    assert coverage.warning == ""


def test_blanks_around_a_symbol_do_not_count():
    assert cover(query_adata(renamed(f" {gene} " for gene in PANEL), "X", None), PANEL, 0.4).share == 1


def test_a_share_below_the_soft_bound_is_a_warning():
    some = renamed([*PANEL[:15], *(f"X{i}" for i in range(5))])
    coverage = cover(query_adata(some, "X", None), PANEL, 0.4)
    assert coverage.missing == tuple(PANEL[15:])
    assert "15 of the model's 20 genes" in coverage.warning
    assert PANEL[15] in coverage.warning


def test_the_hard_bound_is_exact():
    some = renamed([*PANEL[:8], *(f"X{i}" for i in range(12))])
    assert cover(query_adata(some, "X", None), PANEL, 0.4).found == 8
    with pytest.raises(DataError, match="8 of the model's 20 genes were found, at least 9 are needed"):
        cover(query_adata(some, "X", None), PANEL, 0.41)


def test_ensembl_ids_are_told():
    with pytest.raises(DataError, match=r"such as 'ENSG00000000000'.*Ensembl ids.*--gene-column"):
        cover(query_adata(renamed(f"ENSG{i:011d}" for i in range(20)), "X", None), PANEL, 0.4)


def test_a_column_that_fits_is_named():
    adata = renamed(f"ENSG{i:011d}" for i in range(20))
    adata.var["n"] = range(20)
    adata.var["feature_name"] = PANEL
    with pytest.raises(DataError, match="use --gene-column feature_name"):
        cover(query_adata(adata, "X", None), PANEL, 0.4)
    assert cover(query_adata(adata, "X", "feature_name"), PANEL, 0.4).share == 1


def test_mouse_symbols_are_told():
    with pytest.raises(DataError, match="mouse symbols"):
        cover(query_adata(renamed(f"Cd{i}a" for i in range(20)), "X", None), PANEL, 0.4)


def test_another_matrix_is_offered():
    adata = make_adata({"B": 5}, n_genes=20)
    adata.raw = adata
    few = adata[:, :4].copy()
    with pytest.raises(DataError, match="try --layer; there are 'X', 'raw'"):
        cover(query_adata(few, "X", None), PANEL, 0.4)
    assert cover(query_adata(few, "raw", None), PANEL, 0.4).share == 1
