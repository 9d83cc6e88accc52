"""Editing params.yaml keeps every comment and every other line."""

import difflib
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from canal.cli import app
from canal.config.branches import with_branch, with_withdrawal
from canal.config.yaml_file import parse, with_import, with_stage, with_tune
from canal.core.errors import ConfigError

TEXT = (Path(__file__).resolve().parents[1] / "params.yaml").read_text(encoding="utf-8")
SOURCE = {"path": "raw/lung.h5ad", "sha256": "1" * 64, "label": "cell type: x", "values": "counts"}


def changed(before, after):
    return [line for line in difflib.ndiff(before.splitlines(), after.splitlines()) if line[0] in "+-"]


def test_a_new_stage_only_adds_lines():
    text = with_stage(TEXT, "lung", SOURCE, "tumour")
    assert all(line.startswith("+") for line in changed(TEXT, text))
    config = parse(text)
    assert config.stages["lung"].parent == "tumour"
    assert config.sources["lung"].label == "cell type: x"
    assert list(config.stages)[-1] == "lung"


def test_a_new_stage_is_tuned_where_there_is_tuning_unless_it_is_to_be_fixed():
    text = with_stage(TEXT, "lung", SOURCE, "tumour")
    config = parse(text)
    assert config.tuned == ["kang-ctrl", "lung"]
    text = with_stage(text, "blood", SOURCE, "lung", fixed=True)
    assert all(line.startswith("+") for line in changed(TEXT, text))
    config = parse(text)
    assert config.tuned == ["kang-ctrl", "lung"]
    assert config.study("blood") is None
    assert config.study("lung") is not None


def test_a_new_stage_may_add_genes():
    text = with_stage(TEXT, "lung", SOURCE, "tumour", grow=8)
    assert all(line.startswith("+") for line in changed(TEXT, text))
    grow = {name: stage.panel.grow for name, stage in parse(text).stages.items()}
    assert grow == {"pbmc3k": 0, "kang-ctrl": 0, "kang-ifnb": 0, "tumour": 0, "lung": 8}


GROUPS = """
finetune:             # each stage once more
  fixed:
    pbmc3k: {source: pbmc3k, parent: backbone}
    # a comment within
    kang-ifnb: {source: kang-ifnb, parent: kang-ctrl}
    tumour: {source: tumour, parent: kang-ifnb}
  tuned:
    kang-ctrl: {source: kang-ctrl, parent: pbmc3k}

# a comment that stays
"""
FLOW = """
finetune: {fixed: {pbmc3k: {}, kang-ifnb: {}, tumour: {}}, tuned: {kang-ctrl: {}}}
"""


def without(text, section):
    """Return params.yaml's text without one of its sections."""
    start = text.index(f"\n{section}:")
    return text[:start] + text[text.index("\n\n", start + 1) :]


def untuned(text):
    """Return params.yaml's text in which no stage says that it is tuned."""
    return text.replace(", tune: true", "")


def test_without_a_section_tuning_a_new_stage_is_fixed():
    text = untuned(without(TEXT, "tuning"))
    added = with_stage(text, "lung", SOURCE, "pbmc3k")
    assert all(line.startswith("+") for line in changed(text, added))
    assert parse(added).tuned == []


@pytest.mark.parametrize("groups", [GROUPS, FLOW], ids=["blocks", "flow"])
@pytest.mark.parametrize("last", [True, False])
def test_the_groups_of_an_older_canal_become_words_of_the_stages(groups, last):
    older = untuned(TEXT) + groups if last else untuned(TEXT).replace("\nprepare:", f"{groups}\nprepare:")
    assert parse(older) == parse(TEXT)
    newer = with_tune(older)
    assert parse(newer) == parse(TEXT)
    assert with_tune(newer) == newer
    before, after = (Counter(" ".join(line.split()) for line in text.splitlines()) for text in (TEXT, newer))
    assert {*(after - before)} - {""} == ({"# a comment that stays"} if groups == GROUPS else set())
    assert {*(before - after)} <= {""}
    assert parse(with_stage(older, "lung", SOURCE, "tumour")).tuned == ["kang-ctrl", "lung"]


@pytest.mark.parametrize("method", ["combined", "exact"])
def test_the_first_stage_is_added_to_params_without_any(method):
    text = (
        "seed: 0\nsources: {}   # none yet\nstages: {}\n\ntuning: {bank_sizes: [50]}\n"
        f"bank: {{capacity: 100}}\ncontinual: {{method: {method}}}\n"
    )
    assert parse(text).tuned == []
    with pytest.raises(ConfigError, match="declares no stage yet: `canal stage add NAME"):
        _ = parse(text).root_stage
    first = with_stage(text, "blood", SOURCE, None)
    assert (parse(first).root_stage, parse(first).stages["blood"].parent) == ("blood", "backbone")
    second = parse(with_stage(first, "lung", SOURCE, None))
    assert second.stages["lung"].parent == "blood"
    assert second.tuned == (["lung"] if method == "combined" else [])


@pytest.mark.parametrize("name", ["pbmc3k", "backbone", "../x", "A", "x" * 65])
def test_a_name_that_is_taken_or_unsafe_is_refused(name):
    with pytest.raises(ConfigError):
        with_stage(TEXT, name, SOURCE, "pbmc3k")


