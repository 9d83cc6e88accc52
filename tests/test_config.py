"""params.yaml: what is wrong is named by the path of its key."""

from pathlib import Path

import pytest

from canal.errors import ConfigError
from canal.params import load_config, parse_config
from tests.make import make_config, make_document

ROOT = Path(__file__).resolve().parents[1]


def test_the_projects_own_params_are_valid_and_ordered():
    config = load_config(ROOT / "params.yaml")
    assert config.ancestors("tumour-myeloid") == ["pbmc", "tumour-lymphoid"]
    assert config.root_stage == "pbmc"
    assert (config.continual.distillation, config.continual.learning_rate) == (0.1, 2e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gate": {"min_cell": 3}}, r"gate\.min_cell: unknown key"),
        ({"seed": "zero"}, r"seed: .*integer.*'zero'"),
        (
            {"split": {"train": 0.9, "validation": 0.2, "test": 0.2}},
            r"split: train \+ validation \+ test must be 1",
        ),
        ({"stages": {}}, r"stages: at least one stage"),
        (
            {"stages": {"first": {"source": "lost", "parent": "backbone"}}},
            r"stages\.first\.source: no source 'lost'",
        ),
        (
            {
                "stages": {
                    "first": {"source": "first", "parent": "backbone"},
                    "second": {"source": "second", "parent": "third"},
                }
            },
            r"stages\.second\.parent: 'third' is no stage above",
        ),
        ({"panel": {"stage": "second"}}, r"panel\.stage: must name the one stage"),
        ({"backbone": {"extra_stages": ["nowhere"]}}, r"backbone\.extra_stages: no stage 'nowhere'"),
        ({"backbone": {"preset": "huge"}}, r"backbone\.preset: .*'tiny', 'small' or 'scbert'"),
        ({"backbone": {"imported": {"path": "x", "key": "1"}}}, r"backbone\.imported\.key: "),
        ({"backbone": {"imported": {"path": "x"}}}, r"backbone\.imported\.key: missing"),
        ({"stages": {"../up": {"source": "first", "parent": "backbone"}}}, r"is not a name"),
        ({"colour": {}}, r"colour: unknown key"),
        ({"cache": {"dtype": "float16"}}, r"cache\.dtype: .*'float32' or 'bfloat16'"),
        ({"cache": {"max_gb": -1}}, r"cache\.max_gb: .*greater than or equal to 0"),
    ],
)
def test_what_is_wrong_is_named(change, message):
    with pytest.raises(ConfigError, match=message):
        parse_config(make_document(**change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"url": "https://example.org/x.h5ad"}, r"exactly one of path, url and wheel; found path, url"),
        ({"path": None}, r"found none"),
        ({"sha256": "abc"}, r"sources\.first\.sha256"),
        ({"values": "raw"}, r"sources\.first\.values"),
        ({"duplicates": "sum", "values": "log1p_10k"}, r"duplicates: sum needs values: counts"),
        ({"where": {"tissue": "lung"}}, r"sources\.first\.where\.tissue"),
    ],
)
def test_a_wrong_source_is_named(change, message):
    document = make_document()
    document["sources"]["first"] |= change
    with pytest.raises(ConfigError, match=message):
        parse_config(document)


def test_all_problems_are_told_at_once():
    document = make_document(seed="x", gate={"min_cells": 0})
    with pytest.raises(ConfigError, match="2 problem"):
        parse_config(document)


def test_a_stage_overrides_what_it_names_and_nothing_else():
    document = make_document()
    document["stages"]["second"]["continual"] = {"distillation": 1.0}
    config = parse_config(document)
    assert config.learning("second").distillation == 1.0
    assert config.learning("second").bank_size == config.continual.bank_size
    assert config.learning("first") == config.continual


def test_sections_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        make_config().gate.min_cells = 3


def test_a_missing_or_broken_file_is_one_clear_error(tmp_path):
    with pytest.raises(ConfigError, match=r"params\.yaml not found"):
        load_config(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("a: [1")
    with pytest.raises(ConfigError, match="no valid YAML"):
        load_config(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("- 1")
    with pytest.raises(ConfigError, match="mapping of sections, found list"):
        load_config(tmp_path / "params.yaml")
