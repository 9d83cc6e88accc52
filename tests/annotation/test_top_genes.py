import numpy as np
import pytest
from scipy.sparse import csc_matrix, csr_matrix

from canal.annotation.markers import sum_expression
from canal.annotation.options import Options
from canal.annotation.query import query_file
from canal.annotation.reading import make_reading
from canal.io.formats import open_cells
from tests.support.cells import gene_names, make_adata, write_adata

KNOWN = 2


@pytest.fixture
def cells():
    """Three classes of sixty genes; gene 7 marks class 0, gene 9 both novel classes, gene 5 one odd cell."""
    adata = make_adata({"known": 80, "a": 40, "b": 40}, n_genes=60)
    own = np.array([{"a": 0, "b": 1, "known": KNOWN}[name] for name in adata.obs["cell_type"]])
    values = np.random.default_rng(0).poisson(1.0, size=adata.shape).astype(np.float32)
    values[own == 0, 7] += 6
    values[own != KNOWN, 9] += 6
    values[:, 5] = 0.0
    values[np.flatnonzero(own == 0)[0], 5] = 200.0
    adata.X = csr_matrix(values)
    return adata, own


def sums(adata, own, path, chunk):
    with open_cells(write_adata(adata, path)) as file:
        reading = make_reading(query_file(file, "X", None), gene_names(60)[:20], Options())
        return sum_expression(reading, own, 3, chunk)


def test_a_gene_comes_first_that_is_higher_than_in_each_of_the_others(cells, tmp_path):
    adata, own = cells
    found = sums(adata, own, tmp_path / "in.h5ad", 1000)
    names = gene_names(60)
    top = found.top([0], [[KNOWN], [1]], KNOWN, 5)
    assert top[0].gene == names[7]
    assert names[9] not in [gene.gene for gene in top]
    assert {gene.gene for gene in found.top([0], [[KNOWN]], KNOWN, 2)} == {names[7], names[9]}
    assert top[0].expressed == 1.0
    assert 0.4 < top[0].expressed_known < 0.9
    assert top[0].change > 1


def test_neither_blocks_nor_layout_change_the_sums(cells, tmp_path):
    adata, own = cells
    one = sums(adata, own, tmp_path / "csr.h5ad", 1000)
    adata.X = csc_matrix(adata.X)
    two = sums(adata, own, tmp_path / "csc.h5ad", 13)
    for name in ("n_cells", "sums", "squares", "expressed"):
        np.testing.assert_allclose(getattr(one, name), getattr(two, name), rtol=1e-6)


def test_where_nothing_is_known_the_highest_genes_are_told(cells, tmp_path):
    adata, own = cells
    found = sums(adata, np.where(own == 0, 0, -1), tmp_path / "in.h5ad", 50)
    top = found.top([0], [[KNOWN], [1]], KNOWN, 3)
    assert top[0].gene in (gene_names(60)[7], gene_names(60)[9])
    assert top[0].to_json()["change"] is None
