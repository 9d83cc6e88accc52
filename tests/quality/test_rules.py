"""Every rule of the gate, each with a file that breaks exactly that rule."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest

from canal.core.errors import DataError
from canal.data.prepare import prepare
from canal.data.prepared import PreparedCells
from canal.quality.verdict import EarlierStage
from tests.support.cases import (
    NO_SPLIT,
    PANEL,
    SETTINGS,
    TYPES,
    StageCase,
    changed,
    failed,
    relabelled,
    renamed,
)
from tests.support.cells import gene_names, make_adata
from tests.support.warm import REPOSITORY

pytestmark = pytest.mark.xdist_group("gate")  # one process imports Great Expectations for all

RULES_OF = ("rules", "symbols", "gate")
"""The modules that have rules of their own."""

LABEL_MAP = {name: name for name in TYPES}
TESTED_BEFORE = "not_tested_on_before"
BREAKS: dict[str, tuple[str, Callable[[StageCase], str]]] = {}


def breaks(rule: str) -> Callable[[Callable[[StageCase], str]], Callable[[StageCase], str]]:
    """Register a function that breaks ``rule`` and returns what the refusal has to say."""

    def register(function: Callable[[StageCase], str]) -> Callable[[StageCase], str]:
        BREAKS[function.__name__] = (rule, function)
        return function

    return register


def of_values(values: str) -> StageCase:
    return StageCase(adata=make_adata(TYPES, seed=1, values=values), declaration={"values": values})


@breaks("has_genes")
def no_genes(case):
    case.adata, case.earlier, case.panel = case.adata[:, :0].copy(), {}, []
    return "0 named genes"


@breaks("has_cells")
def no_cells(case):
    case.adata = case.adata[:0].copy()
    return "0 cells"


@breaks("enough_cells")
def few_cells(case):
    case.adata = case.adata[:49].copy()
    return "49 prepared cells"


@breaks("cell_ids_unique")
def repeated_cells(case):
    case.adata.obs_names = ["twin", "twin", *case.adata.obs_names[2:]]
    return "twin (2 times)"


@breaks("genes_unique")
def repeated_genes(case):
    case.adata = renamed(case.adata, {"GENE119": "GENE120"})
    return "GENE120 (2 times)"


@breaks("values_finite")
def not_a_number(case):
    case.adata.X.data[3] = np.nan
    return "1 of 90 cells"


@breaks("values_not_negative")
def below_zero(case):
    case.adata.X.data[3] = -1
    return "(1 values)"


@breaks("values_not_negative")
def z_scored(case):
    logarithms = of_values("log1p_10k")
    case.adata, case.declaration = logarithms.adata, logarithms.declaration
    case.adata.layers["plain"] = case.adata.X.copy()
    case.adata = changed(case.adata, lambda x: (x - x.mean(axis=0)) / (x.std(axis=0) + 1e-3))
    return "the file has X, plain"


@breaks("counts_are_whole")
def logarithms_as_counts(case):
    case.adata, case.earlier = of_values("log1p_10k").adata, {}
    return "look like log1p_10k: declare values: log1p_10k"


@breaks("logarithms_not_counts")
def counts_as_logarithms(case):
    case.declaration, case.earlier = {"values": "log1p_10k"}, {}
    return "declare values: counts"


@breaks("totals_within_10k")
def base_two_as_natural(case):
    case.adata, case.declaration = of_values("log2p_10k").adata, {"values": "log1p_10k"}
    case.earlier = {}
    return "declare values: log2p_10k"


@breaks("totals_within_10k")
def another_depth(case):
    scaled = changed(case.adata, lambda x: np.log2(1 + 2e4 * x / x.sum(axis=1, keepdims=True)))
    case.adata, case.declaration, case.earlier = scaled, {"values": "log2p_10k"}, {}
    return "base 2 of counts scaled to another sum than 10,000"


@breaks("logarithm_base")
def natural_as_base_two(case):
    case.adata, case.declaration = of_values("log1p_10k").adata, {"values": "log2p_10k"}
    case.earlier = {}
    return "declare values: log1p_10k"


def units_of(case, change, values):
    case.adata = changed(make_adata(TYPES, n_genes=300, seed=1), change)
    case.declaration, case.earlier = {"values": values}, {}
    return case


def per_cell(x):
    return x / x.sum(axis=1, keepdims=True)


@breaks("values_as_declared")
def logarithms_of_raw_counts(case):
    units_of(case, np.log1p, "log1p_10k")
    return "all are whole numbers once the natural logarithm is undone"


@breaks("values_as_declared")
def logarithms_of_samples_of_two_depths(case):
    depths = np.where(np.arange(90) < 45, 800.0, 2000.0)[:, None]
    units_of(case, lambda x: np.log1p(depths * per_cell(x)), "log1p_10k")
    return "800 or 2,000"


@breaks("values_beyond_doubt")
def corrected_logarithms(case):
    noise = np.random.default_rng(0).uniform(0.6, 0.95, (90, 300))
    units_of(case, lambda x: np.log1p(1e4 * per_cell(x)) * noise, "log1p_10k")
    return "no whole multiples"


@breaks("labels_present")
def null_labels(case):
    case.adata = relabelled(case.adata, slice(0, 4), None)
    return "4 of 90 cells"


@breaks("labels_in_map")
def unmapped_labels(case):
    case.adata = relabelled(case.adata, slice(0, 7), "Mystery")
    case.declaration = {"label_map": LABEL_MAP}
    return "Mystery (7 cells)"


@breaks("enough_cells_per_type")
def rare_type(case):
    case.adata = relabelled(case.adata, slice(0, 4), "plasma")
    return "plasma (4 cells)"


@breaks("types_are_types")
def labels_through_astype_str(case):
    case.adata = relabelled(case.adata, slice(0, 6), "nan")
    return "'nan' (6 cells)"


@breaks("types_are_types")
def low_quality_mapped_to_itself(case):
    case.adata = relabelled(case.adata, slice(0, 6), "Low_quality")
    case.declaration = {"label_map": LABEL_MAP | {"Low_quality": "Low_quality"}}
    return "'Low_quality' (6 cells)"


@breaks("types_told_apart")
def types_that_differ_in_case_and_blanks(case):
    case.adata = relabelled(case.adata, slice(0, 6), "t reg")
    return "'t reg' beside 'Treg'"


@breaks("types_told_apart")
def a_blank_at_the_end(case):
    case.adata = relabelled(case.adata, slice(0, 6), "plasma ")
    return "'plasma ' beside 'plasma'"


@breaks("types_told_apart")
def a_type_of_an_earlier_stage_spelt_otherwise(case):
    split = NO_SPLIT.reindex(range(1)).assign(set=["train"], cell_digest=["0"], cell_type=["treg"])
    case.earlier = {name: EarlierStage(split, one.profile) for name, one in case.earlier.items()}
    return "'Treg' beside 'treg'"


@breaks("types_balanced")
def lopsided(case):
    case.adata, case.gate = relabelled(case.adata, slice(0, 6), "plasma"), {"max_imbalance": 4.5}
    return "plasma ("


@breaks("types_in_every_set")
def untrained(case):
    case.drawn = {"B": None, "NK": None, "Treg": "3 cells: no training"}
    return "1 of 3 types Treg (3 cells: no training) give more cells"


@breaks("symbols_not_ensembl")
def ensembl_ids(case):
    names = {name: f"ENSG{number:011d}" for number, name in enumerate(case.adata.var_names)}
    case.adata, case.earlier, case.panel = renamed(case.adata, names), {}, []
    return "gene_column"


@breaks("symbols_human")
def mouse_genes(case):
    names = {name: name.capitalize() for name in case.adata.var_names}
    case.adata, case.earlier, case.panel = renamed(case.adata, names), {}, []
    return "another species"


@breaks("symbols_known")
def another_species_in_capitals(case):
    """As yeast's common names, a fly's or a fish's are where somebody wrote them in capitals."""
    case.adata = make_adata(TYPES, n_genes=1200, seed=1)
    case.earlier, case.panel = {}, []
    return "these look like genes of another species, spelt alike: canal learns human and mouse genes"


