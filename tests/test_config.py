"""params.yaml: what is wrong is named by the path of its key."""

import math
from pathlib import Path

import pytest

from canal.config.yaml_file import load_config, parse_config, parse_yaml, save
from canal.core.errors import ConfigError
from tests.support.cells import make_config, make_document, make_tuned_document, tuned_stages

ROOT = Path(__file__).resolve().parents[1]


def test_the_projects_own_params_are_valid_and_ordered():
    config = load_config(ROOT / "params.yaml")
    assert config.ancestors("tumour") == ["pbmc3k", "kang-ctrl", "kang-ifnb"]
    assert config.root_stage == "pbmc3k"
    assert config.tuned == ["kang-ctrl"]
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
        ({"split": {"rule": "by_type"}}, r"split\.rule: .*'independent'"),
        (
            {
                "split": {"rule": "independent"},
                "stages": {"first": {"source": "first", "parent": "backbone", "group_by_batch": True}},
            },
            r"stages\.first\.group_by_batch: true, but split\.rule is independent: .*the set of a batch "
            r"would depend on the batch's other cells\. Remove group_by_batch, or split\.rule",
        ),
        (
            {"stages": {}},
            r"panel\.stage: must name the one stage with parent: backbone \(none\), found .first",
        ),
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
        (
            {"stages": {"first": {"source": "first", "parent": "backbone", "panel": {"grow": 4}}}},
            r"stages\.first\.panel\.grow: the first stage chooses the whole panel: set panel\.size",
        ),
        ({"panel": {"stage": "first", "grow": 4}}, r"panel\.grow: unknown key"),
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


def with_corpus(source=None, backbone=None, **changes):
    """Return the document of two stages whose backbone also sees a source without labels, ``atlas``."""
    document = make_document(**changes)
    plain = {name: value for name, value in document["sources"]["first"].items() if name != "label"}
    document["sources"]["atlas"] = plain | (source or {})
    document["backbone"] |= {"unlabelled": ["atlas"]} | (backbone or {})
    return document


def without_label(document):
    del document["sources"]["second"]["label"]
    return document


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (with_corpus(backbone={"unlabelled": ["sky"]}), r"backbone\.unlabelled: no source 'sky'; there are"),
        (with_corpus(backbone={"unlabelled": ["atlas", "second"]}), r"unlabelled: stage second learns from"),
        (with_corpus(backbone={"unlabelled": ["atlas"] * 2}), r"backbone\.unlabelled: names a source twice"),
        (
            with_corpus(continual={"method": "exact"}),
            r"backbone\.unlabelled: no network is trained, .*set continual\.method: combined",
        ),
        (
            with_corpus(backbone={"imported": {"path": "x", "key": "1" * 64}}),
            r"backbone\.imported: an import is not pretrained here: remove unlabelled",
        ),
        (with_corpus({"label_map": {"a": "b"}}), r"sources\.atlas: label_map without label"),
        (without_label(make_document()), r"sources\.second\.label: missing: stage second learns cell types"),
        (without_label(with_corpus()), r"sources\.second\.label: missing"),
        (with_corpus(backbone={"max_unlabelled_cells": 1}), r"backbone\.max_unlabelled_cells"),
        (make_document(gate={"species": "rat"}), r"gate\.species: .*'human' or 'mouse'"),
    ],
)
def test_what_is_wrong_about_a_source_without_labels_is_named(document, message):
    with pytest.raises(ConfigError, match=message):
        parse_config(document)


def test_a_source_without_labels_may_be_there_as_long_as_no_stage_learns_from_it():
    assert parse_config(with_corpus()).backbone.unlabelled == ("atlas",)
    assert parse_config(with_corpus(backbone={"unlabelled": []})).sources["atlas"].label is None


def with_ontology(**ids):
    document = make_document()
    for name, one in ids.items():
        document["sources"][name] |= one
    return document


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ({"first": {"ontology": {"B": "CL:236"}}}, r"sources\.first\.ontology\.B: "),
        (
            {"first": {"ontology": {"B": "CL:0000236"}, "label_map": {"b cell": "B cell", "x": None}}},
            r"sources\.first: ontology names B, to which label_map maps nothing",
        ),
        (
            {"first": {"label_map": {"b": "B", "odd": " unassigned"}}},
            r"sources\.first\.label_map: 'odd' must not be mapped to Unassigned",
        ),
        (
            {"first": {"ontology": {"B": "CL:0000236"}}, "second": {"ontology": {"B": "CL:0000084"}}},
            r"sources\.second\.ontology\.B: CL:0000084, but sources\.first names it CL:0000236",
        ),
    ],
)
def test_ids_of_the_ontology_are_checked(ids, message):
    with pytest.raises(ConfigError, match=message):
        parse_config(with_ontology(**ids))


def test_ids_of_the_ontology_belong_to_a_source():
    config = parse_config(with_ontology(first={"ontology": {"B": "CL:0000236"}}))
    assert config.sources["first"].ontology == {"B": "CL:0000236"}
    assert config.sources["first"].declaration() == make_config().sources["first"].declaration()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"url": "ada:hunter2@host/x.h5ad"}, r"url: .*found 'ada:\*\*\*@host/x.h5ad'"),
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


