"""A request changes with what decides the learning, and with nothing else."""

import json

import pytest

from canal.config.yaml_file import parse_config
from canal.core.digests import json_digest
from canal.core.errors import HistoryError
from canal.registry.manifest.stage_request import (
    changes,
    differences,
    learning_part,
    request_digest,
    stage_request,
)
from canal.registry.versions.history import learned
from tests.support.cells import make_config, make_document, make_tuned_document
from tests.support.recorded import recorded_form
from tests.support.registry_made import two_stages


def with_source(**changes):
    document = make_document()
    document["sources"]["first"] |= changes
    return make_config(sources=document["sources"])


def test_place_licence_and_availability_do_not_count():
    plain = request_digest(make_config(), "second")
    moved = with_source(path="elsewhere/x.h5ad", licence="MIT", citation="x", available=False)
    assert request_digest(moved, "second") == plain
    assert request_digest(make_config(gate={"min_cells": 30}), "second") == plain
    assert request_digest(make_config(prepare={"chunk_cells": 7}), "second") == plain
    assert request_digest(make_config(threads=4), "second") == plain


def test_what_was_asked_for_before_is_asked_for_still():
    """A request is the name of what was learned: a new parameter that is not set must not change it."""
    digests = [request_digest(make_config(), stage)[:16] for stage in ("backbone", "second")]
    assert digests == ["6ad56f6fbc36df08", "c9c227ea3d0daa25"]


def with_corpus(unlabelled=("atlas",), **changes):
    sources = make_document()["sources"]
    atlas = {name: value for name, value in sources["first"].items() if name != "label"}
    backbone = {"unlabelled": list(unlabelled), **changes.pop("backbone", {})}
    return make_config(sources=sources | {"atlas": atlas | changes}, backbone=backbone)


def test_unlabelled_sources_count_where_there_are_any_and_nothing_else_changes():
    plain = stage_request(make_config(), "backbone")
    assert stage_request(with_corpus(()), "backbone") == plain
    assert stage_request(with_corpus((), backbone={"max_unlabelled_cells": 99}), "backbone") == plain
    request = stage_request(with_corpus(), "backbone")
    assert sorted(one.path.partition(".")[0] for one in changes(plain, request)) == [
        "backbone",
        "backbone",
        "held_out",
        "unlabelled",
    ]
    assert request["unlabelled"]["atlas"]["declaration"]["label"] is None
    digests = {
        request_digest(config, "second")
        for config in (
            make_config(),
            with_corpus(),
            with_corpus(min_genes=9),
            with_corpus(exclude={"cells": ["x"]}),
            with_corpus(backbone={"max_unlabelled_cells": 99}),
        )
    }
    assert len(digests) == 5


def test_what_only_measures_does_not_count_and_what_decides_a_rule_does():
    plain = make_config()
    for holdouts in ([], ["NK"], ["NK", "B"]):
        named = make_config(novelty={"holdouts": holdouts})
        assert stage_request(named, "second") == stage_request(plain, "second")
    for change in ({"shadow_epochs": 9}, {"mixtures": 11}, {"temperature": 2.0}, {"false_unassigned": 0.1}):
        assert request_digest(make_config(novelty=change), "first") != request_digest(plain, "first")
        by_sums = [make_config(continual={"method": "exact"}, novelty=one) for one in ({}, change)]
        same = request_digest(by_sums[0], "first") == request_digest(by_sums[1], "first")
        assert same == ("false_unassigned" not in change)  # no network reads the others


@pytest.mark.parametrize("method", ["published", "exact", "combined"])
def test_requests_that_hold_what_only_measures_are_read_as_todays(method):
    config = make_config(continual={"method": method}, novelty={"holdouts": ["NK"]})
    recorded = recorded_form(config, "second")
    assert recorded["novelty"]["holdouts"] == ["NK"]
    assert json_digest(recorded) != request_digest(config, "second")
    part = learning_part(recorded, request_digest(config, "first"))
    assert part == stage_request(config, "second")
    assert recorded["novelty"]["holdouts"] == ["NK"]  # which is another document


def test_a_rule_of_the_split_counts_where_it_is_set_and_nothing_else_changes():
    plain, drawn = make_config(), make_config(split={"rule": "independent"})
    for stage in ("backbone", "first", "second"):
        assert stage_request(make_config(split={"rule": None}), stage) == stage_request(plain, stage)
        assert request_digest(drawn, stage) != request_digest(plain, stage)
    lines = differences(stage_request(drawn, "second"), stage_request(plain, "second"))
    assert lines[0] == "cells.split.rule: learned with 'absent', asked for 'independent'"


