"""What the benchmark of coarse types counts, by hand and on a small stream."""

import hierarchy
import numpy as np
import pytest
from hierarchy import Asked, measured, of_novel

BOUND = hierarchy.BOUND


@pytest.fixture
def asked():
    """Six cells: two sure and right, one sure and wrong, two unsure with coarse names, one novel."""
    has = np.array([True, True, True, True, True, True])
    right = np.array([True, True, False, True, False, True])
    opened = np.array([1.0, 1, 1, 4, 3, 2])
    return Asked(
        np.array([0.99, 0.95, 0.93, 0.6, 0.5, 0.7]),
        np.array([True, True, False, False, True, True]),
        np.array([True, True, True, True, True, False]),
        np.array([False, False, False, False, False, True]),
        {BOUND: (has, right, opened)},
    )


def test_names_are_counted_over_all_cells(asked):
    found = measured(asked, BOUND)
    assert found["named today"] == found["named"] == pytest.approx(5 / 6)
    assert found["wrong today"] == found["wrong, cut"] == pytest.approx(2 / 6)
    assert found["wrong, coarse"] == pytest.approx(2 / 6)
    assert found["one type"] == pytest.approx(3 / 6)
    assert found["several types"] == pytest.approx(2 / 6)
    assert found["open"] == 3.5
    assert found["named by cut, as many wrong"] == pytest.approx(5 / 6)
    assert found["unsure"] == pytest.approx(2 / 6)
    assert [found[f"unsure, {one}"] for one in ("right type", "right name", "wrong name")] == [0.5, 0.5, 0.5]


def test_where_fewer_cells_have_a_coarse_name_the_least_confident_are_cut(asked):
    has, right, opened = asked.coarse[BOUND]
    fewer = Asked(asked.sure, asked.right, asked.known, asked.novel, {BOUND: (has & right, right, opened)})
    found = measured(fewer, BOUND)
    assert found["named"] == pytest.approx(3 / 6)
    assert found["wrong, coarse"] == 0
    assert found["wrong, cut"] == pytest.approx(1 / 6)
    assert found["named by cut, as many wrong"] == pytest.approx(2 / 6)


def test_novel_cells_are_asked_by_themselves(asked):
    assert of_novel(asked.among(~asked.known), BOUND) == {
        "Unassigned": 1.0,
        "right type": 1.0,
        "right name": 1.0,
        "wrong name": 0.0,
    }
    assert of_novel(asked.among(asked.known), BOUND)["Unassigned"] == 0


def test_cells_of_studies_are_pooled_in_order(asked):
    both = Asked.pooled([replaced(asked), replaced(asked)])
    assert len(both.sure) == 12
    assert all(len(values) == 12 for values in both.coarse[BOUND])


def replaced(asked):
    return Asked(
        asked.sure,
        asked.right,
        asked.known,
        asked.novel,
        dict.fromkeys(hierarchy.BOUNDS, asked.coarse[BOUND]),
    )


def test_a_name_is_right_if_the_truth_is_of_its_kind():
    nodes = hierarchy.Hierarchy.of(("CD4 T", "CD8 T", "B", "MDC"), hierarchy.IDS)
    right = dict(zip(nodes.names, hierarchy._right_nodes(nodes, "CD4 T"), strict=True))
    assert {name for name, one in right.items() if one} == {"CD4 T", "mature alpha-beta T cell", "lymphocyte"}
    gdt = dict(zip(nodes.names, hierarchy._right_nodes(nodes, "gdT"), strict=True))
    assert {name for name, one in gdt.items() if one} == {"lymphocyte"}
    assert hierarchy._right_nodes(nodes, "MDC").tolist() == [name == "MDC" for name in nodes.names]
    assert not hierarchy._right_nodes(nodes, "ILC3").any()