@breaks("panel_covered")
def few_panel_genes(case):
    case.adata = renamed(case.adata, {name: f"OTHER-{name}" for name in PANEL[:40]})
    return "33% (20 of 60)"


@breaks("panel_well_covered")
def some_panel_genes(case):
    case.adata = renamed(case.adata, {name: f"OTHER-{name}" for name in PANEL[:20]})
    return "67% (40 of 60)"


@breaks("tokens_like_before")
def shuffled_genes(case):
    order = np.roll(np.arange(120), 7)
    case.adata = changed(case.adata, lambda x: x[:, order])
    return "(PSI "


@breaks("depth_like_before")
def shallow(case):
    generator = np.random.default_rng(0)
    case.adata = changed(case.adata, lambda x: generator.binomial(x.astype(int), 0.1))
    case.gate = {"max_drift": 100.0}
    return "a median cell expresses"


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_file_breaks_exactly_one_rule(name, earlier, tmp_path):
    rule, function = BREAKS[name]
    case = StageCase(earlier=dict(earlier))
    said = function(case)
    verdict = case.judged(tmp_path)
    assert failed(verdict) == [rule]
    result = next(result for result in verdict.rules if result.rule == rule)
    assert said in " ".join([result.found, *result.examples, result.hint])
    assert result.hint
    assert verdict.passed is (result.severity == "warning")


