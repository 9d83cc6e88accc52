"""What MLflow's pages and DVC's commands show of a learned project, asked as they ask: through their API."""

from __future__ import annotations

import json

import pytest
from ruamel.yaml import YAML

from canal.app.versions import version_rows
from canal.core.digests import json_digest
from canal.core.files import read_json
from canal.registry.manifest import pages
from canal.registry.store.database import LOGGED
from canal.registry.store.store import Store

pytestmark = pytest.mark.pipeline


@pytest.fixture
def project(learned):
    return learned[0].project()


@pytest.fixture
def newest(project):
    return project.store.version("2")


@pytest.fixture
def model(project, newest):
    return project.store.client.get_logged_model(newest.source.removeprefix(LOGGED))


@pytest.fixture
def evaluation(project, newest):
    return read_json(project.store.artifacts(newest) / "metrics" / "evaluation.json")


def test_the_page_of_a_version_tells_what_it_is_and_how_to_promote_it(project, newest, evaluation):
    said = project.store.client.get_model_version(newest.model, "2")
    text = said.description
    assert "**second** learned on first (canal-annotator 1): 4 cell types, 32 genes." in text
    for stage, one in evaluation["per_stage"].items():
        assert f"| {stage} | {one['n']} | {one['accuracy']:.3f} |" in text
    assert f"Average {evaluation['average_accuracy']:.3f}, forgetting " in text
    assert ", H-score of unknown types " in text
    assert "Cell types: B, NK, T, Mono." in text
    assert "Gate: passed, " in text
    assert "`canal promote 2 --by NAME --why REASON`" in text
    assert "Not by an alias" in text
    threshold = evaluation["novelty"]["threshold"]
    assert f"Cells of a novelty above {threshold:.3f} are called Unassigned." in text
    for line in ("- first: no citation declared; licence not declared; ", "Limits:"):
        assert line in text
    told = {name.removeprefix("canal."): value for name, value in said.tags.items()}
    assert (told["types"], told["parent_stage"]) == ("4", "first")
    assert float(told["accuracy"]) == evaluation["row"]["second"]
    assert float(told["average_accuracy"]) == evaluation["average_accuracy"]
    assert told["gate"].startswith("passed, ")
    backbone = project.store.client.get_model_version("canal-backbone", "1")
    assert "stages are learned on it" in backbone.description


def test_a_logged_model_has_parameters_and_metrics_of_the_test_cells_they_are_of(
    project, newest, model, evaluation
):
    assert model.params["parent"] == "first"
    assert (model.params["genes"], model.params["types"]) == ("32", "4")
    assert model.params["distillation"] == str(project.config.continual.distillation)
    metrics = {one.key: one for one in model.metrics}
    table = (project.store.artifacts(newest) / "metrics" / "predictions.csv").read_text().splitlines()
    rows = [line.split(",") for line in table[1:]]
    for stage, one in evaluation["per_stage"].items():
        cells = sorted([row[0], row[2]] for row in rows if row[1] == stage)
        shown = metrics[f"accuracy.{stage}"]
        assert shown.value == one["accuracy"]
        assert (shown.dataset_name, shown.dataset_digest) == (f"{stage}/test", json_digest(cells)[:32])
        assert metrics[f"macro_f1.{stage}"].value == one["macro_f1"]
    assert metrics["average_accuracy"].value == evaluation["average_accuracy"]
    assert metrics["average_accuracy"].dataset_name is None
    linked = json.loads(model.tags["mlflow.modelVersions"])
    assert linked == [{"name": newest.model, "version": 2}]


def test_the_run_of_a_stage_has_cells_and_models_as_inputs_and_outputs(project, newest, model, evaluation):
    client = project.store.client
    run = client.get_run(newest.run_id)
    assert run.data.metrics["accuracy.first"] == evaluation["row"]["first"]
    inputs = {
        one.dataset.name: (one.tags[0].value, json.loads(one.dataset.profile)["num_rows"])
        for one in run.inputs.dataset_inputs
    }
    counts = read_json(project.store.artifacts(newest) / "split" / "cells.json")["counts"].values()
    for name, context in (("train", "training"), ("validation", "validation"), ("test", "testing")):
        assert inputs[f"second/{name}"] == (context, sum(one[name] for one in counts))
    assert inputs["first/test"] == ("testing", evaluation["per_stage"]["first"]["n"])
    source = next(one.dataset.source for one in run.inputs.dataset_inputs)
    assert (project.layout.root / json.loads(source)["uri"]).is_file()
    parent = project.store.version("1").source.removeprefix(LOGGED)
    assert [one.model_id for one in run.inputs.model_inputs] == [parent]
    assert [one.model_id for one in run.outputs.model_outputs] == [model.model_id]
    earlier = client.get_run(project.store.version("1").run_id)
    (test,) = [one.dataset for one in earlier.inputs.dataset_inputs if one.dataset.name == "first/test"]
    assert test.digest == next(
        one.dataset.digest for one in run.inputs.dataset_inputs if one.dataset.name == "first/test"
    )


