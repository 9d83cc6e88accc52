import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from canal.continual.cells import LabelledCells
from canal.continual.evaluation import COLUMNS, Examination, evaluate, write_evaluation
from canal.core.digests import tree_digests
from canal.core.errors import TrainingError
from canal.model.head import NoveltyRule
from tests.support.learning import make_cells
from tests.support.models import make_annotator, make_expression

LABELS = ("B", "NK", "T")
NOVELTY = {"holdouts": [], "h_score": None, "auroc": None, "not_measured": {"mast": "not learned yet"}}


@pytest.fixture(scope="module")
def annotator():
    return make_annotator(LABELS).with_novelty(NoveltyRule(0.8, -3.0, 0.0, 0.6))


def judged(annotator, stage, n_right, n_wrong, seed):
    """Cells of which exactly ``n_right`` carry the type that the annotator gives them."""
    expression = make_expression(n_right + n_wrong, seed=seed)
    said = annotator.predict(expression).labels
    types = [name if i < n_right else LABELS[(LABELS.index(name) + 1) % 3] for i, name in enumerate(said)]
    return make_cells(types, stage, expression=expression, n_genes=20)


@pytest.fixture(scope="module")
def exam(annotator):
    first, second = judged(annotator, "zebra", 6, 4, 1), judged(annotator, "ant", 15, 5, 2)
    probe = LabelledCells.concatenate([judged(annotator, "gone", 3, 1, 3), second.take(range(5))])
    return Examination({"gone": None, "zebra": first, "ant": second}, [[0.9], [0.8, 0.7]], probe)


@pytest.fixture(scope="module")
def evaluation(annotator, exam):
    return evaluate(annotator, exam, NOVELTY, seed=0)


def test_the_row_and_the_matrix(evaluation):
    document = evaluation.document
    assert document["stage"] == "ant"
    assert document["stages"] == ["gone", "zebra", "ant"]
    assert document["row"] == {"gone": None, "zebra": 0.6, "ant": 0.75}
    assert document["matrix"] == [[0.9], [0.8, 0.7], [None, 0.6, 0.75]]
    assert document["average_accuracy"] == pytest.approx(0.675)
    assert document["backward_transfer"] == pytest.approx(-0.1)
    assert document["forgetting"] == pytest.approx(0.1)
    assert document["not_measured"] == {"gone": "its source is not available"}


def test_the_probe_is_evaluated_also_where_test_cells_are_gone(evaluation):
    assert evaluation.document["probe"] == {
        "gone": {"n": 4, "accuracy": 0.75},
        "ant": {"n": 5, "accuracy": 1.0},
    }


def test_each_stage_has_all_measures(evaluation):
    one = evaluation.document["per_stage"]["zebra"]
    assert one["n"] == 10
    assert sum(sum(row) for row in one["confusion"]["counts"]) == 10
    assert np.trace(one["confusion"]["counts"]) == 6
    assert one["confusion"]["labels"] == list(LABELS)
    assert sum(part["n"] for part in one["recall"].values()) == 10
    assert {"balanced_accuracy", "macro_f1", "ari", "unassigned"} < one.keys()


def test_calibration_and_novelty_are_there(evaluation, exam):
    assert evaluation.document["calibration"]["n"] == 30
    found = dict(evaluation.document["novelty"])
    by_type = found.pop("false_unassigned")
    assert found == {"threshold": 0.6, **NOVELTY}
    assert {name: one["n"] for name, one in by_type.items()} == Counter(
        exam.tests["zebra"].cell_types + exam.tests["ant"].cell_types
    )
    called = sum(one["n"] * one["unassigned"] for one in by_type.values())
    assert called == pytest.approx(evaluation.predictions["is_novel"].sum())


def test_types_that_are_not_learned_count_as_wrong_and_are_told(annotator, exam):
    unknown = make_cells(["DC"] * 5, "new", expression=make_expression(5, seed=4), n_genes=20)
    known = judged(annotator, "new", 15, 0, 5)
    tests = {"new": LabelledCells.concatenate([known, replace(unknown, cell_ids=tuple("vwxyz"))])}
    document = evaluate(annotator, Examination(tests, [], exam.probe), NOVELTY, seed=0).document
    one = document["per_stage"]["new"]
    assert one["accuracy"] == document["row"]["new"] == 0.75
    assert one["not_learned"] == {"DC": 5}
    assert one["recall"]["DC"] == {"n": 5, "recall": 0.0}
    assert one["confusion"]["labels"] == [*LABELS, "DC"]
    assert document["calibration"]["n"] == 20
    assert set(document["novelty"]["false_unassigned"]) == set(known.cell_types)  # DC is rightly Unassigned


def test_where_all_types_are_learned_nothing_is_told(evaluation):
    assert all("not_learned" not in one for one in evaluation.document["per_stage"].values())


