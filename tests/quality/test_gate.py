"""The gate as a whole: its verdict's bytes, its pages, and what it refuses to judge."""

import dataclasses
import html
import json
import re
import subprocess
import sys

import anndata
import pytest

from canal.config.sections import Gate
from canal.core.digests import file_digest, json_digest
from canal.core.errors import DataError, GateError
from canal.data.prepare import prepare, prepare_absent
from canal.quality.gate import judge, judge_file
from canal.quality.verdict import EarlierStage
from tests.support.cases import NO_SPLIT, PANEL, SETTINGS, StageCase, relabelled
from tests.support.cells import make_adata

pytestmark = pytest.mark.xdist_group("gate")  # with those of test_rules


@pytest.fixture
def subject(earlier, tmp_path):
    """Return an intact stage, prepared."""
    subject = StageCase(earlier=dict(earlier)).subject(tmp_path)
    prepare(subject.raw, "second", subject.source, SETTINGS, tmp_path / "prepared")
    return dataclasses.replace(subject, prepared=tmp_path / "prepared", split_sha256="7" * 64)


def test_a_verdict_is_about_these_bytes_and_repeats_exactly(subject, tmp_path):
    for name in ("a", "b"):
        judge(subject, Gate()).write(tmp_path / name / "verdict.json")
    text = (tmp_path / "a" / "verdict.json").read_text()
    assert text == (tmp_path / "b" / "verdict.json").read_text()
    assert str(tmp_path) not in text
    document = json.loads(text)
    assert document["passed"] is True
    assert document["source_sha256"] == file_digest(subject.raw)
    assert document["prepared_sha256"] == file_digest(subject.prepared / "cells.h5ad")
    assert document["declaration_digest"] == json_digest(subject.source.declaration())
    assert document["split_sha256"] == "7" * 64
    assert document["panel_digest"] == json_digest(PANEL)
    assert document["counts"]["types"] == {"B": 30, "NK": 30, "Treg": 30}


def test_a_file_and_its_prepared_folder_get_the_same_verdict(subject):
    whole = dataclasses.replace(judge(subject, Gate()), split_sha256=None)
    looked_at = dataclasses.replace(subject, prepared=None, split_sha256=None)
    assert judge_file(looked_at, SETTINGS, Gate()) == whole


def test_types_may_be_called_by_any_signs(tmp_path):
    """As mlflow/mlflow#9425 and #1164 report them."""
    names = ["CD4+ T", "γδ T", "NK/T (CD56++)", "Mono, CD14%", "50", "B\u00a0cell"]
    verdict = StageCase(adata=make_adata(dict.fromkeys(names, 15), seed=1)).judged(tmp_path)
    assert [rule.rule for rule in verdict.failures("error")] == []
    assert verdict.counts["types"] == dict.fromkeys(names, 15)


def test_labels_as_nullable_strings_are_labels(tmp_path):
    """As in scverse/anndata#2221: pandas 3 writes texts, and names, as nullable strings."""
    case = StageCase()
    plain = case.judged(tmp_path)
    case.adata.obs["cell_type"] = case.adata.obs["cell_type"].astype("string")
    case.adata.obs.index = case.adata.obs.index.astype("string")
    with anndata.settings.override(allow_write_nullable_strings=True):
        verdict = case.judged(tmp_path)
    assert (verdict.counts, verdict.passed) == (plain.counts, plain.passed)


def test_great_expectations_writes_pages_that_need_no_network(tmp_path):
    case = StageCase(gate={"min_cells": 1000})
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "old.html").write_text("left from before")
    case.judged(tmp_path, tmp_path / "docs")
    assert not (tmp_path / "docs" / "old.html").exists()
    pages = {page.relative_to(tmp_path / "docs"): page.read_text() for page in tmp_path.rglob("*.html")}
    remote = re.compile(r"<(?:link|script|img)\b[^>]*https?://|url\(['\"]?https?://")
    assert not [name for name, text in pages.items() if remote.search(text)]
    result = next(name for name in pages if name.parts[0] == "validations")
    assert "enough_cells (error): at least 1000 prepared cells" in pages[result]
    assert "Failed" in pages[result]
    index = (tmp_path / "docs" / "index.html").read_text()
    assert result.as_posix() in index


