"""The whole line on a small real project: learned, registered, repeated, restored, refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from canal.app.auditing import audit_project
from canal.core.digests import file_digest
from canal.core.files import read_json
from tests.pipeline.conftest import CELLS, Line
from tests.support.cells import make_adata, source_of, write_adata
from tests.support.warm import warmly

pytestmark = pytest.mark.pipeline


def add_third(line: Line) -> None:
    """Add a third stage by the command that people use."""
    file, form = ("--file", "raw/third.h5ad"), ("--values", "counts", "--batch", "batch", "--min-genes", "1")
    line.run("canal", "stage", "add", "third", *file, *form, "--commit")
    assert "Add stage third" in line.run("git", "log", "-1", "--format=%s")


def kill_all(folder: Path) -> int:
    """Kill every process that works in a folder, as a machine that loses power does; return how many."""
    killed = 0
    for process in psutil.process_iter(["cwd"]):
        if process.info["cwd"] and Path(process.info["cwd"]).is_relative_to(folder):
            process.kill()
            killed += 1
    return killed


def test_learning_ends_with_registered_versions_and_says_so(learned):
    line, printed = learned
    versions = [version for version in line.project().store.versions() if version.ready]
    assert [(version.stage, version.aliases) for version in versions] == [
        ("first", ()),
        ("second", ("candidate",)),
    ]
    for word in ("average accuracy", "forgetting", "Registered versions", "candidate", "canal annotate"):
        assert word in printed
    folder = line.project().store.artifacts(versions[-1])
    present = {path.relative_to(folder).parts[0] for path in folder.rglob("*") if path.is_file()}
    assert {
        "MLmodel",
        "model",
        "teacher",
        "bank",
        "probe",
        "split",
        "validation",
        "metrics",
        "figures",
    } <= present
    assert {"key.json", "record.json"} <= present
    assert not (line.project().store.artifacts(versions[0]) / "teacher").exists()
    assert not [path for path in folder.rglob("*") if path.suffix in (".pkl", ".pickle", ".pt", ".pth")]
    key = read_json(folder / "key.json")
    assert key["parent"] == versions[0].key
    parent = line.project().store.artifacts(versions[0])
    assert key["teacher"] == file_digest(parent / "model" / "weights.safetensors")


def test_a_second_run_finds_nothing_to_do(line):
    before = line.keys()
    assert "nothing to do" in line.learn()
    assert line.keys() == before


def test_the_runs_of_a_stage_are_its_children(line):
    store = line.project().store
    runs = store.client.search_runs([store.experiment_id], max_results=100)
    parents = {run.info.run_id: run for run in runs if run.data.tags.get("canal.step") == "stage"}
    steps = [run for run in runs if run.data.tags.get("canal.step") in ("pretrain", "finetune", "evaluate")]
    assert len(parents) == 3
    assert len(steps) == 5
    for run in steps:
        parent = parents[run.data.tags["mlflow.parentRunId"]]
        assert parent.data.tags["canal.stage_key"] == run.data.tags["canal.stage_key"]
    tuned = next(run for run in steps if run.data.tags["canal.step"] == "finetune")
    assert tuned.data.params["distillation"] == "0.1"
    assert len(tuned.inputs.dataset_inputs[0].dataset.digest) == 32
    assert tuned.data.metrics["loss"] > 0


def test_the_pyfunc_answers_without_canals_training_code(line, tmp_path):
    version = line.project().store.version("candidate")
    folder = line.project().store.artifacts(version)
    code = f"""
import sys, pathlib
sys.path[:] = [path for path in sys.path if "src" not in pathlib.Path(path or ".").resolve().parts]
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
import mlflow, pandas
model = mlflow.pyfunc.load_model({str(folder)!r})
(room,) = [module for name, module in sys.modules.items() if name.endswith(".model.annotator")]
assert {str(folder)!r} in room.__file__, room.__file__
genes = list(model.metadata.get_input_schema().input_names())
genes.remove("canal_total_counts")
table = pandas.DataFrame([[0.5] * len(genes), [0.0] * len(genes)], columns=genes, dtype="float32")
print(model.predict(table).to_json(orient="records"))
try:
    model.predict(pandas.DataFrame({{"nonsense": [1.0]}}))