def test_a_stage_is_fixed_or_tuned():
    config = parse_config(make_tuned_document())
    assert config.study("first") is None
    assert config.study("second") == config.tuning
    assert make_config(tuning={"bank_sizes": [12]}).study("second") is None


def grouped(change=lambda groups: None):
    """Return the document of a tuned second stage as an older canal wrote it, every stage in a group."""
    document = make_tuned_document()
    entries = {
        name: {key: one[key] for key in ("source", "parent")} for name, one in document["stages"].items()
    }
    document["finetune"] = {"fixed": {"first": entries["first"]}, "tuned": {"second": entries["second"]}}
    for stage in document["stages"].values():
        stage.pop("tune", None)
    change(document["finetune"])
    return document


def test_groups_of_an_older_canal_say_which_stages_are_tuned():
    assert parse_config(grouped()) == parse_config(make_tuned_document())
    assert parse_config(grouped(lambda groups: groups["tuned"].clear())).tuned == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda it: it["fixed"].update(lost=it["fixed"]["first"]), r"finetune\.fixed\.lost: no stage 'lost'"),
        (lambda it: it["tuned"].update(lost={}), r"finetune\.tuned\.lost: no stage 'lost'; there are first"),
        (lambda it: it.update(maybe={}), r"finetune: unknown key: stages\.NAME\.tune says whether"),
        (
            lambda it: it["tuned"].update(first={}),
            r"stages\.first\.tune: the first stage has neither teacher",
        ),
    ],
)
def test_a_group_that_does_not_fit_the_stages_is_named(change, message):
    with pytest.raises(ConfigError, match=message):
        parse_config(grouped(change))


@pytest.mark.parametrize(
    ("tuning", "message"),
    [
        ({"bank_sizes": [12, 41]}, r"tuning\.bank_sizes: 41 is more than .*bank\.capacity: 40"),
        ({"bank_sizes": [-1]}, r"tuning: bank_sizes must be 0 or more"),
        ({"bank_sizes": []}, r"tuning: give bank_sizes \(cells\) or bank_shares"),
        ({"bank_shares": [0.1, 1.5]}, r"tuning: bank_shares .* found 1\.5"),
        ({"distillation": {"low": 1.0}}, r"tuning\.distillation: .*0\.1, the published value"),
        ({"dimensions": ["batch_size"]}, r"tuning\.dimensions\.0: .*'learning_rate'"),
        ({"trials": 3}, r"tuning\.trials: unknown key"),
    ],
)
def test_a_study_that_cannot_be_is_named(tuning, message):
    document = make_tuned_document()
    document["tuning"] = document["tuning"] | tuning
    with pytest.raises(ConfigError, match=message):
        parse_config(document)


def test_what_is_tuned_is_not_set_as_well():
    document = make_tuned_document()
    document["stages"]["second"]["continual"] = {"learning_rate": 1e-3}
    assert parse_config(document).learning("second").learning_rate == 1e-3
    document["stages"]["second"]["continual"] = {"distillation": 1.0}
    with pytest.raises(ConfigError, match=r"stages\.second\.continual\.distillation: this stage is tuned"):
        parse_config(document)


def test_tuned_stages_need_a_section_tuning():
    document = make_document()
    document["stages"] = tuned_stages(document["stages"], ("second",))
    with pytest.raises(ConfigError, match=r"tuning: missing, but stages.NAME.tune is set for second"):
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
        make_config().gate.min_cells = 3  # type: ignore[misc]


