"""Measuring cells and telling units apart."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from canal.data.units import judge_values
from canal.quality.evidence import contradiction, doubt, looks_like, measure_cells
from tests.support.cells import make_adata


def cells(*rows):
    return csr_matrix(np.array(rows, dtype=np.float32))


def test_measures_of_counts_are_per_cell():
    frame = measure_cells(cells([0, 1, 2.5, 0.5], [np.nan, 1, -2, np.inf], [0, 0, 0, 0]), "counts")
    assert frame["nonfinite"].tolist() == [0, 2, 0]
    assert frame["negative"].tolist() == [0, 1, 0]
    assert frame["fractional"].fillna(-9).tolist() == [2, -9, 0]


def test_the_total_undoes_the_declared_logarithm():
    counts = np.array([[100.0, 300.5, 0.0, 9000.0]])
    natural = measure_cells(cells(*np.log1p(counts)), "log1p_10k")
    binary = measure_cells(cells(*np.log2(1 + counts)), "log2p_10k")
    assert natural["total"][0] == pytest.approx(9400.5, rel=1e-4)
    assert binary["total"][0] == pytest.approx(9400.5, rel=1e-4)


def test_a_cell_with_few_genes_may_hold_whole_logarithms():
    poor, rich = [1.0] * 9 + [0.0] * 3, [1.0] * 12
    assert measure_cells(cells(poor, rich), "log1p_10k")["fractional"].fillna(-9).tolist() == [-9, 0]


def test_what_overflows_exceeds_every_total():
    assert measure_cells(cells([2000.5, 1.5]), "log1p_10k")["total"][0] == np.inf


@pytest.mark.parametrize("values", ["counts", "log1p_10k", "log2p_10k"])
@pytest.mark.parametrize("seed", [0, 1])
def test_units_are_recognised(values, seed):
    adata = make_adata({"B": 20, "NK": 20}, seed=seed, values=values)
    assert looks_like(csr_matrix(adata.X)) == values


@pytest.mark.parametrize(("base", "name"), [(np.e, "log1p"), (2.0, "log2p")])
@settings(max_examples=10, deadline=None)
@given(depth=st.floats(3e4, 1e6))
def test_another_depth_is_recognised(base, name, depth):
    counts = make_adata({"B": 20}).X.toarray().astype(float)
    scaled = np.log1p(depth * counts / counts.sum(axis=1, keepdims=True)) / np.log(base)
    assert looks_like(csr_matrix(scaled.astype(np.float32))) == name


@pytest.mark.parametrize("depth", [1e4, 2345.5])
def test_scaled_counts_without_a_logarithm_are_named(depth):
    counts = make_adata({"B": 20}).X.toarray().astype(float)
    scaled = depth * counts / counts.sum(axis=1, keepdims=True)
    assert looks_like(csr_matrix(scaled.astype(np.float32))) == "parts"


def test_what_fits_no_base_is_left_open():
    noise = np.random.default_rng(0).uniform(0.1, 5, size=(20, 60))
    assert looks_like(csr_matrix(noise.astype(np.float32))) is None
    assert looks_like(csr_matrix((3, 5), dtype=np.float32)) is None


def test_negative_values_look_scaled():
    assert looks_like(cells([-0.5, 1.25])) == "scaled"


SAID = {
    "counts": (lambda x: x, None, "whole numbers"),
    "ones": (lambda x: np.sign(x), "every value other than 0 is 1", "every value other than 0 is 1"),
    "another depth": (lambda x: np.log1p(2500 * x / x.sum(axis=1, keepdims=True)), None, "sums to 2,500"),
    "another base": (lambda x: np.log2(1 + 1e4 * x / x.sum(axis=1, keepdims=True)), None, "base 2 is undone"),
    "log1p_10k": (lambda x: np.log1p(1e4 * x / x.sum(axis=1, keepdims=True)), None, None),
    "noise": (lambda x: np.random.default_rng(0).uniform(0.01, 1, x.shape), None, "hardly a value is 0"),
}


@pytest.mark.parametrize("kind", SAID)
def test_what_whole_cells_say_against_a_declaration(kind):
    change, against_counts, against_logarithms = SAID[kind]
    counts = make_adata({"B": 20}, n_genes=600).X.toarray().astype(float)
    finding = judge_values(csr_matrix(change(counts).astype(np.float32)))
    for declared, said in (("counts", against_counts), ("log1p_10k", against_logarithms)):
        found = contradiction(finding, declared)
        assert found is None if said is None else said in found
        assert doubt(finding, declared) is None
