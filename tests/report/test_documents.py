"""The R matrix put together from the evaluations of a run."""

from canal.report.documents import accuracy_matrix, lineage
from tests.support.reports import MATRIX, STAGES, make_evaluation


def test_the_newest_evaluation_alone_brings_its_ancestors_rows():
    stages, matrix = accuracy_matrix([make_evaluation(3)])
    assert stages == list(STAGES)
    assert matrix == [[0.929, None, None], [0.893, 0.815, None], MATRIX[2]]


def test_branches_have_no_number_on_each_others_stages():
    left, right = make_evaluation(2), make_evaluation(2)
    right.update(stage="lung", stages=["pbmc", "lung"], matrix=[[0.929], [0.9, 0.7]])
    stages, matrix = accuracy_matrix([left, right])
    assert stages == ["pbmc", "tumour-lymphoid", "lung"]
    assert matrix[1:] == [[0.893, 0.815, None], [0.9, None, 0.7]]


def test_a_lineage_leaves_out_other_branches():
    left, right = make_evaluation(2), make_evaluation(2)
    right.update(stage="lung", stages=["pbmc", "lung"])
    chosen = lineage([make_evaluation(1), left, right], "lung")
    assert [one["stage"] for one in chosen] == ["pbmc", "lung"]
