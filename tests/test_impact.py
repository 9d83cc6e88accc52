"""A donor withdraws, a data set is retracted: what is touched, and a way out that leads out."""

import json
from dataclasses import replace
from functools import reduce
from operator import getitem

import pytest
from ruamel.yaml import YAML

from canal.annotation.records import make_record
from canal.app.impact import impact
from canal.config.branches import with_branch
from canal.config.yaml_file import parse
from canal.core.digests import canonical_json
from canal.registry.manifest.stage_request import request_digest
from canal.registry.provenance.exposure import CellQuery
from tests.support.cells import make_tuned_document
from tests.support.registry_made import FIRST, Made, two_stages, with_atlas


@pytest.fixture
def made(tmp_path):
    return two_stages(tmp_path / "project")


def asked(made, source, **narrowed):
    return impact(made.project, CellQuery(source, **narrowed)).to_json()


def labelled(made, wanted, name):
    """Note in the project's log that a version labelled a file."""
    version = made.project.store.version(wanted)
    facts = {
        "time": "2026-01-02T03:04:05+00:00",
        "input": {"name": name, "sha256": "e" * 64},
        "model": {"model": version.model, "version": version.number, "key": version.key},
        "options": {},
        "cell_types": {"B": 3},
        "n_cells": 3,
    }
    with made.project.layout.annotations.open("a") as log:
        log.write(canonical_json(make_record(facts)) + "\n")


def commands(document):
    return [step["text"] for step in document["steps"] if step["kind"] == "run"]


def followed(made, document):
    """Do in params.yaml what the steps say, lines and relearnings, and return its text."""
    yaml = YAML()
    params = yaml.load(made.project.layout.params)
    for step in document["steps"]:
        if step["kind"] == "edit":
            for line in step["text"].splitlines():
                if line.startswith("# remove "):
                    *sections, name = line.removeprefix("# remove ").split(".")
                    del reduce(getitem, sections, params)[name]
            merge(params, yaml.load(step["text"]) or {})
    with made.project.layout.params.open("w") as stream:
        yaml.dump(params, stream)
    text = made.project.layout.params.read_text()
    for command in commands(document):
        if command.startswith("canal stage relearn"):
            text, _ = with_branch(text, command.split()[3])
    return text


def merge(into, change):
    for name, value in change.items():
        if isinstance(value, dict) and name in into:
            merge(into[name], value)
        else:
            into[name] = value


def test_versions_aliases_and_labelled_files_are_listed(made):
    labelled(made, "1", "lab.h5ad")
    labelled(made, "2", "ward.h5ad")
    document = asked(made, "first", batch="donor-1")
    assert [(one["model"], one["version"], one["grade"]) for one in document["versions"]] == [
        ("canal-backbone", 1, "learned"),
        ("canal-annotator", 1, "learned"),
        ("canal-annotator", 2, "learned"),
    ]
    assert document["aliases"] == {"champion": 1, "candidate": 2}
    assert [one["input"]["name"] for one in document["annotations"]] == ["lab.h5ad", "ward.h5ad"]
    assert document["cells"] == 2


def test_what_came_before_is_left_alone(made):
    labelled(made, "1", "lab.h5ad")
    labelled(made, "2", "ward.h5ad")
    document = asked(made, "second", cell="Mono-1")
    assert [(one["model"], one["version"]) for one in document["versions"]] == [("canal-annotator", 2)]
    assert document["aliases"] == {"candidate": 2}
    assert [one["input"]["name"] for one in document["annotations"]] == ["ward.h5ad"]
    assert commands(document)[:4] == [
        "canal stage relearn second --commit",
        "canal run",
        'canal promote candidate --by "YOUR NAME" --why "REASON"',
        'canal retire 2 --by "YOUR NAME" --why "REASON"',
    ]


def test_a_version_that_was_only_measured_is_no_reason_to_distrust_a_file(made):
    labelled(made, "2", "ward.h5ad")
    document = asked(made, "first", cell="B-5")
    assert {one["grade"] for one in document["versions"]} == {"tested"}
    assert document["annotations"] == []
    assert document["aliases"] == {}
    assert not [command for command in commands(document) if "retire" in command]


def test_a_champion_that_learned_from_it_can_be_rolled_back_at_once(made):
    made.alias("champion", made.project.store.version("2"))
    first, *_ = commands(asked(made, "second", cell="Mono-1"))
    assert first == 'canal rollback --to 1 --by "YOUR NAME" --why "REASON"'
    document = asked(made, "first")
    assert document["steps"][0]["kind"] == "know"
    assert "so has every other version" in document["steps"][0]["text"]


@pytest.mark.parametrize(
    ("source", "narrowed"),
    [
        ("first", {"batch": "donor-1"}),
        ("first", {"cell": "T-2"}),
        ("second", {"cell": "Mono-1"}),
        ("second", {"cell": "Mono-2"}),
        ("second", {}),
        ("first", {}),
    ],
)
def test_the_way_out_asks_for_no_version_that_was_touched(made, source, narrowed):
    """Whoever does what the steps say gets params.yaml that is sound and names nothing that was touched."""
    document = asked(made, source, **narrowed)
    text = followed(made, document)
    config = parse(text)
    versions = [
        version
        for model in ("canal-backbone", "canal-annotator")
        for version in made.project.store.versions(model)
    ]
    touched = {one["key"] for one in document["versions"] if one["grade"] != "tested"}
    requests = {one.request for one in versions if one.key in touched}
    wanted = {request_digest(config, stage) for stage in ("backbone", *config.stages)}
    assert not wanted & requests
    excluded = {f"{name}:{cell}" for name, one in config.sources.items() for cell in one.exclude.cells}
    assert {cell for cell in document["same_content"] if cell.partition(":")[0] in config.sources} <= excluded


