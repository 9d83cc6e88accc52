"""What an audit says of a lineage that was made by hand: nothing of a sound one, and each fault by name."""

import numpy as np
import pandas as pd
import pytest

from canal.config.stage_sections import Exclusion
from canal.core.digests import file_digest
from canal.core.files import read_json, write_json
from canal.quality.verdict import Profile, RuleResult, Verdict
from canal.registry.audit.cells_used import check_cells, check_exclusions
from canal.registry.audit.chain import check_chain, check_verdict, differing_tensors
from canal.registry.audit.version_files import AuditLog, check_files, check_key
from canal.registry.manifest.version_folder import NAMES, read_key, schema, schema_complaints, write_key
from tests.support.cells import make_config
from tests.support.lineage import add_records, make_lineage, make_specs, members, tensors


def findings(tmp_path, change=lambda specs: None):
    """Return what all checks find of a lineage after ``change`` of its specification."""
    specs = make_specs()
    change(specs)
    chain = members(make_lineage(tmp_path, specs))
    log = AuditLog()
    for length in range(1, len(chain) + 1):
        newest = chain[length - 1]
        check_key(newest, log)
        check_files(newest, log)
        check_verdict(chain[:length], log)
        check_chain(chain[:length], log)
        check_cells(chain[:length], log)
    return [str(one) for one in log.findings]


def test_a_sound_lineage_has_no_findings(tmp_path):
    assert findings(tmp_path) == []


@pytest.mark.parametrize(
    ("seen", "noted"),
    [(None, []), ("its own", []), ("8" * 64, ["second"]), ("unknown", ["second"])],
    ids=["not asked", "the same split", "another split", "an older key"],
)
def test_cells_that_a_backbone_saw_of_a_later_stage_are_those_of_its_split(tmp_path, seen, noted):
    chain = members(make_lineage(tmp_path, make_specs()))
    key = chain[0].key
    if seen is not None:
        key["request"] = key["request"] | {"backbone": {"extra_stages": ["second"]}}
    if seen not in (None, "unknown"):
        split = chain[-1].key["split"] if seen == "its own" else seen
        key["extra_stages"] = {"second": {"prepared_sha256": "2" * 64, "split": split, "verdict": "3" * 64}}
    assert schema_complaints("key", key) == []
    log = AuditLog()
    check_chain(chain, log)
    assert log.findings == []
    assert [str(note).split(":")[0] for note in log.notes] == noted


@pytest.mark.parametrize(
    ("digest", "passed", "found"),
    [
        ("second-new", True, []),
        ("test", True, ["second: cells"]),
        ("second-new", False, ["backbone: verdict"]),
    ],
    ids=["others", "a test cell", "a gate that did not pass"],
)
def test_what_a_backbone_saw_without_labels_is_no_test_cell_and_passed_its_gate(
    tmp_path, digest, passed, found
):
    folders = make_lineage(tmp_path, make_specs())
    chain = members(folders)
    tested = next(row[2] for row in chain[-1].rows.values() if row[3] == "test")
    with_corpus(folders["backbone"], tested if digest == "test" else digest, passed)
    chain = members(folders)
    assert schema_complaints("key", chain[0].key) == []
    log = AuditLog()
    check_cells(chain, log)
    for one in chain:
        check_verdict(chain[: chain.index(one) + 1], log)
    assert [f"{one.subject}: {one.check}" for one in log.findings] == found


def with_corpus(backbone, digest, passed):
    """Let a backbone's folder hold a corpus of one cell, and its key name it."""
    kept = backbone / "corpus" / "atlas"
    kept.mkdir(parents=True)
    row = {"cell_id": "atlas:x", "cell_type": "", "batch": "atlas", "cell_digest": digest, "set": "train"}
    pd.DataFrame([row]).to_csv(kept / "cells.csv", index=False)
    rule = RuleResult("values_finite", "error", passed, "no NaN", "1 NaN")
    profile = Profile("1" * 64, 1, 1.0, ())
    verdict = Verdict("atlas", "atlas", "2" * 64, "3" * 64, "4" * 64, None, {"cells": 1}, (rule,), profile)
    verdict.write(kept / "verdict.json")
    facts = {name: value for name, value in read_key(backbone).items() if name not in ("files", "format")}
    digests = {"cells": file_digest(kept / "cells.csv"), "verdict": file_digest(kept / "verdict.json")}
    facts["unlabelled"] = {"atlas": {"prepared_sha256": "3" * 64, **digests}}
    parent, _ = facts.pop("parent"), facts.pop("teacher", None)
    write_key(backbone, facts, parent)


def test_a_panel_that_grew_as_it_was_asked_to_has_no_findings(tmp_path):
    def grown(specs):
        specs["second"].grow = 2
        specs["second"].genes.append("CD14")

    assert findings(tmp_path, grown) == []


def bank(specs, *kept):
    specs["second"].bank = [*specs["second"].bank, *kept]


def add_row(specs, *row):
    specs["second"].rows.append(row)


