"""What the audit says of sums that were changed, and of cells that may not be in them any more."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from canal.core.digests import tree_digests
from canal.core.errors import SumsError
from canal.core.files import read_json, write_json
from canal.memory.answer import ExactAnnotator
from canal.memory.classifier import ExactClassifier
from canal.memory.levels import Basis
from canal.memory.stage_sums import StageSums
from canal.memory.sums import Sums
from canal.registry.audit.full_audit import audit
from canal.registry.audit.kept_cells import check_sums
from canal.registry.audit.version_files import AuditLog
from canal.registry.manifest.version_folder import KEY_FILE, read_key
from canal.registry.provenance.registered import RegisteredVersion
from tests.pipeline.conftest import Line, copied
from tests.support.methods import learned_by

CHAIN = ("backbone", "first", "second", "third")


@pytest.fixture(scope="module")
def exact(tmp_path_factory) -> Line:
    """Return a project of sums alone, which no test changes."""
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    return learned_by("exact", tmp_path_factory)


@pytest.fixture
def line(exact, tmp_path) -> Line:
    """Return a copy of the project."""
    return copied(exact, tmp_path / "project")


def members(line: Line, newest: Path, key: dict[str, Any]) -> list[RegisteredVersion]:
    """Return the chain of the third stage, its newest member in another folder and with another key."""
    folders = [line.root / "models" / stage for stage in CHAIN[:-1]]
    found = [RegisteredVersion(f"v-{one.name}", one, read_key(one), "0" * 64, None) for one in folders]
    return [*found, RegisteredVersion("v-third", newest, key, "0" * 64, None)]


def forged(line: Line, tmp_path: Path, change: Callable[[Path, dict[str, Any]], None]) -> list[str]:
    """Change the third stage's folder, let its key agree with all that lies there; return what is found."""
    folder = tmp_path / "forged"
    shutil.copytree(line.root / "models" / "third", folder)
    key = copy.deepcopy(read_key(folder))
    (folder / KEY_FILE).unlink()
    change(folder, key)
    key["files"] = tree_digests(folder)
    basis = Basis.load(folder / "model" / "exact" / "basis")
    key["basis"] = {"digest": basis.digest, "seen": basis.seen}
    key["sums"] = {one.stem: Sums.load(one).digest for one in (folder / "sums").glob("*.safetensors")}
    log = AuditLog()
    check_sums(members(line, folder, key), log)
    return [one.what for one in log.findings]


def test_untouched_sums_hold(line, tmp_path):
    assert forged(line, tmp_path, lambda folder, key: None) == []


def resized(sums: Sums, more: int) -> Sums:
    """Return the sums with other numbers of cells of the first type."""
    counts = sums.counts.copy()
    counts[0] += more
    return Sums(sums.basis, sums.types, counts, sums.totals, sums.products)


def replace_sums(folder: Path, stage: str, change: Callable[[Sums], Sums]) -> None:
    path = folder / "sums" / f"{stage}.safetensors"
    changed = change(Sums.load(path))
    path.unlink()
    changed.save(path)


def other_counts(folder: Path, key: dict[str, Any]) -> None:
    replace_sums(folder, "third", lambda sums: resized(sums, 1))


def other_counts_of_an_ancestor(folder: Path, key: dict[str, Any]) -> None:
    replace_sums(folder, "first", lambda sums: resized(sums, 1))


def swapped(folder: Path, key: dict[str, Any]) -> None:
    replace_sums(folder, "third", lambda sums: Sums.load(folder / "sums" / "second.safetensors"))


def not_the_parents(folder: Path, key: dict[str, Any]) -> None:
    def change(sums: Sums) -> Sums:
        totals, products = sums.totals.copy(), sums.products.copy()
        products[0, 1] += 1
        return Sums(sums.basis, sums.types, sums.counts, totals, products)

    replace_sums(folder, "second", change)


def dropped(folder: Path, key: dict[str, Any]) -> None:
    (folder / "sums" / "first.safetensors").unlink()
    missing = read_json(folder / "sums" / "missing.json")
    del missing["first"]
    write_json(folder / "sums" / "missing.json", missing)


def other_weights(folder: Path, key: dict[str, Any]) -> None:
    solved(folder, lambda one: replace(one, own=replace(one.own, weights=one.own.weights + 2)))


def other_centroids(folder: Path, key: dict[str, Any]) -> None:
    solved(folder, lambda one: replace(one, centroids=one.centroids + 0.01))


def solved(folder: Path, change: Callable[[ExactClassifier], ExactClassifier]) -> None:
    """Change what was solved, and all that answer.json says of it."""
    path = folder / "model" / "exact"
    annotator = ExactAnnotator.load(path)
    replace(annotator, classifier=change(annotator.classifier)).save(path)


def other_settings(folder: Path, key: dict[str, Any]) -> None:
    key["request"]["memory"]["shrinkage"] = 0.5


def another_basis(folder: Path, key: dict[str, Any]) -> None:
    """Rename a gene in basis and panel; sums say of which basis they are."""
    path = folder / "model" / "exact" / "basis"
    old = Basis.load(path)
    new = Basis((*old.genes[:-1], "OTHER"), old.seen)
    new.save(path)
    for name in ("first", "second", "third"):
        replace_sums(
            folder, name, lambda one: Sums(new.digest, one.types, one.counts, one.totals, one.products)
        )
    (folder / "batches" / "own.safetensors").unlink()
    answer = folder / "model" / "exact" / "answer.json"
    document = read_json(answer)
    document["genes"][old.size - 1] = "OTHER"
    write_json(answer, document)