def test_a_cell_that_an_earlier_stage_tests_on_is_refused(earlier, tmp_path):
    case = StageCase()
    subject = case.subject(tmp_path)
    prepare(subject.raw, "first", subject.source, SETTINGS, tmp_path / "first")
    digests = PreparedCells(tmp_path / "first" / "cells.h5ad").obs["cell_digest"].tolist()
    split = NO_SPLIT.reindex(range(4)).assign(
        set=["test", "test", "train", "validation"], cell_digest=digests[:4]
    )
    case.earlier = {"first": EarlierStage(split, earlier["first"].profile)}
    verdict = case.judged(tmp_path)
    assert failed(verdict) == [TESTED_BEFORE]
    [example] = verdict.failures("error")[0].examples
    assert re.fullmatch(r"first \(2 cells, such as \S+\)", example)
    assert verdict.write_failing(tmp_path / "cells.csv") == 2
    lines = (tmp_path / "cells.csv").read_text().splitlines()
    assert lines[0] == "rule,severity,name"
    assert all(line.startswith(f"{TESTED_BEFORE},error,") for line in lines[1:])
    assert len({line.rpartition(",")[2] for line in lines[1:]}) == 2
    assert "failing" not in verdict.document()["rules"][0]
    with pytest.raises(DataError, match=r"cells\.csv cannot be written"):
        verdict.write_failing(tmp_path / "cells.csv")


def test_a_test_cell_that_the_backbone_saw_without_its_label_is_refused(earlier, tmp_path):
    case = StageCase(earlier=dict(earlier), pretrained={})
    subject = case.subject(tmp_path)
    prepare(subject.raw, "second", subject.source, SETTINGS, tmp_path / "second")
    assert failed(case.judged(tmp_path)) == []
    digests = PreparedCells(tmp_path / "second" / "cells.h5ad").obs["cell_digest"].tolist()
    case.pretrained = dict.fromkeys(digests[:3], "atlas")
    verdict = case.judged(tmp_path)
    assert failed(verdict) == ["not_pretrained_on"]
    [example] = verdict.failures("error")[0].examples
    assert re.fullmatch(r"atlas \(3 cells, such as \S+\)", example)


ABOUT_LABELS = {"labels_present", "enough_cells_per_type", "types_balanced"}
ABOUT_LABELS |= {"types_are_types", "types_told_apart"}