CELLS = {
    "a validation cell in the bank": (
        lambda specs: bank(specs, ("second", "C4", "C", 3)),
        "second: bank/bank.h5ad: 1 cells are validation cells of second, not training cells: second:C4",
    ),
    "an unknown cell in the bank": (
        lambda specs: bank(specs, ("first", "Z9", "A", 3)),
        "second: bank/bank.h5ad: 1 cells are not in split/cells.csv of first: first:Z9",
    ),
    "a wrong label in the bank": (
        lambda specs: bank(specs, ("second", "C2", "A", 1)),
        "second: bank/bank.h5ad: 1 cells have another label than in split/cells.csv of second: second:C2",
    ),
    "a stage that is not in the chain": (
        lambda specs: bank(specs, ("third", "C2", "C", 1)),
        "second: bank/bank.h5ad: 1 cells claim stage third, which is not in the chain: third:C2",
    ),
    "a training cell in the probe": (
        lambda specs: specs["second"].probe.append(("second", "C1", "C", 0)),
        "second: probe/probe.h5ad: 1 cells are train cells of second, not validation cells: second:C1",
    ),
    "a test cell of the first stage trained by the second, by content": (
        lambda specs: add_row(specs, "D0", "C", "b1", "first-A-6", "train"),
        "second: split/cells.csv: 1 training cells of second are test cells of first by id or content: "
        "second:D0",
    ),
    "a training cell of the first stage tested by the second, by content": (
        lambda specs: add_row(specs, "D0", "C", "b1", "first-A-0", "test"),
        "second: split/cells.csv: 1 training cells of first are test cells of second by id or content: "
        "first:A0",
    ),
    "too many cells": (
        lambda specs: setattr(specs["second"], "capacity", 5),
        "second: bank/bank.h5ad holds 6 cells, its capacity is 5",
    ),
    "more than a type's share": (
        lambda specs: setattr(specs["second"], "capacity", 5),
        "second: bank/bank.h5ad holds more than 1 cells of A (2), B (2), C (2)",
    ),
    "a rank twice": (
        lambda specs: bank(specs, ("second", "C2", "C", 2)),
        "second: bank/bank.h5ad: 1 cells have a rank that another has, or that their type cannot have: "
        "second:C2 (rank 2 of 4)",
    ),
    "a rank beyond the number of candidates": (
        lambda specs: bank(specs, ("second", "C2", "C", 9)),
        "second: bank/bank.h5ad: 1 cells have a rank that another has, or that their type cannot have: "
        "second:C2 (rank 9 of 4)",
    ),
    "an old cell that the parent's bank had not": (
        lambda specs: bank(specs, ("first", "A3", "A", 4)),
        "second: bank/bank.h5ad: 1 cells of older stages are not in bank/bank.h5ad of first with that rank: "
        "first:A3",
    ),
    "a type without a label": (
        lambda specs: specs["second"].rows.append(("D0", "D", "b1", "second-D-0", "train")),
        "second: split/cells.csv trains types that model/labels.json lacks: D",
    ),
}


@pytest.mark.parametrize("fault", CELLS)
def test_every_wrong_cell_is_found(tmp_path, fault):
    change, expected = CELLS[fault]
    assert expected in findings(tmp_path, change)


LINKS = {
    "labels in another order": (
        lambda specs: setattr(specs["second"], "labels", ["B", "A", "C"]),
        "second: model/labels.json does not begin with the 2 labels of first: their order differs",
    ),
    "a label lost": (
        lambda specs: setattr(specs["second"], "labels", ["B", "C"]),
        "second: model/labels.json does not begin with the 2 labels of first: it lacks A",
    ),
    "another panel": (
        lambda specs: setattr(specs["second"], "genes", ["CD3D", "MS4A1", "LYZ"]),
        "second: model/genes.json differs from model/genes.json of first",
    ),
    "genes that nobody asked for": (
        lambda specs: specs["second"].genes.append("CD14"),
        "second: model/genes.json differs from model/genes.json of first",
    ),
    "more genes than were asked for": (
        lambda specs: (setattr(specs["second"], "grow", 1), specs["second"].genes.extend(["CD14", "CD4"])),
        "second: model/genes.json has 2 more than that of first, asked for were at most 1 new ones",
    ),
    "new genes ahead of the old": (
        lambda specs: (setattr(specs["second"], "grow", 1), specs["second"].genes.insert(0, "CD14")),
        "second: model/genes.json differs from model/genes.json of first",
    ),
    "another teacher": (
        lambda specs: setattr(specs["second"], "teacher", {"norm.bias": np.ones(3, np.float32)}),
        "second: teacher/weights.safetensors is not model/weights.safetensors of first: 1 tensors differ, "
        "norm.bias",
    ),
    "a gate that did not pass": (
        lambda specs: setattr(specs["second"], "passed", False),
        "second: validation/verdict.json: the gate did not pass, has_cells: expected cells; found some",
    ),
    "a verdict about other bytes": (
        lambda specs: specs["second"].judged.update(prepared_sha256="9" * 64),
        "second: validation/verdict.json is about prepared cells 999999999999..., learned was 22222222",
    ),
    "a verdict about another split": (
        lambda specs: specs["second"].judged.update(split_sha256="9" * 64),
        "second: validation/verdict.json is about split 999999999999...",
    ),
}


