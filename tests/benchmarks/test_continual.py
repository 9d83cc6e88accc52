"""Each rival of `benchmarks/continual.py` learns a known stream, and a run that is ended goes on."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import continual_measures
import continual_networks
import continual_outside
import continual_page
import continual_rules
import numpy as np
import pytest
import tuned
from continual_rivals import CanalSums, Kept, without_type
from exact_learners import RanPac
from exact_streams import ALL, Drawn, StageCells, Synthetic, cut, reordered

import continual
from canal.config.yaml_file import parse_config
from canal.continual import evaluation as measures
from tests.support.learning import cells_apart

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
OF_STAGE = {"first": ("B", "DC"), "second": ("B", "CD4 T"), "third": ("CD4 T", "NK")}
TYPES, N_GENES = ("B", "CD4 T", "DC", "NK"), 12


def cells(stage, part, n, shift):
    types = OF_STAGE[stage]
    names = tuple(types[number % len(types)] for number in range(n))
    return cells_apart((stage, part), names, TYPES, N_GENES, shift, [n])


@pytest.fixture(scope="module")
def drawn():
    config = parse_config(tuned.params("embedded", None, []))
    config = config.model_copy(update={"novelty": config.novelty.model_copy(update={"holdouts": ("NK",)})})
    stages = {
        stage: StageCells(*(cells(stage, part, n, 0.2 * number) for part, n in PARTS.items()), ())
        for number, stage in enumerate(OF_STAGE)
    }
    return Drawn(config, tuple(f"G{number}" for number in range(N_GENES)), stages)


PARTS = {"train": 60, "valid": 30, "test": 40}
FORGETS = ("newest", "naive", "distillation", "lwf", "ewc")
"""Those that keep no cells and no sums: after three stages of other types they may have lost the first."""


@pytest.mark.parametrize("name", [name for name in continual.EVERY if name != "known"])
def test_each_rival_learns_types_that_are_well_apart(name, drawn, monkeypatch):
    monkeypatch.setattr(RanPac, "size", 200)
    monkeypatch.setattr(continual_networks, "RATE", 5e-3)
    kind = continual.EVERY[name]
    found = continual_measures.measured(kind, drawn, of_studies=False, with_left_out=False)
    assert found["on third"] > 0.9
    assert found["matrix"][0][0] > 0.9
    assert found["average"] > (0.3 if name in FORGETS else 0.8)
    assert (found["forgetting"] is None) == kind.joint
    assert found["cells_kept"] >= 0
    assert found["peak_mib"] is None or found["peak_mib"] >= 0
    assert set(found["recall"]) == set(TYPES)


def test_what_is_kept_is_counted(drawn):
    rivals = {name: continual.EVERY[name](drawn) for name in ("sums", "logistic", "replay", "er", "icarl")}
    for rival in rivals.values():
        for stage in drawn.stages:
            rival.learn(stage)
    kept = {name: rival.kept() for name, rival in rivals.items()}
    assert kept["sums"] == Kept(8 * 6 * (1 + 12 + 78), 0)  # two types a stage, each n, sums and a triangle
    assert kept["logistic"].n_cells == 180
    assert 0 < kept["replay"].n_cells <= drawn.config.bank.capacity
    assert 0 < kept["icarl"].n_cells <= drawn.config.bank.capacity
    assert kept["er"].n_cells == 180  # fewer than there is room for


def test_a_reservoir_keeps_every_cell_alike_often(drawn):
    times = np.zeros(60)
    for seed in range(200):
        config = drawn.config.model_copy(
            update={"seed": seed, "bank": drawn.config.bank.model_copy(update={"capacity": 20})}
        )
        rival = continual_rules.Reservoir(replace(drawn, config=config))
        train = drawn.stages["first"].train
        rival.remember(train.take(range(30)))
        rival.remember(train.take(range(30, 60)))
        for one in rival.memory.cell_ids:
            times[int(one.rsplit(":", 1)[1])] += 1
    assert len(rival.memory) == 20
    assert abs(times[:30].sum() / times.sum() - 0.5) < 0.05


def test_herding_takes_the_cells_whose_running_mean_is_nearest():
    places = np.array([[0.0], [1.0], [2.0], [9.0]])
    assert continual_rules.herded(places, 2) == [2, 1]  # 2 is nearest to the mean of 3, then 1.5 is


class Scripted:
    """A rival whose accuracies are known: it names the types of the stages in ``known`` rightly."""

    title, joint, costly = "scripted", False, False

    def __init__(self, drawn):
        self.labels, self.learned = TYPES, 0

    def learn(self, stage):
        self.learned += 1

    def answer(self):
        return self

    def logits(self, cells, missing):
        right = np.eye(len(TYPES))[cells.targets(TYPES)]
        share = {
            ("first", 1): 1.0,
            ("first", 2): 0.5,
            ("first", 3): 0.6,
            ("second", 2): 0.8,
            ("second", 3): 0.9,
        }
        n_right = round(share.get((cells.stages[0], self.learned), 1.0) * len(cells))
        right[n_right:] = np.roll(right[n_right:], 1, axis=1)
        return right * 5

    def kept(self):
        return Kept(0, 0)


def test_forgetting_and_transfer_are_those_computed_by_hand(drawn):
    found = continual_measures.measured(Scripted, drawn, of_studies=False, with_left_out=False)
    assert found["matrix"] == [[1.0], [0.5, 0.8], [0.6, 0.9, 1.0]]
    assert found["average"] == pytest.approx((0.6 + 0.9 + 1.0) / 3)
    assert found["forgetting"] == pytest.approx(((1.0 - 0.6) + (0.8 - 0.9)) / 2)
    assert found["transfer"] == pytest.approx(((0.6 - 1.0) + (0.9 - 0.8)) / 2)


def test_types_and_studies_are_left_out_of_learning_alone(drawn):
    rest = without_type(drawn, "NK")
    assert "NK" not in {name for one in rest.stages.values() for name in one.train.types}
    assert "NK" in rest.stages["third"].test.types
    found = continual_measures.measured(CanalSums, drawn, of_studies=True, with_left_out=True)
    assert found["auroc"] > 0.9
    assert set(found["h_score_by_type"]) == {"NK"}
    assert "without third" in found
    assert 0 <= found["left_out_unassigned"] <= 1


def test_streams_in_other_orders_and_in_pieces_hold_the_same_cells(drawn):
    ids = {one for stage in drawn.stages.values() for one in stage.train.cell_ids}
    for made in (reordered(drawn, 5), cut(drawn, 3, by_type=False), cut(drawn, 2, by_type=True)):
        assert {one for stage in made.stages.values() for one in stage.train.cell_ids} == ids
        assert all(set(stage.train.stages) == {name} for name, stage in made.stages.items())
    assert list(reordered(drawn, 5).stages) == ["third", "second", "first"]
    assert len(cut(drawn, 3, by_type=False).stages) == 9
    pieces = cut(drawn, 2, by_type=True).stages.values()
    assert all(len(stage.train.types) == 1 for stage in pieces)


def test_a_stage_of_one_type_is_learned_too(drawn):
    pieces = cut(drawn, 2, by_type=True)
    found = continual_measures.measured(continual.EVERY["newest"], pieces, False, with_left_out=True)
    assert found["average"] < 0.5  # six stages of a type each: it knows the last one's alone


def test_no_rival_beats_the_known_answer_by_more_than_chance():
    drawn = Synthetic().drawn(0)
    best, own = (
        continual_measures.measured(continual.EVERY[name], drawn, False, False)["average"]
        for name in ("known", "sums")
    )
    assert 0.85 < best < 0.97
    assert best - 0.1 < own < best + 0.02


def test_what_was_measured_is_not_measured_again_until_cells_or_settings_change(drawn, tmp_path, capsys):
    line = type("Line", (), {"name": "toy", "drawn": lambda self, seed: drawn})()
    first = continual.over_seeds(line, ["sums", "knn"], 1, 1, tmp_path)
    assert capsys.readouterr().err.count("A_T") == 2
    assert continual.over_seeds(line, ["sums", "knn"], 1, 1, tmp_path) == first
    assert "A_T" not in capsys.readouterr().err
    (tmp_path / "toy" / "knn-0.json").unlink()
    continual.over_seeds(line, ["sums", "knn"], 1, 1, tmp_path)
    assert capsys.readouterr().err.count("kNN") == 1


@pytest.mark.chaos
def test_a_run_that_was_killed_goes_on_where_it_was(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "continual.py"), "--streams", "synthetic", "--seeds", "2"]
    command += ["--rivals", "slda", "newest", "knn", "--into", str(tmp_path)]
    folder = tmp_path / "seeds" / "synthetic"
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(folder.glob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.wait()
    before = {path.name: path.read_bytes() for path in folder.glob("*.json")}
    assert before
    assert all(json.loads(one)["figures"] for one in before.values())  # none was written by half
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    after = {path.name: path.read_bytes() for path in folder.glob("*.json")}
    assert len(after) == 6
    assert done.stderr.count("A_T") == 6 - len(before)
    assert before.items() <= after.items()
    assert "| SLDA | 2 |" in done.stdout


def test_the_page_needs_nothing_else_and_says_who_is_best(tmp_path):
    found = {"toy & co": {"sums": [{"average": 0.9, "forgetting": 0.0}], "knn": [{"average": 0.8}] * 2}}
    titles = {"sums": "canal, sums", "knn": "kNN <on> PCA"}
    text = continual_page.page(tmp_path / "page.html", found, titles).read_text()
    assert "toy &amp; co: canal, sums has the highest A_T" in text
    assert "kNN &lt;on&gt; PCA" in text
    assert "src='data:image/svg+xml;base64," in text
    assert "http" not in text.replace("data:image/svg+xml", "")
    row = continual_page.markdown("toy", found["toy & co"], titles).splitlines()[-1]
    assert row.startswith("| kNN <on> PCA | 2 | .800 ±.000 |")


def test_variants_are_told_as_differences_with_intervals():
    found = {
        "as shipped": [{"average": 0.9}, {"average": 0.8}],
        "other": [{"average": 0.92}, {"average": 0.8}],
    }
    lines = continual_page.markdown("toy", found, {}, of_variants=True).splitlines()
    assert lines[-2].startswith("| as shipped | 2 | 85.00 |")
    assert lines[-1].startswith("| other | 2 | +1.00 ±12.71 |")


def test_labels_of_other_libraries_become_the_same_figures(drawn, tmp_path):
    continual_outside.write_cells(drawn, tmp_path)
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    assert tasks["joint"] == ["first", "second", "third"]
    assert tasks["without second"] == ["first", "third"]
    right = {name: list(one.test.cell_types) for name, one in drawn.stages.items()}
    answers = {task: {"seconds": 1.0, "said": right} for task in tasks}
    wrong = {name: ["B"] * len(one) for name, one in right.items()}
    answers["third"] = {"seconds": 1.0, "said": wrong | {"third": right["third"]}}
    found = continual_outside.figures_of(drawn, answers)
    assert found["joint"]["average"] == found["joint"]["left_out"] == 1.0
    share = {name: measures.accuracy(one, wrong[name]) for name, one in right.items()}
    assert found["newest"]["average"] == pytest.approx((share["first"] + share["second"] + 1) / 3)
    assert found["newest"]["forgetting"] == pytest.approx(1 - (share["first"] + share["second"]) / 2)


def test_streams_that_need_files_are_left_out_with_a_sentence(capsys, tmp_path):
    continual.main(["--streams", "immune", "--seeds", "1", "--into", str(tmp_path)])
    assert "immune is left out: --data names the folder of its files" in capsys.readouterr().err
    assert {"embedded", "immune", "pancreas", "first", "synthetic", "immune/types"} <= set(ALL)


class Line:
    """A stream whose panel is as long as its configuration says."""

    name = "immune"

    def __init__(self, drawn):
        self.draw, self.config = drawn, drawn.config

    def drawn(self, seed):
        size = self.config.panel.size or N_GENES
        stages = {
            name: StageCells(
                *(narrowed(one, size) for one in (stage.train, stage.validation, stage.test)), ()
            )
            for name, stage in self.draw.stages.items()
        }
        return Drawn(self.config, self.draw.genes[:size], stages)


def narrowed(cells, size):
    return replace(cells, expression=np.ascontiguousarray(cells.expression[:, :size]))


def test_a_change_of_the_sums_is_measured_on_validation_cells_and_leaves_the_stream_as_it_was(drawn):
    line = Line(drawn)
    made = continual.changed(line, 0, {"memory": {"shrinkage": 0.9}, "panel": {"size": 5}, "levels": 1.0})
    assert (made.config.memory.shrinkage, len(made.genes)) == (0.9, 5)
    assert line.config.panel.size == drawn.config.panel.size
    for name, stage in made.stages.items():
        assert stage.test is stage.validation
        assert stage.test.cell_ids == drawn.stages[name].validation.cell_ids
        assert (stage.train.expression == np.floor(stage.train.expression)).all()


def test_the_ablation_is_kept_too(drawn, tmp_path, capsys, monkeypatch):
    two = {name: continual.VARIANTS[name] for name in ("as shipped", "shrinkage 0.2")}
    monkeypatch.setattr(continual, "VARIANTS", two)
    first = continual.ablation(Line(drawn), 1, tmp_path)
    assert capsys.readouterr().err.count("A_T") == 2
    assert continual.ablation(Line(drawn), 1, tmp_path) == first
    assert "A_T" not in capsys.readouterr().err
    assert all("left_out" in one for one in first["as shipped"])