def test_temperature_moves_the_calibration_and_no_label(annotator, exam, evaluation):
    sharper = evaluate(annotator.with_temperature(0.25), exam, NOVELTY, seed=0)
    before, after = evaluation.document["calibration"], sharper.document["calibration"]
    assert before["temperature"] == 1.0
    assert before["uncalibrated"] == {name: before[name] for name in ("ece", "low", "high")}
    assert after["uncalibrated"] == before["uncalibrated"]
    assert after["ece"] != before["ece"]
    same = ["cell_id", "predicted", "novelty", "is_novel"]
    pd.testing.assert_frame_equal(sharper.predictions[same], evaluation.predictions[same])
    assert (sharper.predictions["confidence"] > evaluation.predictions["confidence"]).all()


def test_predictions_are_in_the_order_of_stages_then_cells(evaluation, annotator, exam):
    table = evaluation.predictions
    assert tuple(table.columns) == COLUMNS
    assert list(table["stage"]) == ["zebra"] * 10 + ["ant"] * 20
    assert table["cell_id"][:10].is_monotonic_increasing
    assert (table["truth"] == table["predicted"]).sum() == 21
    answer = annotator.predict(exam.tests["zebra"].expression)
    np.testing.assert_allclose(table["novelty"][:10], answer.novelty)
    assert table["is_novel"].mean() == pytest.approx(
        (
            10 * evaluation.document["per_stage"]["zebra"]["unassigned"]
            + 20 * evaluation.document["per_stage"]["ant"]["unassigned"]
        )
        / 30
    )


def test_files_hold_the_same_bytes_every_time(annotator, exam, evaluation, tmp_path):
    write_evaluation(tmp_path / "one", evaluation)
    write_evaluation(tmp_path / "two", evaluate(annotator, exam, NOVELTY, seed=0))
    assert tree_digests(tmp_path / "one") == tree_digests(tmp_path / "two")
    assert json.loads((tmp_path / "one" / "evaluation.json").read_text()) == evaluation.document
    lines = (tmp_path / "one" / "predictions.csv").read_text().splitlines()
    assert lines[0] == ",".join(COLUMNS)
    assert len(lines) == 31
    table = pd.read_csv(tmp_path / "one" / "predictions.csv")
    assert table["is_novel"].dtype == bool
    assert all(len(value.split(".")[1]) == 6 for value in lines[1].split(",")[4:6])


def test_the_first_stage_has_no_transfer(annotator):
    cells = judged(annotator, "first", 5, 5, 4)
    document = evaluate(annotator, Examination({"first": cells}, [], cells), NOVELTY, seed=0).document
    assert document["matrix"] == [[0.5]]
    assert document["backward_transfer"] is None
    assert document["forgetting"] is None


def test_a_stage_without_test_cells_says_so(annotator, tmp_path):
    none = LabelledCells.empty(20)
    found = evaluate(annotator, Examination({"first": none}, [], none), NOVELTY, seed=0)
    assert found.document["row"] == {"first": None}
    assert found.document["average_accuracy"] is None
    assert found.document["calibration"] is None
    assert "no test cells" in found.document["not_measured"]["first"]
    write_evaluation(tmp_path, found)
    assert (tmp_path / "predictions.csv").read_text() == ",".join(COLUMNS) + "\n"


def test_a_given_reason_is_in_the_document(annotator, exam):
    told = Examination(exam.tests, exam.earlier, exam.probe, {"gone": "withdrawn by its owner"})
    document = evaluate(annotator, told, NOVELTY, seed=0).document
    assert document["not_measured"] == {"gone": "withdrawn by its owner"}


def test_rows_must_fit_the_stages(exam):
    with pytest.raises(TrainingError, match=r"rows of \[1, 2\] entries.*found \[1\]"):
        Examination(exam.tests, [[0.9]], exam.probe)


def test_what_the_parent_made_of_a_stage_before_it_was_learned(annotator, exam):
    parent = make_annotator(("B", "NK"))  # T cells, which it does not know, do not count
    own = exam.tests["ant"]
    known = [i for i, name in enumerate(own.cell_types) if name != "T"]
    said = parent.predict(own.expression[known]).labels
    right = sum(own.cell_types[i] == label for i, label in zip(known, said, strict=True))
    asked = Examination(exam.tests, exam.earlier, exam.probe, parent=parent)
    before = evaluate(annotator, asked, NOVELTY, seed=0).document["before"]
    assert before == {"n": len(known), "accuracy": right / len(known)}


def test_a_parent_that_knows_none_of_the_types_is_not_evaluated(annotator, exam):
    asked = Examination(exam.tests, exam.earlier, exam.probe, parent=make_annotator(("mast", "pDC")))
    assert "before" not in evaluate(annotator, asked, NOVELTY, seed=0).document