def words_of(page):
    """Return the text of a page, without its markup."""
    text = re.sub(r"<(script|style)\b.*?</\1>", " ", page.read_text(), flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", text)))


def test_pages_of_a_gate_that_warns_tell_names_and_shares_of_what_is_meant(tmp_path):
    case = StageCase(gate={"max_imbalance": 4.5})
    case.adata = relabelled(case.adata, slice(0, 6), "plasma")[:, 20:].copy()
    verdict = case.judged(tmp_path, tmp_path / "docs")
    assert verdict.passed
    (page,) = (tmp_path / "docs" / "validations").rglob("*.html")
    told = words_of(page)
    assert "Status: Succeeded" in told
    assert "(warning): no type with 4.5 times fewer cells than the largest; found 1 of 4 types" in told
    assert "1 unexpected values found. 25% of 4 total rows." in told
    assert "Unexpected Value Count cell type" in told
    assert "plasma" in told
    lacking = verdict.counts["panel_genes"] - verdict.counts["shared_panel_genes"]
    assert f"{lacking} unexpected values found. ≈33.33% of 60 total rows." in told
    assert f"panel gene 0.0 {lacking} CD3D, GENE002," in told
    assert "df.filter" not in told


def test_pages_name_the_genes_that_drifted(earlier, tmp_path):
    case = StageCase(earlier=dict(earlier))
    case.adata.X = case.adata.X[:, ::-1].copy()
    verdict = case.judged(tmp_path, tmp_path / "docs")
    (drifted,) = (rule.examples for rule in verdict.rules if rule.rule == "tokens_like_before")
    (page,) = (tmp_path / "docs" / "validations").rglob("*.html")
    told = words_of(page)
    assert "total rows. Sampled Unexpected Values Count panel gene (" in told
    assert "of 60 total rows" in told
    assert any(f"') 1 {example.split()[0]} " in told for example in drifted)


def test_changed_bytes_are_not_judged(subject):
    with (subject.prepared / "cells.h5ad").open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(GateError, match="the prepared file changed since it was prepared"):
        judge(subject, Gate())


def test_a_changed_declaration_is_not_judged(subject):
    changed = subject.source.model_copy(update={"values": "log1p_10k"})
    with pytest.raises(GateError, match="the declaration changed since"):
        judge(dataclasses.replace(subject, source=changed), Gate())


def test_a_source_that_is_not_there_is_not_judged(subject, tmp_path):
    with pytest.raises(GateError, match="is not prepared"):
        judge(dataclasses.replace(subject, prepared=None), Gate())
    prepare_absent("second", subject.source, tmp_path / "absent")
    with pytest.raises(GateError, match="available: false"):
        judge(dataclasses.replace(subject, prepared=tmp_path / "absent"), Gate())


def test_an_earlier_profile_on_another_panel_is_refused(subject):
    profile = dataclasses.replace(subject.earlier["first"].profile, panel_digest="0" * 64)
    moved = dataclasses.replace(subject, earlier={"first": EarlierStage(NO_SPLIT, profile)})
    with pytest.raises(GateError, match="stage first is about another panel"):
        judge(moved, Gate())


def test_structural_faults_are_raised_by_prepare(tmp_path):
    with pytest.raises(DataError, match="lineage"):
        StageCase(declaration={"label": "lineage"}).judged(tmp_path)
    subject = dataclasses.replace(StageCase().subject(tmp_path), raw=tmp_path / "gone.h5ad")
    with pytest.raises(DataError, match="no such file"):
        judge_file(subject, SETTINGS, Gate())


def test_the_room_is_imported_without_what_it_must_not_know_and_without_what_is_slow():
    code = (
        "import sys, canal.quality.gate;"
        "print(*{'torch', 'mlflow', 'dvc', 'great_expectations', 'pandas', 'anndata'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""