@pytest.mark.parametrize("fault", LINKS)
def test_every_broken_link_is_found(tmp_path, fault):
    change, expected = LINKS[fault]
    assert any(one.startswith(expected) for one in findings(tmp_path, change))


def test_a_teacher_of_the_same_tensors_in_another_file_is_told_apart(tmp_path):
    from safetensors.numpy import save_file

    save_file(tensors(1), tmp_path / "a", metadata={"x": "y"})
    save_file(tensors(1), tmp_path / "b")
    assert differing_tensors(tmp_path / "a", tmp_path / "b") == []
    save_file({"head.weight": tensors(1)["head.weight"]}, tmp_path / "b")
    assert differing_tensors(tmp_path / "a", tmp_path / "b") == ["norm.bias"]


def excluded(tmp_path, change, exclude):
    """Return findings and notes of the second stage where ``exclude`` stands in params.yaml for the first."""
    specs = make_specs()
    change(specs)
    chain = members(make_lineage(tmp_path, specs))
    config = make_config()
    source = config.sources["first"].model_copy(update={"exclude": Exclusion(**exclude)})
    config = config.model_copy(update={"sources": {**config.sources, "first": source}})
    log = AuditLog()
    check_exclusions([chain[:2], chain], lambda: chain, config, log)
    return [str(one) for one in log.findings], [str(one) for one in log.notes]


def test_without_an_exclusion_nothing_is_said(tmp_path):
    assert excluded(tmp_path, lambda specs: None, {}) == ([], [])


def test_cells_excluded_since_are_noted_not_found(tmp_path):
    wrong, notes = excluded(tmp_path, lambda specs: None, {"cells": ("A0",)})
    assert wrong == []
    assert [note.split(";")[0] for note in notes] == [
        "first: split/cells.csv: 1 cells that are excluded by now: first:A0",
        "first: bank/bank.h5ad: 1 cells that are excluded by now: first:A0",
        "second: bank/bank.h5ad: 1 cells that are excluded by now: first:A0",
    ]


def test_cells_excluded_before_may_not_reappear_by_id_batch_or_content(tmp_path):
    def by_id(specs):
        specs["second"].exclude = {"cells": ["C0"], "batches": ["b2"]}

    wrong, _ = excluded(tmp_path / "1", by_id, {})
    assert wrong[0] == (
        "second: split/cells.csv: 9 cells that were excluded before it was learned: second:B1, second:B3, "
        "second:B5, second:B7, second:C0 and 4 more"
    )
    assert wrong[1] == (
        "second: bank/bank.h5ad: 2 cells that were excluded before it was learned: second:C0, second:C1"
    )

    def by_content(specs):
        specs["first"].exclude = {"cells": ["Z0"], "batches": []}
        specs["first"].rows.append(("Z0", "A", "b1", "withdrawn", "validation"))
        specs["second"].rows.append(("C9", "C", "b1", "withdrawn", "validation"))

    wrong, _ = excluded(tmp_path / "2", by_content, {})
    assert "second: split/cells.csv: 1 cells that were excluded before it was learned: second:C9" in wrong


def test_the_key_contradicting_itself_is_found(tmp_path):
    folders = make_lineage(tmp_path, make_specs())
    key = read_json(folders["second"] / "key.json")
    write_json(folders["second"] / "key.json", key | {"split": "0" * 64, "request_digest": "0" * 64})
    log = AuditLog()
    check_key(members(folders)[-1], log)
    assert [one.what.split(" is ")[0] for one in log.findings] == [
        "key.json: request_digest",
        "key.json: split",
    ]


def test_the_schemas_are_valid_and_describe_what_is_written(tmp_path):
    from jsonschema import Draft202012Validator

    folders = make_lineage(tmp_path, make_specs())
    add_records(folders)
    for name in NAMES:
        Draft202012Validator.check_schema(schema(name))
        for folder in folders.values():
            assert schema_complaints(name, read_json(folder / f"{name}.json")) == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"format": 3}, "format: "),
        ({"parent": "x"}, "parent: 'x' is not valid"),
        ({"files": {"../x": "0" * 64}}, "files: '../x' does not match"),
        ({"files": {"a": "0" * 63}}, "files.a: "),
        ({"more": 1}, "the document: Additional properties are not allowed ('more' was unexpected)"),
        ({"data": {"source": "../x"}}, "data: 'source_sha256' is a required property"),
    ],
)
def test_a_document_that_breaks_its_schema_is_told_where(tmp_path, change, expected):
    folders = make_lineage(tmp_path, make_specs())
    document = read_json(folders["second"] / "key.json") | change
    assert any(what.startswith(expected) for what in schema_complaints("key", document))