def test_mlmodel_names_its_logged_model_and_the_experiment_its_kind(project, newest, model):
    import mlflow

    folder = project.store.artifacts(newest)
    assert mlflow.models.Model.load(str(folder)).model_id == model.model_id
    experiment = project.store.client.get_experiment(project.store.experiment_id)
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"


def test_versions_are_listed_without_fetching_them(project, monkeypatch):
    here = version_rows(project)
    monkeypatch.setattr(Store, "local_artifacts", lambda *_: None)
    fetched = []
    monkeypatch.setattr(Store, "artifacts", lambda _, version: fetched.append(version.number))
    assert version_rows(project) == here
    assert fetched == []


def test_dvc_shows_figures_and_plots_of_every_stage(learned, evaluation):
    line, _ = learned
    shown = json.loads(line.run("dvc", "metrics", "show", "--json"))[""]["data"]
    figures = shown["scores/second/scores.json"]["data"]
    assert figures["accuracy"] == evaluation["row"]["second"]
    assert figures["by_stage"] == evaluation["row"]
    assert set(shown) == {f"scores/{stage}/scores.json" for stage in ("first", "second")}
    plots = json.loads(line.run("dvc", "plots", "show", "--json"))["data"]
    for name in ("stages.csv", "types.csv", "confusion.csv", "epochs.csv"):
        (plot,) = plots[f"scores/second/{name}"]
        assert plot["content"]["data"]["values"], name


def test_names_are_shown_as_they_are_and_long_lists_are_cut(tmp_path):
    labels = [f"T*cell|{number} <b>" for number in range(400)]
    (tmp_path / "metrics").mkdir()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "labels.json").write_text(json.dumps(labels))
    (tmp_path / "model" / "genes.json").write_text(json.dumps(["A", "B"]))
    stages = [f"stage-{number}-with-a-long-name" for number in range(200)]
    document = {
        "stage": stages[-1],
        "labels": labels,
        "row": dict.fromkeys(stages, 0.5),
        "per_stage": {stage: {"n": 3, "accuracy": 0.5} for stage in stages},
        "not_measured": {},
        "average_accuracy": 0.5,
        "calibration": None,
        "novelty": {},
    }
    (tmp_path / "metrics" / "evaluation.json").write_text(json.dumps(document))
    key = {"stage": stages[-1], "request": {"parent": {"stage": "a"}}}
    record = {"parent": None, "git_commit": None, "dirty": True}
    text = pages.Pages(tmp_path, key, record).description(7)
    assert r"T\*cell\|0 \<b\>" in text
    assert "and 340 more" in text
    assert stages[-1] in text
    assert "canal promote 7" in text
    assert len(text) <= 5000
    del labels[3:], stages[:-3]
    (tmp_path / "metrics" / "evaluation.json").write_text(
        json.dumps(document | {"labels": labels, "per_stage": {"a": document["per_stage"][stages[0]]}})
    )
    assert "Limits:" in pages.Pages(tmp_path, key, record | {"pages": 2}).description(7)
    assert "Limits:" not in pages.Pages(tmp_path, key, record | {"pages": 1}).description(7)


def test_a_stage_has_its_model_card_in_dvc_and_a_version_among_its_files(learned, project, newest):
    line, _ = learned
    outs = YAML(typ="safe").load(line.root / "dvc.lock")["stages"]["evaluate@second"]["outs"]
    assert "scores/second/README.md" in [one["path"] for one in outs]
    text = (line.root / "scores" / "second" / "README.md").read_text()
    folder = project.store.artifacts(newest)
    assert (folder / "README.md").read_text() == text
    assert {"README.md", "sources.json"} <= read_json(folder / "record.json")["files"].keys()
    assert newest.key in text
    client = project.store.client
    steps = client.search_runs(
        [project.store.experiment_id], f"tags.`mlflow.parentRunId` = '{newest.run_id}'"
    )
    (measured,) = [one for one in steps if one.data.tags["canal.step"] == "evaluate"]
    logged = [one.path for one in client.list_artifacts(measured.info.run_id, "scores")]
    assert "scores/README.md" in logged
