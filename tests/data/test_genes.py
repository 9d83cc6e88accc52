import numpy as np
from scipy.sparse import csr_matrix

from canal.data.genes import map_genes

BLOCK = csr_matrix(np.array([[1, 2, 3, 4, 5], [0, 1, 0, -1, 0]], dtype=np.float32))


def test_blanks_go_and_case_stays():
    genes = map_genes([" CD4", "cd4 ", "A", "B", "C"], "refuse")
    assert genes.symbols == ("CD4", "cd4", "A", "B", "C")
    assert genes.repairs == {}
    np.testing.assert_array_equal(genes.apply(BLOCK).toarray(), BLOCK.toarray())


def test_refuse_keeps_the_first_of_a_name_and_says_so():
    genes = map_genes(["A", "B", "A", "B", "C"], "refuse")
    np.testing.assert_array_equal(genes.apply(BLOCK).toarray(), [[1, 2, 5], [0, 1, 0]])
    assert genes.repairs == {"duplicated_genes": {"n": 2, "examples": ["A", "B"], "done": "first kept"}}


def test_sum_adds_up_and_stores_no_zero():
    genes = map_genes(["A", "B", "A", "B", "C"], "sum")
    result = genes.apply(BLOCK)
    np.testing.assert_array_equal(result.toarray(), [[4, 6, 5], [0, 0, 0]])
    assert result.nnz == 3
    assert genes.repairs["duplicated_genes"]["done"] == "summed"


def test_a_column_without_a_name_is_dropped():
    genes = map_genes(["A", "", "  ", "B", "C"], "refuse")
    np.testing.assert_array_equal(genes.apply(BLOCK).toarray(), [[1, 4, 5], [0, -1, 0]])
    assert genes.repairs == {"unnamed_genes_dropped": {"n": 2}}


def test_no_gene_at_all():
    assert map_genes(["", ""], "refuse").apply(BLOCK[:, :2]).shape == (2, 0)
