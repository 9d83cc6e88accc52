"""What carries a type in a model itself: by the sums, by a network, by both."""

import csv
from dataclasses import replace

import numpy as np
import pytest

from canal.annotation.markers import model_markers, write_markers
from canal.core.errors import DataError
from tests.support.models import LABELS, make_annotator, make_combined
from tests.support.sums import make_exact, make_sums


@pytest.fixture(scope="module")
def exact():
    return make_exact(make_sums(), LABELS)


def test_a_cell_that_expresses_more_of_a_higher_gene_is_likelier_of_the_type(exact):
    """And less likely with more of a lower one: shown on the model's own answers."""
    tried = {"higher": 0, "lower": 0}
    for one in model_markers(exact, top=5):
        row = exact.labels.index(one.cell_type)
        assert one.side == "sums"
        for gene in one.genes:
            cells = np.zeros((2, len(exact.genes)), dtype=np.float32)
            cells[1, exact.genes.index(gene.gene)] = 6.0
            logits = exact.logits(cells)
            rise = (logits - logits.mean(axis=1, keepdims=True))[:, row]
            assert (rise[1] > rise[0]) == (gene.direction == "higher"), (one.cell_type, gene)
            tried[gene.direction] += 1
    assert min(tried.values()) > 0


def test_a_network_tells_no_direction_and_its_genes_are_those_of_greatest_weight():
    model = make_annotator(LABELS)
    weights = model.gene_weights()
    for row, one in enumerate(model_markers(model, top=3)):
        assert (one.cell_type, one.side) == (LABELS[row], "network")
        assert [gene.gene for gene in one.genes] == [model.genes[i] for i in np.argsort(-weights[row])[:3]]
        assert {gene.direction for gene in one.genes} == {None}
        assert all(gene.share == gene.network and gene.sums == 0 for gene in one.genes)


def test_both_sides_add_up_to_the_share_and_all_shares_to_one():
    model = make_combined(weight=0.3)
    for row, one in enumerate(model_markers(model, top=1000)):
        assert one.side == "both"
        assert sum(gene.share for gene in one.genes) == pytest.approx(1, abs=1e-4)
        assert sum(gene.network for gene in one.genes) == pytest.approx(0.3, abs=1e-4)
        assert all(gene.share == pytest.approx(gene.network + gene.sums, abs=2e-6) for gene in one.genes)
        assert one.genes[0].gene == model.genes[int(model.gene_weights()[row].argmax())]


def test_a_type_that_the_network_never_learned_is_carried_by_the_sums_alone():
    whole = make_combined(weight=0.3)
    network = replace(make_annotator(LABELS[:3]), genes=whole.network.genes)
    found = {one.cell_type: one for one in model_markers(replace(whole, network=network), top=4)}
    assert [found[name].side for name in LABELS] == ["both", "both", "both", "sums"]
    assert all(gene.network == 0 for gene in found["T"].genes)


def test_a_table_holds_what_was_found_and_names_that_are_no_formulas(exact, tmp_path):
    first, *rest = model_markers(exact, top=2)
    found = [replace(first, cell_type="=B"), *rest]
    write_markers(tmp_path / "genes.csv", found)
    rows = list(csv.DictReader((tmp_path / "genes.csv").open()))
    assert len(rows) == 2 * len(LABELS)
    assert rows[0]["cell_type"] == "'=B"
    assert [row["rank"] for row in rows[:4]] == ["1", "2", "1", "2"]
    assert float(rows[0]["share"]) == pytest.approx(found[0].genes[0].share)
    assert rows[0]["direction"] == found[0].genes[0].direction


def test_a_table_that_cannot_be_written_is_refused_in_words(exact, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        write_markers(tmp_path / "file" / "genes.csv", model_markers(exact, top=2))