def test_an_unknown_parent_is_refused():
    with pytest.raises(ConfigError, match="--parent: 'nowhere' is no stage"):
        with_stage(TEXT, "lung", SOURCE, "nowhere")


def test_relearning_touches_the_stage_and_what_was_learned_on_it():
    text, touched = with_branch(TEXT, "kang-ifnb")
    assert touched == ["kang-ifnb", "tumour"]
    config = parse(text)
    assert [config.stages[name].branch for name in config.stages] == [1, 1, 2, 2]
    assert len(changed(TEXT, text)) <= 4
    again, _ = with_branch(text, "tumour")
    assert [parse(again).stages[name].branch for name in config.stages] == [1, 1, 2, 3]


def test_relearning_the_backbone_touches_everything():
    text, touched = with_branch(TEXT, "backbone")
    assert touched == ["backbone", "pbmc3k", "kang-ctrl", "kang-ifnb", "tumour"]
    assert parse(text).backbone.branch == 2


def test_relearning_keeps_comments():
    text, _ = with_branch(TEXT, "pbmc3k")
    assert parse(text).tuned == parse(TEXT).tuned
    comments = [line.split("#", 1)[1] for line in TEXT.splitlines() if "#" in line]
    assert all(comment in text for comment in comments)


def test_an_import_only_adds_lines_and_a_second_one_replaces_them():
    text = with_import(TEXT, "backbones/x", "1a" * 32)
    key = f"+     key: {'1a' * 32}"
    assert changed(TEXT, text) == ["+   imported:", "+     path: backbones/x", key]
    assert parse(text).backbone.imported.path == "backbones/x"
    again = with_import(text, "backbones/y", "2" * 64)
    assert len(changed(text, again)) == 4
    assert parse(again).backbone.imported.key == "2" * 64
    assert with_import(again, "backbones/y", "2" * 64) == again


def test_an_import_into_params_without_a_backbone_section_makes_one():
    start = TEXT.index("backbone:\n")
    text = TEXT[:start] + TEXT[TEXT.index("continual:\n") :]
    assert parse(with_import(text, "backbones/x", "1" * 64)).backbone.imported.key == "1" * 64


def test_an_import_beside_what_it_excludes_is_refused():
    text = TEXT.replace("backbone:\n", "backbone:\n  gene_embedding: genes.csv\n")
    with pytest.raises(ConfigError, match=r"backbone\.imported: .* remove gene_embedding, or"):
        with_import(text, "backbones/x", "1" * 64)


def test_relearning_what_is_not_there_is_refused():
    with pytest.raises(ConfigError, match="no stage 'lung'; there are backbone, pbmc"):
        with_branch(TEXT, "lung")


def test_a_file_without_its_units_is_told_what_is_missing(tmp_path):
    said = CliRunner().invoke(app, ["stage", "add", "x", "--file", "a.h5ad", "--root", str(tmp_path)])
    assert isinstance(said.exception, ConfigError)
    assert str(said.exception).endswith("give one of the two; --values, the units of a.h5ad, is missing")


def test_a_lineage_without_a_network_has_no_sources_that_pre_train_one():
    atlas = "sources:\n  atlas: {path: x.h5ad, sha256: '" + "a" * 64 + "', values: counts}\n"
    with_atlas = TEXT.replace("sources:\n", atlas, 1).replace(
        "backbone:\n", "backbone:\n  unlabelled: [atlas]\n"
    )
    assert parse(with_atlas).backbone.unlabelled == ("atlas",)
    text = with_withdrawal(with_atlas, "pbmc3k", (["A.1"], None), ["backbone", "pbmc3k"])
    assert (parse(text).backbone.unlabelled, parse(text).trains_network) == ((), False)
    text = with_withdrawal(with_atlas, "kang-ctrl", (["A.1"], None), ["kang-ctrl"])
    assert parse(text).backbone.unlabelled == ("atlas",)


def test_cells_leave_the_shipped_params_and_their_stages_get_a_branch_and_the_exact_method():
    """Also where the only tuned stage becomes one that is not."""
    text = with_withdrawal(TEXT, "kang-ctrl", (["A.1"], "donor 7"), ["kang-ctrl", "kang-ifnb"])
    config = parse(text)
    assert config.sources["kang-ctrl"].exclude.model_dump() == {"cells": ("A.1",), "batches": ("donor 7",)}
    assert [config.stages[name].branch for name in config.stages] == [1, 2, 2, 1]
    assert [config.learning(name).method for name in config.stages] == ["combined", "exact", "exact", "exact"]
    assert config.tuned == []
    again = parse(with_withdrawal(text, "kang-ctrl", (["A.1", "B.1"], None), ["kang-ctrl"]))
    assert again.sources["kang-ctrl"].exclude.model_dump() == {
        "cells": ("A.1", "B.1"),
        "batches": ("donor 7",),
    }
    lost = [
        line.split("#")[1] for line in TEXT.splitlines() if "#" in line and line.split("#")[1] not in text
    ]
    assert lost == []