def test_genes_to_add_count_where_they_are_set_and_nothing_else_changes():
    def growing(n):
        stages = make_document()["stages"]
        return make_config(stages=stages | {"second": stages["second"] | {"panel": {"grow": n}}})

    plain = make_config()
    for stage in ("backbone", "first", "second"):
        assert stage_request(growing(0), stage) == stage_request(plain, stage)
    assert request_digest(growing(8), "first") == request_digest(plain, "first")
    (line,) = differences(stage_request(growing(8), "second"), stage_request(plain, "second"))
    assert line == "panel: learned with 'absent', asked for {'grow': 8}"


def test_ids_of_the_ontology_count_where_they_are_set_and_from_there_on():
    plain = make_config()
    named = with_source(ontology={"B": "CL:0000236"})
    assert request_digest(named, "backbone") == request_digest(plain, "backbone")
    (line,) = differences(stage_request(named, "first"), stage_request(plain, "first"))
    assert line == "ontology: learned with 'absent', asked for {'B': 'CL:0000236'}"
    assert request_digest(named, "second") != request_digest(plain, "second")
    assert "ontology" not in stage_request(named, "second")


def test_an_import_is_asked_for_by_its_key_and_by_nothing_that_only_pretraining_reads():
    def imported(key="1", path="backbones/x", **changes):
        entry = {"path": path, "key": key * 64}
        return request_digest(make_config(backbone={"imported": entry} | changes), "second")

    assert imported(path="elsewhere", mask_share=0.9) == imported()
    digests = {request_digest(make_config(), "second"), imported(), imported("2"), imported(preset="small")}
    assert len(digests) == 4


def test_the_cache_does_not_count_while_its_features_are_exact():
    plain = stage_request(make_config(), "second")
    assert "cache" not in plain
    assert stage_request(make_config(cache={"max_gb": 3.0, "dtype": "float32"}), "second") == plain
    without = make_document()
    del without["cache"]
    assert stage_request(parse_config(without), "second") == plain


def test_rounded_features_count_for_stages_but_not_for_the_backbone():
    plain, rounded = make_config(), make_config(cache={"dtype": "bfloat16"})
    assert request_digest(rounded, "backbone") == request_digest(plain, "backbone")
    for stage in ("first", "second"):
        assert request_digest(rounded, stage) != request_digest(plain, stage)
    (line,) = differences(stage_request(rounded, "first"), stage_request(plain, "first"))
    assert line == "cache: learned with 'absent', asked for {'dtype': 'bfloat16'}"


def test_what_decides_the_learning_counts_for_the_stage_and_all_behind_it():
    plain = make_config()
    for other in (
        with_source(sha256="1" * 64),
        with_source(exclude={"cells": ["c1"], "batches": []}),
        with_source(min_genes=9),
        make_config(seed=1),
        make_config(continual={"distillation": 1.0}),
        make_config(panel={"rule": "variance"}),
    ):
        assert request_digest(other, "second") != request_digest(plain, "second")


def test_an_override_of_a_later_stage_leaves_the_earlier_ones_alone():
    plain = make_config()
    document = make_document()
    document["stages"]["second"]["continual"] = {"bank_size": 7}
    changed = make_config(stages=document["stages"])
    assert request_digest(changed, "first") == request_digest(plain, "first")
    assert request_digest(changed, "backbone") == request_digest(plain, "backbone")
    assert request_digest(changed, "second") != request_digest(plain, "second")


def tuned(**tuning):
    document = make_tuned_document()
    document["tuning"] = document["tuning"] | tuning
    return parse_config(document)


def test_a_tuned_stage_is_asked_for_by_its_study_instead_of_lambda_and_l():
    fixed, found = stage_request(make_config(), "second"), stage_request(tuned(), "second")
    assert stage_request(tuned(), "first") == stage_request(make_config(), "first")
    assert fixed["continual"].keys() - found["continual"].keys() == {"distillation", "bank_size"}
    assert found["tuning"]["n_trials"] == 3
    lines = differences(found, fixed)
    assert "continual.bank_size: learned with 24, asked for 'absent'" in lines
    rates = tuned(dimensions=["learning_rate"])
    assert "learning_rate" not in stage_request(rates, "second")["continual"]


def test_how_a_study_is_run_does_not_count_and_what_it_may_choose_does():
    plain = request_digest(tuned(), "second")
    assert request_digest(tuned(jobs=4, storage="sqlite:///x.db", max_minutes=3.0), "second") == plain
    for change in (
        {"n_trials": 4},
        {"epochs": 3},
        {"bank_sizes": [12]},
        {"min_retention": 0.5},
        {"least_gain": 1.0},
    ):
        assert request_digest(tuned(**change), "second") != plain
    assert "least_gain" not in stage_request(tuned(least_gain=0.0), "second")["tuning"]
    document = make_tuned_document(continual={"distillation": 5.0, "bank_size": 7})
    assert request_digest(parse_config(document), "second") != plain, "the first stage has them"
    assert (
        stage_request(parse_config(document), "second")["continual"]
        == (stage_request(tuned(), "second")["continual"])
    )