def test_a_file_without_labels_is_judged_by_every_other_rule(earlier, tmp_path):
    case = StageCase(earlier=dict(earlier))
    rules = {rule.rule for rule in case.judged(tmp_path).rules}
    case.unlabelled, case.declaration = True, {"label": None}
    del case.adata.obs["cell_type"]
    verdict = case.judged(tmp_path)
    assert (failed(verdict), verdict.counts["types"]) == ([], {})
    assert {rule.rule for rule in verdict.rules} == rules - ABOUT_LABELS
    case.adata = changed(case.adata, lambda x: x - 1)
    assert failed(case.judged(tmp_path)) == ["values_not_negative"]


def test_a_lineage_of_a_mouse_takes_its_symbols_and_no_others(tmp_path):
    case = StageCase(panel=[])
    human = case.adata.var_names
    case.gate = {"species": "mouse"}
    assert failed(case.judged(tmp_path)) == ["symbols_mouse"]
    case.adata = renamed(case.adata, {name: name.capitalize() for name in human})
    assert failed(case.judged(tmp_path)) == []
    case.gate = {}
    assert failed(case.judged(tmp_path)) == ["symbols_human"]


@pytest.mark.parametrize("values", ["counts", "log1p_10k", "log2p_10k"])
def test_an_intact_file_passes_without_a_warning(values, earlier, tmp_path):
    case = of_values(values)
    case.declaration["label_map"] = LABEL_MAP
    case.earlier = dict(earlier)
    verdict = case.judged(tmp_path)
    assert failed(verdict) == []
    assert verdict.passed
    assert verdict.counts["types"] == TYPES
    # Every rule has a file above that breaks it.
    assert {rule.rule for rule in verdict.rules} <= {rule for rule, _ in BREAKS.values()} | {TESTED_BEFORE}


def test_a_drawn_split_with_every_type_in_every_set_passes(earlier, tmp_path):
    case = StageCase(earlier=dict(earlier), drawn=dict.fromkeys(TYPES))
    verdict = case.judged(tmp_path)
    assert failed(verdict) == []
    assert "types_in_every_set" in {rule.rule for rule in verdict.rules}


def test_words_for_no_type_may_be_mapped_to_null_or_to_a_type(earlier, tmp_path):
    case = StageCase(earlier=dict(earlier))
    case.adata = relabelled(relabelled(case.adata, slice(0, 5), "doublet"), slice(5, 8), "b")
    case.declaration = {"label_map": LABEL_MAP | {"doublet": None, "b": "B"}}
    assert failed(case.judged(tmp_path)) == []


def test_what_the_declaration_leaves_out_breaks_nothing(earlier, tmp_path):
    case = StageCase(earlier=dict(earlier))
    case.adata = relabelled(renamed(case.adata, {"GENE119": "GENE120"}), slice(0, 2), "ILC3")
    case.declaration = {"label_map": {**LABEL_MAP, "ILC3": None}, "duplicates": "sum"}
    verdict = case.judged(tmp_path)
    assert failed(verdict) == []
    assert verdict.counts["cells"] == 88
    assert verdict.counts["genes"] == 119


def test_all_rules_are_reported_not_just_the_first(tmp_path):
    case = StageCase(panel=gene_names(120))
    case.adata = relabelled(case.adata, slice(0, 2), None)
    case.adata.X.data[:2] = [-1, np.nan]
    assert failed(case.judged(tmp_path)) == ["values_finite", "values_not_negative", "labels_present"]


def test_a_first_stage_has_nothing_to_drift_from(tmp_path):
    verdict = StageCase().judged(tmp_path)
    found = {rule.rule: rule.found for rule in verdict.rules}
    assert verdict.passed
    assert found["tokens_like_before"] == found["depth_like_before"] == "nothing to compare with"


def test_every_rule_stands_in_the_docs_with_what_it_asks_for():
    """The gate's table names them, and a reader looks them up by that name."""
    code = "".join((REPOSITORY / "src/canal/quality" / f"{name}.py").read_text() for name in RULES_OF)
    names = set(re.findall(r'Rule\(\s*"([a-z_]+)"', code)) | {"symbols_human", "symbols_mouse"}
    page = (REPOSITORY / "docs" / "gate.md").read_text()
    assert len(names) > 25
    assert sorted(name for name in names if f"`{name}`" not in page) == []