def other_origin(folder: Path, key: dict[str, Any]) -> None:
    path = folder / "model" / "exact" / "basis"
    Basis(Basis.load(path).genes, {"elsewhere": "1" * 64}).save(path)


def genes_lacking(folder: Path, key: dict[str, Any]) -> None:
    missing = read_json(folder / "sums" / "missing.json")
    missing["third"] = [Basis.load(folder / "model" / "exact" / "basis").genes[0]]
    write_json(folder / "sums" / "missing.json", missing)


def other_batches(folder: Path, key: dict[str, Any]) -> None:
    path = folder / "batches" / "own.safetensors"
    changed = resized(Sums.load(path), 1)
    path.unlink()
    changed.save(path)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (other_counts, "sums of other cells than split/cells.csv lets train: DC: 15 of 14"),
        (other_counts_of_an_ancestor, "sums of other cells than split/cells.csv of v-first lets train"),
        (other_counts_of_an_ancestor, "the sums of first are not those of v-second"),
        (swapped, "sums of other cells than split/cells.csv lets train"),
        (not_the_parents, "the sums of second are not those of v-second"),
        (dropped, "the sums of first are not those of v-first"),
        (other_weights, "solved again, give other weights than are stored: up to 2 units apart"),
        (other_centroids, "solved again, give other centroids"),
        (other_settings, "solved again, give other weights than are stored"),
        (another_basis, "the basis is not that of v-second: a lineage keeps one"),
        (other_origin, "the basis is said to be chosen on cells of elsewhere, which this lineage has not"),
        (genes_lacking, "missing.json must name genes of the basis that have no sums"),
        (other_batches, "batches/own.safetensors does not add up to the sums of third"),
    ],
)
def test_what_was_forged_with_all_its_digests_is_found(exact, tmp_path, change, expected):
    found = forged(exact, tmp_path, change)
    assert any(expected in one for one in found), found


def test_every_flipped_byte_is_named(line):
    project = line.project()
    folder = project.store.artifacts(project.store.version("3"))
    names = (
        "sums/first.safetensors",
        "sums/third.safetensors",
        "sums/missing.json",
        "batches/own.safetensors",
        "model/exact/weights.safetensors",
        "model/exact/basis/basis.json",
        "model/exact/answer.json",
    )
    for name in names:
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)
    report = audit(project.store, project.layout, project.config)
    messages = [one.what for one in report.findings if one.subject == "version 3"]
    assert [name for name in names if not any(one.startswith(f"{name} has sha256") for one in messages)] == []


def test_sums_are_added_up_again_where_the_cells_are(line):
    said = recomputed(line)
    assert [one for one in said if "recomputed from" in one] == [
        "first: recomputed from 48 cells, the same",
        "second: recomputed from 34 cells, the same",
        "third: recomputed from 24 cells, the same",
    ]
    (line.root / "prepared" / "second" / "cells.h5ad").unlink()
    said = recomputed(line)
    assert "second: cells gone: digest only" in said
    assert not any(one.startswith("second: recomputed") for one in said)


def recomputed(line: Line) -> list[str]:
    """Return what `canal audit --recompute` notes of sums; nothing else may be found."""
    report = json.loads(line.canal("audit", "--recompute", "--json"))
    assert report["findings"] == []
    return [one["what"] for one in report["notes"] if one["check"] == "sums"]


def test_a_cell_that_is_excluded_later_is_still_in_the_sums(line):
    split = pd.read_csv(line.root / "splits" / "first.csv", dtype=str)
    cell = split["cell_id"][split["set"] == "train"].iloc[0]
    line.edit(
        lambda document: document["sources"]["first"].update(
            exclude={"cells": [cell.removeprefix("first:")], "batches": []}
        )
    )
    report = json.loads(line.canal("audit", "--json"))
    notes = [(one["subject"], one["what"]) for one in report["notes"] if one["check"] == "exclusion"]
    for version in ("version 1", "version 2", "version 3"):
        messages = [what for subject, what in notes if subject == version]
        assert any(one.startswith("sums of first: 1 cells that are excluded by now") for one in messages), (
            notes
        )


def test_a_stage_whose_sums_hold_an_excluded_cell_under_another_name_is_found(line, tmp_path):
    """A later stage was learned when the cell was excluded: its sums of the first stage still hold it."""
    from canal.registry.audit.cells_used import check_exclusions

    split = pd.read_csv(line.root / "splits" / "first.csv", dtype=str)
    cell = split["cell_id"][split["set"] == "train"].iloc[0]
    chain = members(line, line.root / "models" / "third", read_key(line.root / "models" / "third"))
    chain[-1].key["request"]["cells"]["source"] = "first"
    chain[-1].key["request"]["cells"]["declaration"]["exclude"]["cells"] = [cell.removeprefix("first:")]
    log = AuditLog()
    check_exclusions([chain], lambda: chain, line.project().config, log)
    messages = [one.what for one in log.findings]
    assert messages == [f"sums of first: 1 cells that were excluded before it was learned: {cell}"]


def test_sums_of_a_folder_must_be_of_the_lineage(exact):
    with pytest.raises(SumsError, match="holds sums of first, second, which is no stage of this lineage"):
        StageSums.load(exact.root / "models" / "third", ("third",))