def test_differences_name_the_keys():
    asked = stage_request(make_config(continual={"distillation": 1.0}), "first")
    found = differences(asked, stage_request(make_config(), "first"))
    assert found == ["continual.distillation: learned with 0.1, asked for 1.0"]


def test_changes_hold_both_values_and_what_was_not_there():
    before, after = {"a": {"b": 1, "c": 2}, "d": [1]}, {"a": {"b": 1, "c": 3}, "e": None}
    found = [(one.path, one.before, one.after) for one in changes(before, after)]
    assert found == [("a.c", 2, 3), ("d", [1], "absent"), ("e", "absent", None)]
    assert changes(before, before) == []


@pytest.mark.parametrize(
    ("stage", "section", "changed", "said", "unsaid"),
    [
        ("first", "continual", {"distillation": 0.7}, "stages.NAME.continual", "parent"),
        ("second", "split", {"min_cells": 20}, "cells.split.min_cells: learned with 10", "stages.NAME"),
        ("second", "backbone", {"max_epochs": 2}, "its parent, or an ancestor, is asked for", "request:"),
    ],
)
def test_a_refused_change_names_what_a_person_wrote_and_what_helps(
    tmp_path, stage, section, changed, said, unsaid
):
    made = two_stages(tmp_path / "project")
    document = json.loads(made.project.layout.params.read_text())
    document[section] |= changed
    with pytest.raises(HistoryError, match="a learned stage is not retrained") as refused:
        learned(made.project.store, parse_config(document), stage)
    assert said in str(refused.value)
    assert unsaid not in str(refused.value)


# Who learns


def learning(method, **changes):
    return make_config(continual={"method": method}, **changes)


STAGES = ("backbone", "first", "second")


def test_the_published_method_is_asked_for_as_before_there_were_others():
    plain = [request_digest(make_config(), stage) for stage in STAGES]
    assert [request_digest(learning("published"), stage) for stage in STAGES] == plain
    changed = make_config(memory={"shrinkage": 0.7, "batch_mb": 1})
    assert [request_digest(changed, stage) for stage in STAGES] == plain


def test_how_many_cells_judge_an_epoch_is_asked_for_where_they_are_not_all():
    plain = make_config()
    all_of_them = make_config(continual={"max_validation_cells": None})
    assert request_digest(all_of_them, "first") == request_digest(plain, "first")
    (line,) = differences(
        stage_request(make_config(continual={"max_validation_cells": 50}), "first"),
        stage_request(plain, "first"),
    )
    assert line.startswith("continual.max_validation_cells: ")


@pytest.mark.parametrize("method", ["exact", "combined"])
def test_how_sums_are_solved_is_asked_for_where_there_are_sums(method):
    plain, changed = learning(method), learning(method, memory={"shrinkage": 0.7})
    (line,) = differences(stage_request(changed, "first"), stage_request(plain, "first"))
    assert line.startswith("memory.shrinkage: ")
    assert request_digest(changed, "backbone") == request_digest(plain, "backbone")
    assert request_digest(changed, "second") != request_digest(plain, "second")


@pytest.mark.parametrize("method", ["exact", "combined"])
def test_how_much_room_sums_by_batch_may_take_is_not_asked_for(method):
    roomy = learning(method, memory={"batch_mb": 1e6})
    for stage in STAGES:
        assert request_digest(roomy, stage) == request_digest(learning(method), stage)


def test_what_only_a_network_reads_is_not_asked_of_sums():
    plain = learning("exact")
    for one in ({"bank_size": 7}, {"distillation": 0.5}, {"max_epochs": 3}, {"learning_rate": 1e-3}):
        changed = make_config(continual={"method": "exact"} | one)
        for stage in ("backbone", "first", "second"):
            assert request_digest(changed, stage) == request_digest(plain, stage)
    assert stage_request(plain, "first")["continual"] == {"method": "exact"}


def test_each_method_is_another_request():
    found = {request_digest(learning(method), "second") for method in ("published", "exact", "combined")}
    assert len(found) == 3


def test_a_stage_of_another_method_leaves_its_parent_as_it_was():
    stages = make_document()["stages"]
    stages["second"] = stages["second"] | {"continual": {"method": "combined"}}
    mixed = make_config(stages=stages)
    for stage in ("backbone", "first"):
        assert request_digest(mixed, stage) == request_digest(make_config(), stage)
    assert request_digest(mixed, "second") != request_digest(make_config(), "second")