def test_a_missing_or_broken_file_is_one_clear_error(tmp_path):
    with pytest.raises(ConfigError, match=r"params\.yaml not found"):
        load_config(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("a: [1")
    with pytest.raises(ConfigError, match="no valid YAML"):
        load_config(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("- 1")
    with pytest.raises(ConfigError, match="mapping of sections, found list"):
        load_config(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("# nothing yet")
    with pytest.raises(ConfigError, match="mapping of sections, found nothing"):
        load_config(tmp_path / "params.yaml")


def test_a_broken_file_is_told_by_its_line_without_advice_to_programmers(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("seed: 1\nthreads: 2\nseed: 2\n")
    with pytest.raises(ConfigError, match=r'duplicate key "seed".*\(line 3\)$'):
        load_config(path)
    document = make_config().model_dump(mode="json") | {"hooks": [{"on": ["promote"], "command": "rm -rf"}]}
    with pytest.raises(ConfigError, match=r"hooks\.0\.command: Input should be a list \(found 'rm -rf'\)"):
        parse_config(document)


def _doubled(first, line, n):
    return first + "".join(line.format(i, i - 1) for i in range(1, n))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: " + "[" * 100_000 + "]" * 100_000, "more than 50 levels deep"),
        ("".join(" " * i + "a:\n" for i in range(3000)), "more than 50 levels deep"),
        ("a: &x [1, *x]", r"the alias \*x refers to a value that contains it"),
        ("a: &x {<<: *x}", r"the alias \*x refers to a value that contains it"),
        (_doubled("a0: &a0 [x, x]\n", "a{0}: &a{0} [*a{1}, *a{1}]\n", 40), "more than 200,000 values"),
        (
            _doubled("a0: &a0 {x: 1}\n", "a{0}: &a{0} {{<<: [*a{1}, *a{1}]}}\n", 40),
            "more than 200,000 values",
        ),
        ("seed: 2001-99-99", "a value that cannot be read: month must be in 1..12"),
        ("seed: " + "9" * 5000, "a value that cannot be read"),
        ("seed: !!bool x", "a value that cannot be read"),
        ("seed: *unknown", "no valid YAML"),
        ("seed: 1\nseed: 2", "no valid YAML"),
        ("seed: !!python/object/apply:os.getcwd []", "no valid YAML"),
        ("seed: \x00", "no valid YAML"),
        (b"seed: \xff\xfe\xfa", "no valid YAML"),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_a_text_made_to_fill_the_memory_or_the_stack_is_one_message(tmp_path, text, message):
    path = tmp_path / "params.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=message):
        load_config(path)


def test_aliases_that_a_person_writes_are_read():
    assert parse_yaml("a: &x {b: [1, 2]}\nc: *x\nd: {<<: *x, e: 3}", "p") == {
        "a": {"b": [1, 2]},
        "c": {"b": [1, 2]},
        "d": {"b": [1, 2], "e": 3},
    }


# Who learns


def with_methods(first, second, tuned=False, **changes):
    """Return a document whose stages are learned by these methods; None: as ``continual`` says."""
    document = (make_tuned_document if tuned else make_document)(**changes)
    for name, method in (("first", first), ("second", second)):
        if method is not None:
            document["stages"][name]["continual"] = {"method": method}
    return document


def test_without_a_word_the_published_method_learns():
    config = make_config()
    assert {config.learning(stage).method for stage in config.stages} == {"published"}
    assert config.trains_network


@pytest.mark.parametrize(
    ("methods", "network"),
    [
        (("published", "exact"), True),
        (("published", "combined"), True),
        (("combined", "exact"), True),  # sums go on where a network stops
        (("combined", "published"), True),
        (("combined", "combined"), True),
        (("exact", "exact"), False),
    ],
)
def test_stages_may_be_learned_by_methods_that_follow_each_other(methods, network):
    config = parse_config(with_methods(*methods))
    assert tuple(config.learning(stage).method for stage in config.stages) == methods
    assert config.trains_network is network


@pytest.mark.parametrize("second", ["combined", "published", None])
def test_a_network_cannot_go_on_from_a_stage_that_has_none(second):
    message = r"stages\.second\.continual\.method: .* needs the network of its parent first, which is exact"
    with pytest.raises(ConfigError, match=message):
        parse_config(with_methods("exact", second))


def test_one_word_in_continual_is_for_all_stages():
    config = parse_config(make_document(continual={"method": "exact"}))
    assert not config.trains_network
    with pytest.raises(ConfigError, match=r"stages\.second\.continual\.method: published needs the network"):
        parse_config(with_methods(None, "published", continual={"method": "exact"}))


def test_an_exact_stage_has_nothing_to_tune():
    message = r"stages\.second\.tune: lambda and L are of the network, .* remove tune"
    with pytest.raises(ConfigError, match=message):
        parse_config(with_methods(None, "exact", tuned=True))
    assert parse_config(with_methods(None, "combined", tuned=True)).study("second") is not None


@pytest.mark.parametrize(
    ("memory", "message"),
    [
        ({"shrinkage": 1.5}, r"memory\.shrinkage: .*less than or equal to 1"),
        ({"soft": 0}, r"memory\.soft: .*greater than 0"),
        ({"reliable": 0}, r"memory\.reliable: .*greater than 0"),
        ({"own": math.nan}, r"memory\.own: .*finite"),
        ({"few": math.inf}, r"memory\.few: .*finite"),
        ({"shrink": 0.1}, r"memory\.shrink: unknown key"),
        ({"own": "much"}, r"memory\.own: "),
    ],
)
def test_how_sums_are_solved_is_checked(memory, message):
    with pytest.raises(ConfigError, match=message):
        parse_config(make_document(memory=memory))


def test_a_method_that_is_none_is_named():
    with pytest.raises(ConfigError, match=r"continual\.method: .*'published', 'exact' or 'combined'"):
        parse_config(make_document(continual={"method": "sums"}))


@pytest.mark.parametrize("method", ["published", "exact", "combined"])
def test_no_probe_need_be_kept(method):
    config = parse_config(make_document(probe={"max_cells": 0}, continual={"method": method}))
    assert config.probe.max_cells == 0


def test_params_yaml_that_changed_meanwhile_is_left_as_it_is(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("seed: 2")
    with pytest.raises(ConfigError, match="was changed while this command ran"):
        save(path, "seed: 3", "seed: 1")
    assert [one.read_text() for one in tmp_path.iterdir()] == ["seed: 2"]
    save(path, "seed: 3", "seed: 2")
    assert path.read_text() == "seed: 3"
