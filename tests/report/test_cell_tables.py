"""Tables about cells: no name is broken over two lines, whatever the width."""

import re

import pytest

from canal.report.cell_tables import explanation_table, marker_table, unlearned_group
from tests.report.test_terminal import rendered

TYPES = ("B", "CD16-positive, CD56-dim natural killer cell", "[bold]T[/bold]")
GENES = [f"CTC-44{i}N24.11" for i in range(9)] + ["HLA-DQA2", "IL8"]


def document(directions):
    genes = [
        {
            "gene": gene,
            "share": 0.1,
            "direction": directions[i % len(directions)],
            "network": 0.0,
            "sums": 0.1,
        }
        for i, gene in enumerate(GENES)
    ]
    types = [{"cell_type": name, "side": "both", "genes": genes} for name in TYPES]
    return {"model": {"model": "canal-annotator", "version": 3, "stage": "lung"}, "cell_types": types}


@pytest.mark.parametrize("width", [64, 80, 110])
@pytest.mark.parametrize("directions", [("higher", "lower"), ("higher",), (None,)])
def test_no_gene_and_no_word_of_a_type_is_broken(width, directions):
    shown = rendered(marker_table(document(directions)), width)
    words = re.split(r"\s+", shown)
    for name in [*GENES, *" ".join(TYPES).split()]:
        assert name in words, (width, name)
    assert max(map(len, shown.splitlines())) <= width


def test_genes_stand_under_the_direction_in_which_they_speak_for_the_type():
    shown = rendered(marker_table(document(("higher", "lower"))), 110)
    assert "higher in it" in shown
    assert "lower in it" in shown
    assert "network, sums" in shown
    assert "lower in it" not in rendered(marker_table(document(("higher",))), 110)
    assert "higher in it" not in rendered(marker_table(document((None,))), 110)


def test_markers_of_a_file_break_no_gene_either():
    genes = [{"gene": name, "attribution": 1.0, "expressed": 0.5} for name in GENES]
    found = [{"cell_type": name, "n_cells": 100, "genes": genes} for name in TYPES]
    words = re.split(r"\s+", rendered(explanation_table(found), 64))
    assert set(GENES) <= set(words)


def test_of_the_genes_of_another_basis_the_first_are_named_and_how_many_there_are():
    """`canal unlearn --dry-run` printed all two hundred."""
    other = [f"GENE{n}" for n in range(200)]
    document = {
        "source": "lung", "n_cells": 12, "n_summed": 9, "versions": {"lung": {"before": 2, "after": None}},
        "lost_types": [], "not_calibrated": [], "basis": {"lung": {"other": other}}, "champion": None,
        "retired": [],
    }  # fmt: skip
    told = " ".join(rendered(unlearned_group(document, dry_run=True), 200).split())
    assert "200 genes would be others: GENE0, GENE1, GENE2, GENE3, GENE4 and 195 more (--json names" in told
    document["basis"] = {"lung": {"other": other[:2]}}
    told = rendered(unlearned_group(document, dry_run=True), 200)
    assert "2 genes would be others: GENE0, GENE1\n" in told
