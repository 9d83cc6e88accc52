"""What a stage is learned with, and which study belongs to it."""

import json

import pytest

from canal.app.choosing import study_digest
from canal.app.declaring import chosen_settings, tuned_document, tuning_of
from canal.app.project import Project
from canal.config.layout import Layout
from canal.config.yaml_file import parse_config
from canal.core.errors import ConfigError, TrainingError
from canal.core.files import write_json
from canal.tuning.document import FORMAT
from tests.support.cells import make_config, make_tuned_document

SEEN = ("model/weights.safetensors", "bank/bank.h5ad", "probe/probe.h5ad")
"""Files of a parent that decide what its child's trials find."""


def parent_key(code="one", **changes):
    return {"format": 1, "code": code, "files": dict.fromkeys((*SEEN, "history.json"), "1") | changes}


def make_project(root, **tuning):
    document = make_tuned_document()
    document["tuning"] = document["tuning"] | tuning
    return Project(Layout(root), parse_config(document))


def write_tuned(project, path=None, **changes):
    document = {
        "format": FORMAT,
        "stage": "second",
        "choice": {"distillation": 0.5, "bank_size": 12},
        "tuning": project.config.tuning.asked(),
    }
    write_json(path or project.layout.tuned("second"), document | changes)


def write_inputs(project):
    """Write what a study's digest is made of."""
    layout = project.layout
    write_json(layout.prepared("second") / "prepared.json", {"sha256": "1" * 64})
    write_json(layout.panel, ["B"])
    layout.split("second").parent.mkdir(parents=True, exist_ok=True)
    layout.split("second").write_text("cell_id,set\n")
    write_json(layout.model("first") / "key.json", parent_key())


def test_a_fixed_stage_is_learned_as_params_say_and_a_tuned_one_as_was_chosen(tmp_path):
    project = make_project(tmp_path)
    write_tuned(project)
    assert chosen_settings(project, "first") == project.config.continual
    found = chosen_settings(project, "second")
    assert (found.distillation, found.bank_size) == (0.5, 12)
    assert found.max_epochs == project.config.continual.max_epochs


def test_a_stage_is_not_learned_before_it_is_tuned_nor_with_the_choice_of_another_study(tmp_path):
    project = make_project(tmp_path)
    with pytest.raises(TrainingError, match=r"second\.json not found: this stage is tuned first"):
        chosen_settings(project, "second")
    write_tuned(project)
    with pytest.raises(TrainingError, match=r"tuned/second\.json was written by another study"):
        chosen_settings(make_project(tmp_path, n_trials=9), "second")
    assert chosen_settings(make_project(tmp_path, jobs=2), "second").bank_size == 12
    write_tuned(project, format=99)
    with pytest.raises(TrainingError, match=r"reads format 1, found 99"):
        chosen_settings(project, "second")


def test_only_tuned_stages_have_a_study(tmp_path):
    project = make_project(tmp_path)
    with pytest.raises(
        ConfigError,
        match=r"'first' is not tuned: params.yaml sets lambda 0\.1 and L 24; tuned stages: second",
    ):
        tuning_of(project, "first")
    with pytest.raises(ConfigError, match="no stage 'third'; there are first, second"):
        tuned_document(project, "third")
    with pytest.raises(ConfigError, match="tuned stages: none"):
        tuning_of(Project(Layout(tmp_path), make_config()), "second")


def test_where_the_pipelines_out_is_gone_the_models_copy_is_shown(tmp_path):
    project = make_project(tmp_path)
    with pytest.raises(TrainingError, match=r"tuned/second\.json not found"):
        tuned_document(project, "second")
    write_tuned(project, project.layout.model("second") / "tuned.json", chosen=5)
    assert tuned_document(project, "second")["chosen"] == 5
    write_tuned(project, chosen=6)
    assert tuned_document(project, "second")["chosen"] == 6


def test_a_parent_of_other_code_that_holds_the_same_is_the_same_study(tmp_path):
    project = make_project(tmp_path)
    write_inputs(project)
    plain = study_digest(project, "second")
    write_json(project.layout.model("first") / "key.json", parent_key(code="other"))
    assert study_digest(project, "second") == plain


def test_other_params_data_or_parent_are_another_study_and_another_way_to_run_it_is_not(tmp_path):
    project = make_project(tmp_path)
    write_inputs(project)
    plain = study_digest(project, "second")
    assert study_digest(make_project(tmp_path, jobs=3, max_minutes=1.0), "second") == plain
    seen = {plain, study_digest(make_project(tmp_path, n_trials=4), "second")}
    layout = project.layout
    for path, changed in (
        (layout.prepared("second") / "prepared.json", '{"sha256": "2"}'),
        (layout.panel, '["T"]'),
        (layout.split("second"), "cell_id,set\nc1,train\n"),
        *((layout.model("first") / "key.json", json.dumps(parent_key(**{path: "2"}))) for path in SEEN),
    ):
        path.write_text(changed)
        seen.add(study_digest(project, "second"))
    assert len(seen) == 5 + len(SEEN)
