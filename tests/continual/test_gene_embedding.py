import numpy as np
import pytest

from canal.continual.pretraining import embed_genes, place_genes, read_gene_embedding
from canal.core.errors import DataError
from tests.support.models import make_expression


def test_genes_of_like_course_lie_together():
    cells = make_expression(60, 6)
    cells[:, 1] = 2 * cells[:, 0] + 1  # the same course, standardised
    embedding = embed_genes(cells, 4, seed=0)
    assert embedding.shape == (6, 4)
    assert embedding.dtype == np.float32
    assert embedding[0] == pytest.approx(embedding[1], abs=1e-3)
    assert np.abs(embedding[0] - embedding[2]).max() > 0.1


def test_embeddings_repeat_and_have_mean_square_one():
    cells = make_expression(60, 30)
    embedding = embed_genes(cells, 8, seed=3)
    assert np.array_equal(embedding, embed_genes(cells, 8, seed=3))
    assert np.mean(embedding**2) == pytest.approx(1.0, rel=1e-5)


def test_a_constant_gene_has_zeros_and_missing_directions_too():
    cells = make_expression(5, 10)
    cells[:, 3] = 1.0
    before = cells.copy()
    embedding = embed_genes(cells, 8, seed=0)
    assert not embedding[3].any()
    assert not embedding[:, 5:].any()
    assert np.array_equal(cells, before)


def courses(n_cells, seed):
    """Return cells whose 40 genes follow eight hidden courses, alike in every draw, and noise."""
    mixing = np.random.default_rng(0).normal(size=(8, 40))
    random = np.random.default_rng(seed)
    noise = random.normal(size=(n_cells, 40))
    return (random.normal(size=(n_cells, 8)) @ mixing + noise).astype(np.float32)


def test_a_new_gene_is_placed_among_co_expressed_genes():
    whole = embed_genes(courses(300, seed=1), 16, seed=0)
    known = embed_genes(courses(300, seed=1)[:, :32], 16, seed=0)
    placed = place_genes(courses(300, seed=2), known)
    assert placed.shape == (8, 16)
    assert placed.dtype == np.float32
    there, found = whole[32:] @ whole[:32].T, placed @ known.T
    assert np.corrcoef(there.ravel(), found.ravel())[0, 1] > 0.95
    assert np.linalg.norm(placed, axis=1).max() <= np.linalg.norm(known, axis=1).max() * (1 + 1e-6)


def test_a_gene_that_is_known_under_another_name_is_placed_beside_it():
    cells = courses(300, seed=2)[:, :32]
    known = embed_genes(courses(300, seed=1)[:, :32], 16, seed=0)
    placed = place_genes(np.concatenate([cells, cells[:, 5:6]], axis=1), known)[0]
    nearness = known @ placed / np.linalg.norm(known, axis=1)
    assert nearness.argmax() == 5


def test_a_new_gene_that_does_not_vary_has_zeros_and_so_has_one_without_company():
    cells, known = courses(50, seed=1), embed_genes(courses(50, seed=1)[:, :32], 16, seed=0)
    cells[:, 35] = 1.0
    assert not place_genes(cells, known)[3].any()
    cells[:, :32] = 0.0
    assert not place_genes(cells, known).any()
    assert not place_genes(courses(50, seed=1), np.zeros_like(known)).any()


def test_cells_without_any_difference():
    assert not embed_genes(np.ones((5, 10), dtype=np.float32), 4, seed=0).any()


@pytest.mark.parametrize(("name", "mark"), [("genes.csv", ","), ("genes.tsv", "\t")])
@pytest.mark.parametrize("header", [True, False])
def test_a_file_is_read_in_the_order_of_the_vocabulary(tmp_path, name, mark, header):
    lines = [["CD4", "1", "2"], ["CD8A", "3", "-4e-1"], ["OTHER", "5", "6"]]
    lines = [["gene", "x", "y"], *lines] if header else lines
    path = tmp_path / name
    path.write_text("\n".join(mark.join(line) for line in lines) + "\n")
    values, missing = read_gene_embedding(path, ["CD8A", "NKG7", "CD4"], 2)
    assert values == pytest.approx(np.array([[3, -0.4], [0, 0], [1, 2]]))
    assert missing == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("CD4,1\n", "line 1: expected a symbol and 2 finite numbers .* found 1"),
        ("CD4,1,2\nCD4,3,4\n", "line 2: CD4 occurs twice"),
        ("CD4,1,2\nCD8A,one,2\n", "line 2: could not convert"),
        ("CD4,1,nan\n", "finite"),
        ("OTHER,1,2\n", "none of its 1 genes"),
        ("", "none of its 0 genes"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused(tmp_path, text, message):
    path = tmp_path / "genes.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_gene_embedding(path, ["CD4", "CD8A"], 2)


def test_a_missing_file_or_another_kind_is_refused(tmp_path):
    (tmp_path / "genes.bin").write_bytes(b"")
    for name in ("none.csv", "genes.bin"):
        with pytest.raises(DataError, match="existing .csv or .tsv"):
            read_gene_embedding(tmp_path / name, ["CD4"], 2)