def test_a_cell_is_excluded_under_every_name_it_has(made):
    document = asked(made, "second", cell="Mono-2")
    config = parse(followed(made, document))
    assert config.sources["second"].exclude.cells == ("Mono-2",)
    assert config.sources["first"].exclude.cells == ("T-2",)
    assert commands(document)[0] == "canal stage relearn backbone --commit"


def test_a_retracted_first_data_set_leaves_a_line_that_begins_with_the_second(made):
    config = parse(followed(made, asked(made, "first")))
    assert list(config.stages) == ["second"]
    assert (config.root_stage, config.stages["second"].parent) == ("second", "backbone")
    assert config.backbone.branch == 2


def test_what_is_excluded_already_is_not_excluded_twice(made):
    path = made.project.layout.params
    document = json.loads(path.read_text())
    document["sources"]["first"]["exclude"] = {"cells": ["B-3"], "batches": ["donor-1"]}
    made.set_params(sources=document["sources"], continual=document["continual"])
    steps = asked(made, "first", batch="donor-1")["steps"]
    assert any(one["text"] == "sources.first.exclude names them already" for one in steps)
    config = parse(followed(made, asked(made, "first", cell="B-1")))
    assert config.sources["first"].exclude.cells == ("B-3", "B-1")
    assert config.sources["first"].exclude.batches == ("donor-1",)


def test_sources_of_the_same_file_and_sources_that_are_gone_are_named(made):
    document = json.loads(made.project.layout.params.read_text())
    document["sources"]["third"] = document["sources"]["first"] | {"path": "elsewhere.h5ad"}
    document["sources"]["second"]["available"] = False
    made.set_params(sources=document["sources"], continual=document["continual"])
    found = asked(made, "first", batch="donor-1")
    assert list(found["same_bytes"]) == ["third"]
    assert any("second is marked available: false" in one["text"] for one in found["steps"])


def test_lines_of_the_log_that_are_no_records_are_counted(made):
    labelled(made, "1", "lab.h5ad")
    with made.project.layout.annotations.open("a") as log:
        log.write('nonsense\n[]\n{"format": 9}\n' + "[" * 100_000 + "\n")
    document = asked(made, "first")
    assert document["unreadable_annotations"] == 4
    assert len(document["annotations"]) == 1


def test_a_tuned_stage_that_becomes_the_first_one_is_tuned_no_more(made):
    document = make_tuned_document()
    made.set_params(**{name: document[name] for name in ("sources", "stages", "tuning")})
    config = parse(followed(made, asked(made, "first")))
    assert list(config.stages) == ["second"]
    assert not config.tuned


def test_a_stage_that_becomes_the_first_one_adds_no_genes_any_more(made):
    document = json.loads(made.project.layout.params.read_text())
    document["stages"]["second"]["panel"] = {"grow": 4}
    made.set_params(**{name: document[name] for name in ("sources", "stages")})
    config = parse(followed(made, asked(made, "first")))
    assert (list(config.stages), config.stages["second"].panel.grow) == (["second"], 0)


@pytest.mark.parametrize("narrowed", [{}, {"batch": "donor-9"}, {"cell": "x-3"}])
def test_the_way_out_of_an_unlabelled_source_pretrains_a_backbone_without_it(tmp_path, narrowed):
    made = with_atlas(tmp_path / "project")
    document = asked(made, "atlas", **narrowed)
    assert [one["stage"] for one in document["versions"]] == ["backbone", "first", "second"]
    assert "canal stage relearn backbone --commit" in commands(document)
    assert not any("unlearn" in step["text"] for step in document["steps"])
    config = parse(followed(made, document))
    assert (config.backbone.branch, [one.branch for one in config.stages.values()]) == (2, [2, 2])
    assert config.backbone.unlabelled == (("atlas",) if narrowed else ())
    if narrowed:
        exclude = config.sources["atlas"].exclude
        assert (exclude.batches, exclude.cells) == (("donor-9",), ()) or exclude.cells == ("x-3",)
    else:
        assert "atlas" not in config.sources


def with_reserve(folder):
    made = Made(folder, {})
    stage_cells = replace(FIRST, reserve=["B-6"])
    made.stage("first", made.backbone(stage_cells), stage_cells, ["B", "T"])
    return made


def test_a_cell_in_reserve_asks_for_no_relearning(tmp_path):
    """Told to exclude it, a person would change what the stage is, and could not go on without relearning."""
    document = asked(with_reserve(tmp_path / "project"), "first", cell="B-6")
    assert (document["versions"], document["reserve"]) == ([], 1)
    assert [step["kind"] for step in document["steps"]] == ["know"]
    assert "no version has learned from them" in document["steps"][0]["text"]


def test_a_cell_in_reserve_of_a_stage_that_is_to_be_learned_again_is_excluded(tmp_path):
    """The next branch may draw it."""
    made = with_reserve(tmp_path / "project")
    made.set_params(stages={"first": {"source": "first", "parent": "backbone", "branch": 2}})
    steps = asked(made, "first", cell="B-6")["steps"]
    assert any(step["kind"] == "edit" and '"B-6"' in step["text"] for step in steps)
