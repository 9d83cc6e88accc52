"""What the benchmarks of the exact memory measure, on a small stream of synthetic cells."""

import json

import exact
import exact_backbone
import exact_figures
import exact_orders
import exact_parts
import exact_scale
import numpy as np
import pytest
import tuned
from exact_learners import LEARNERS, Exact, RanPac
from exact_streams import Drawn, StageCells, of_types

from canal.config.yaml_file import parse_config
from canal.core.files import write_json
from tests.support.learning import cells_apart

TYPES = ("B", "CD4 T", "DC")
N_GENES = 12


def cells(stage, part, n, shift, seed):
    names = tuple(TYPES[number % len(TYPES)] for number in range(n))
    return cells_apart((stage, part), names, TYPES, N_GENES, shift, [seed, n])


@pytest.fixture(scope="module")
def drawn():
    config = parse_config(tuned.params("embedded", None, []))
    stages = {
        stage: StageCells(
            *(cells(stage, part, n, shift, 0) for part, n in (("train", 60), ("valid", 21), ("test", 30))), ()
        )
        for stage, shift in (("first", 0.0), ("second", 0.4), ("third", 0.8))
    }
    return Drawn(config, tuple(f"G{number}" for number in range(N_GENES)), stages)


@pytest.mark.parametrize("name", LEARNERS)
def test_every_learner_tells_types_well_apart(name, drawn, monkeypatch):
    monkeypatch.setattr(RanPac, "size", 200)
    found = exact_figures.measured(LEARNERS[name](drawn), drawn)
    assert found["average"] > 0.9
    assert found["left_out"] > 0.7
    assert {"on third", "without third", "ece", "types"} <= found.keys()
    assert (found["forgetting"] is None) == (name == "logistic")


def test_all_orders_end_with_the_same_sums_weights_and_accuracy(drawn):
    found = exact_orders.of_orders(drawn)
    assert len({tuple(one["order"]) for one in found}) == 6
    assert len({(one["sums"], one["stages"], one["weights"], one["average"]) for one in found}) == 1


def test_a_study_is_left_out_where_the_others_know_enough_of_its_types(drawn):
    rest = {
        name: StageCells(of_types(one.train, ["CD4 T", "DC"]), one.validation, one.test, ())
        for name, one in drawn.stages.items()
    }
    third = drawn.stages["third"]
    rest["third"] = StageCells(third.train, third.validation, of_types(third.test, ["B"]), ())
    other = Drawn(drawn.config, drawn.genes, rest)
    found = exact_figures._left_out(Exact(other), other)
    assert "without third" not in found
    assert "without first" in found


def test_the_interval_is_students_over_paired_seeds():
    found, other = ([{"a": value} for value in values] for values in ((0.9, 0.8, 0.7), (0.8, 0.7, 0.5)))
    middle, low, high = exact_figures.differences(found, other, "a")
    error = np.std([0.1, 0.1, 0.2], ddof=1) / np.sqrt(3)
    assert middle == pytest.approx(0.4 / 3)
    assert (high - middle, middle - low) == pytest.approx((4.302653 * error,) * 2)
    assert exact_figures.interval(None) == "-"


class Line:
    name = "synthetic"

    def __init__(self, drawn):
        self.draw = drawn

    def drawn(self, seed):
        return self.draw


def test_a_seed_is_measured_once_until_the_cells_or_the_settings_change(drawn, tmp_path, capsys):
    first = exact.over_seeds("synthetic", Line(drawn), ["exact", "slda"], [0], tmp_path)
    assert capsys.readouterr().err.count("A_T") == 2
    assert exact.over_seeds("synthetic", Line(drawn), ["exact", "slda"], [0], tmp_path) == first
    assert "A_T" not in capsys.readouterr().err
    memory = drawn.config.memory.model_copy(update={"shrinkage": 0.9})
    other = Drawn(drawn.config.model_copy(update={"memory": memory}), drawn.genes, drawn.stages)
    exact.over_seeds("synthetic", Line(other), ["exact", "slda"], [0], tmp_path)
    assert capsys.readouterr().err.count("A_T") == 1  # SLDA does not depend on these numbers


def test_variants_are_told_beside_what_is_shipped(drawn, tmp_path):
    found = exact_parts.over_seeds(Line(drawn), [0], tmp_path)
    assert list(found) == list(exact_parts.VARIANTS)
    assert exact_parts.table("synthetic", found).row_count == len(exact_parts.VARIANTS)


def test_figures_of_a_finished_project_are_its_own(tmp_path):
    folder = tmp_path / "metrics" / "second"
    per_stage = {"first": {"macro_f1": 0.5}, "second": {"macro_f1": 0.7}}
    write_json(
        folder / "evaluation.json",
        {
            "stages": ["first", "second"],
            "average_accuracy": 0.75,
            "forgetting": 0.1,
            "per_stage": per_stage,
            "calibration": {"ece": 0.03},
        },
    )
    (folder / "predictions.csv").write_text("truth,predicted\nB,B\nB,DC\nDC,DC\n")
    found = exact.of_project(tmp_path)
    assert (found["average"], found["macro_f1"], found["ece"]) == (0.75, pytest.approx(0.6), 0.03)
    assert found["types"] == 0.75
    with pytest.raises(SystemExit, match="make run"):
        exact.of_project(tmp_path / "nothing")


def test_a_stream_without_its_folder_is_left_out_with_a_sentence(capsys):
    exact.main(["--streams", "immune", "--seeds", "1"])
    assert "immune is left out: its files are not in packages" in capsys.readouterr().out


def test_a_stage_is_added_up_beside_an_earlier_one(tmp_path):
    for name, n_cells in (("before", 48), ("more", 240)):
        exact_scale.write_cells(tmp_path / f"{name}.h5ad", n_cells, 60, seed=0)
    cost = exact_scale.learn(tmp_path / "more.h5ad", tmp_path / "before.h5ad", 30)
    assert (cost.n_cells, cost.gib > 0, cost.adding > 0, cost.n_nonzero > 240) == (240, True, True, True)
    assert exact_scale.costs_table([cost], 30).row_count == 1


@pytest.mark.parametrize(("genes", "types"), [(20, 3), (40, 7)])
def test_megabytes_told_are_those_of_a_file_but_for_its_header(genes, types, tmp_path):
    over = exact_scale.written(genes, types, tmp_path) - exact_scale.megabytes(genes, types)
    assert 0 < over < 0.002


def test_features_go_through_the_same_sums_on_64_levels(drawn):
    doubled = exact_backbone.Kind("doubled", lambda expression: expression[:, :5] * 2, genes=True)
    made = exact_backbone.on_levels(drawn, doubled)
    assert made.genes == (*drawn.genes, *(f"feature {number}" for number in range(5)))
    levels = made.stages["second"].train.expression[:, N_GENES:]
    assert (levels == np.rint(levels)).all()
    assert (levels.min(), levels.max()) >= (0, 0)
    assert levels.max() <= 63
    rights = exact_backbone.right(exact_backbone.OfFeatures(made), made)
    assert np.mean(np.concatenate(rights)) > 0.9
    middle, low, high = exact_backbone.apart(rights, rights)
    assert (middle, low, high) == (0, 0, 0)
    assert json.dumps(rights[0].tolist())