except Exception as error:
    print("refused:", error)
try:
    import canal
except ImportError:
    print("no training code")
"""
    script = tmp_path / "load.py"
    script.write_text(code)
    env = warmly(line.root) | {"PYTHONPATH": "", "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    done = subprocess.run(
        ["python", str(script)], cwd="/", env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    assert len(json.loads(next(text for text in lines if text.startswith("[")))) == 2
    assert any(text.startswith("refused:") for text in lines)
    assert "no training code" in lines


def test_a_person_labels_a_file(line):
    said = line.run("canal", "annotate", "raw/third.h5ad", "-o", "out.h5ad")
    assert "no champion yet: version 2 (second)" in said
    import anndata

    labelled = anndata.read_h5ad(line.root / "out.h5ad")
    assert set(labelled.obs["canal_cell_type"]) <= {"B", "T", "NK", "Mono", "Unassigned"}
    assert labelled.n_obs == sum(CELLS["third"].values())
    shown = json.loads(line.canal("show", "candidate", "--json"))
    assert (shown["stage"], shown["parent"]) == ("second", 1)
    assert [row["version"] for row in json.loads(line.canal("versions", "--json"))] == [1, 2]
    line.canal("report", "-o", str(line.root / "page"))
    assert (line.root / "page" / "index.html").stat().st_size > 10_000


def test_what_was_learned_is_never_learned_again(line):
    """Old data gone, a source file edited: a new stage is learned, and nothing else is."""
    before = line.keys()
    add_third(line)
    line.edit(lambda document: document["sources"]["first"].update(available=False))
    (line.root / "raw" / "first.h5ad").unlink()
    for path in ("incoming", "data", "prepared", ".dvc/cache"):
        shutil.rmtree(line.root / path)
    code = line.root / "src" / "canal" / "continual" / "trainer.py"
    code.write_text(code.read_text() + "\n# edited\n")
    printed = line.learn()
    after = line.keys()
    assert {number: after[number] for number in before} == before
    assert len(after) == len(before) + 1
    store = line.project().store
    learned = [
        run.data.tags["canal.stage"]
        for run in store.client.search_runs([store.experiment_id], max_results=100)
        if run.data.tags.get("canal.step") == "finetune"
    ]
    assert sorted(learned) == ["first", "second", "third"]
    assert store.version("candidate").stage == "third"
    row = read_json(line.root / "metrics" / "third" / "evaluation.json")
    assert row["row"]["first"] is None
    assert "first" in row["not_measured"]
    assert row["probe"]["first"]["n"] > 0
    assert "registered canal-annotator 3 (third)" in printed


@pytest.mark.chaos
def test_changed_params_are_refused_and_changed_back_restored(line):
    before = line.keys()
    line.edit(lambda document: document["continual"].update(distillation=2.0))
    said = line.run("dvc", "repro", "--quiet", expect=255)
    assert "continual.distillation: learned with 0.1, asked for 2.0" in said
    assert "canal stage relearn" in said
    # DVC had deleted the model before the step could refuse: it lies there again.
    assert "canal: restored the previous models/first" in said
    assert file_digest(line.root / "models" / "first" / "key.json") == before["1"]
    assert all(path.is_dir() for path in (line.root / "models" / "second", line.root / "metrics" / "second"))
    said = line.run("python", "-m", "canal.app.running", expect=1)
    assert said.count("a learned stage is not retrained") == 1
    assert "restored the previous" not in said  # refused before DVC began
    line.edit(lambda document: document["continual"].update(distillation=0.1))
    lock = (line.root / "dvc.lock").read_text()
    (line.root / "dvc.lock").write_text("<<<<<<< HEAD\n" + lock)
    said = line.run("python", "-m", "canal.app.running", "dvc", expect=255)
    assert "dvc.lock' is invalid (possible merge conflicts)" in said
    (line.root / "dvc.lock").write_text(lock)
    line.learn()
    assert line.keys() == before
    text = (line.root / "params.yaml").read_text()
    line.canal("stage", "relearn", "second")
    line.edit(lambda document: document["stages"]["second"].update(continual={"distillation": 2.0}))
    line.learn()
    branched = line.keys()
    assert len(branched) == len(before) + 1
    (line.root / "params.yaml").write_text(text)
    assert "nothing to do" in line.learn()
    assert line.keys() == branched
    assert line.project().store.version("candidate").number == 3
    first, second = (read_json(line.root / "models" / name / "key.json") for name in ("first", "second"))
    assert (first["branch"], second["branch"]) == (1, 1)
    assert file_digest(line.root / "models" / "second" / "key.json") == before["2"]


def test_pulled_into_a_clone_everything_is_registered(line, tmp_path):
    before = line.keys()
    line.run("dvc", "remote", "add", "--default", "local", str(tmp_path / "remote"))
    line.run("git", "commit", "--quiet", "--all", "--message", "remote")
    line.run("dvc", "push", "--quiet")
    line.run("git", "clone", "--quiet", str(line.root), str(tmp_path / "clone"))
    clone = Line(tmp_path / "clone")
    clone.run("dvc", "pull", "--quiet")
    assert not (clone.root / "mlflow.db").exists()
    clone.canal("registry", "sync")
    assert clone.keys() == before
    assert clone.project().store.version("candidate").stage == "second"
    assert [str(one) for one in audit_project(clone.project()).findings] == []


def test_a_killed_training_goes_on_to_the_same_weights(line):
    """The cache and the registry are lost, the training is killed half way: the bits are the same."""
    wanted = file_digest(line.root / "models" / "second" / "model" / "weights.safetensors")
    line.lose("models/second", "metrics/second")
    for path in ("mlflow.db", "mlartifacts"):
        target = line.root / path
        shutil.rmtree(target) if target.is_dir() else target.unlink()
    command = ["dvc", "repro", "--quiet", "finetune@second"]
    process = subprocess.Popen(
        command, cwd=line.root, env=warmly(line.root), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 90
    while not list(line.root.glob(".canal/training/second-*/checkpoint.safetensors")):
        assert time.monotonic() < deadline, "no checkpoint was written"
        assert process.poll() is None, "the training ended before it could be killed"
        time.sleep(0.02)
    killed = kill_all(line.root)
    process.wait()
    assert killed > 2  # DVC, the step, the training
    assert not (line.root / "models" / "second" / "key.json").exists()
    line.run(*command)
    assert file_digest(line.root / "models" / "second" / "model" / "weights.safetensors") == wanted
    assert not list(line.root.glob(".canal/training/*"))


def test_a_file_that_fails_the_gate_is_not_added(line):
    adata = make_adata(CELLS["third"], seed=5)
    adata.X = -adata.X
    write_adata(adata, line.root / "raw" / "bad.h5ad")
    text = (line.root / "params.yaml").read_text()
    said = line.run(
        "canal",
        "stage",
        "add",
        "bad",
        "--file",
        "raw/bad.h5ad",
        "--values",
        "counts",
        "--min-genes",
        "1",
        expect=1,
    )
    assert "values_not_negative" in said
    assert "was not added: its file does not pass the gate. Of sources.bad above, " in said
    assert "layer is --layer" in said
    assert "Traceback" not in said
    assert (line.root / "params.yaml").read_text() == text
    assert source_of(line.root / "raw" / "bad.h5ad").values == "counts"


def test_mlflow_run_by_hand_restores_what_is_registered(line):
    digest = file_digest(line.root / "models" / "second" / "key.json")
    shutil.rmtree(line.root / "models" / "second")
    line.run(
        "mlflow", "run", ".", "-e", "finetune", "-P", "stage=second", "--env-manager", "local",
        "--experiment-name", "canal",
    )  # fmt: skip
    assert file_digest(line.root / "models" / "second" / "key.json") == digest


def test_what_an_interrupted_run_has_learned_is_told_from_what_is_left(line):
    """Every stage was said to be "to learn": of a long run nobody knew what a second one would repeat."""
    for name in ("mlflow.db", "ledger.jsonl"):
        (line.root / name).unlink()
    shutil.rmtree(line.root / "metrics" / "second")
    said = " ".join(line.canal("status").split())
    assert "learned, to be registered: backbone, first; to learn: second" in said
    assert "learned by a run that was interrupted, and not registered: backbone, first" in said
