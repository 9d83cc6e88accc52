"""The rules of the gate in the order in which they are reported, each with its bound and its advice."""

from __future__ import annotations

from typing import TYPE_CHECKING

from canal.data.units import BASES, MAX_TOTAL
from canal.quality.rule import (
    Rule,
    absent,
    among,
    at_least_rows,
    between,
    describe_column,
    describe_coverage,
    describe_depth,
    describe_drift,
    describe_groups,
    describe_names,
    describe_quoted,
    describe_row_count,
    describe_texts,
    describe_units,
    describe_values,
    no_more_than,
    present,
    unique,
)
from canal.quality.symbols import symbol_rules

if TYPE_CHECKING:
    from canal.config.sections import Gate
    from canal.quality.evidence import Evidence
    from canal.quality.verdict import Subject


def rules_for(subject: Subject, evidence: Evidence, gate: Gate) -> list[Rule]:
    """Return the rules that apply to ``subject``."""
    logarithms = subject.source.values != "counts"
    return [
        *size_rules(subject, evidence, gate),
        *identity_rules(subject),
        *value_rules(subject, evidence),
        *(logarithm_rules(subject, evidence) if logarithms else count_rules(subject, evidence)),
        *unit_rules(subject, evidence),
        *(() if subject.unlabelled else (*label_map_rules(subject), *type_rules(subject, gate))),
        *(draw_rules() if subject.drawn is not None else ()),
        *symbol_rules(subject, gate, len(evidence.tables["gene"])),
        *(feature_rules() if "feature" in evidence.tables else ()),
        *panel_rules(subject, evidence, gate),
        *comparison_rules(subject, gate),
    ]


def size_rules(subject: Subject, evidence: Evidence, gate: Gate) -> list[Rule]:
    """Return the rules on the numbers of genes and cells."""
    # A declaration that leaves no cells fails has_cells alone.
    least = gate.min_cells if len(evidence.tables["cell"]) else 0
    source = f"sources.{subject.source_name}"
    return [
        Rule(
            "has_genes",
            "error",
            at_least_rows("gene", 1),
            "at least 1 named gene",
            f"check {source}.layer and gene_column",
            describe_row_count("named genes"),
        ),
        Rule(
            "has_cells",
            "error",
            at_least_rows("cell", 1),
            "at least 1 cell",
            f"check the file, and {source}.where, exclude and label_map",
            describe_row_count("cells that the declaration keeps"),
        ),
        Rule(
            "enough_cells",
            "error",
            at_least_rows("prepared cell", least),
            f"at least {gate.min_cells} prepared cells",
            f"give more cells, or lower min_genes (for {source}) or gate.min_cells",
            describe_row_count("prepared cells"),
        ),
    ]


def identity_rules(subject: Subject) -> list[Rule]:
    """Return the rules on names of cells and genes, and on cells that an earlier stage tests on."""
    source = f"sources.{subject.source_name}"
    return [
        Rule(
            "cell_ids_unique",
            "error",
            unique("cell", "cell_id"),
            "every cell name once",
            "make the names in obs unique in the file (anndata: obs_names_make_unique)",
            describe_groups("cells", "cell_id", "times"),
        ),
        Rule(
            "genes_unique",
            "error",
            unique("gene", "symbol"),
            "every gene symbol once",
            f"declare {source}.duplicates: sum (counts only), or make them unique in the file",
            describe_groups("genes", "symbol", "times"),
        ),
        Rule(
            "not_tested_on_before",
            "error",
            absent("prepared cell", "tested_in"),
            "no cell that an earlier stage tests on, compared by content",
            f"leave them out ({source}.exclude.cells or where): learning them makes old tests worthless",
            describe_groups("cells", "tested_in", "cells", "name"),
        ),
        *(() if subject.pretrained is None else (_not_pretrained_on(source),)),
    ]


def _not_pretrained_on(source: str) -> Rule:
    """Return the rule for stages of a lineage whose backbone saw an unlabelled source."""
    return Rule(
        "not_pretrained_on",
        "error",
        absent("prepared cell", "pretrained_in"),
        "no test cell that the backbone was pretrained on, compared by content",
        f"leave them out ({source}.exclude.cells or where), or out of the unlabelled source and learn the "
        "backbone again: canal stage relearn backbone",
        describe_groups("cells", "pretrained_in", "cells", "name"),
    )


def value_rules(subject: Subject, evidence: Evidence) -> list[Rule]:
    """Return the rules that hold for values of any unit."""
    return [
        Rule(
            "values_finite",
            "error",
            between("cell", "nonfinite", most=0),
            "no NaN and no infinite value",
            f"repair the file, or {layer_advice(subject, evidence)}",
            describe_values("cells", "nonfinite", "values"),
        ),
        Rule(
            "values_not_negative",
            "error",
            between("cell", "negative", most=0),
            "no value below 0",
            f"the matrix looks scaled or centred: {layer_advice(subject, evidence)}",
            describe_values("cells", "negative", "values"),
        ),
    ]


def count_rules(subject: Subject, evidence: Evidence) -> list[Rule]:
    """Return the rule for values that are declared as counts."""
    return [
        Rule(
            "counts_are_whole",
            "error",
            between("cell", "fractional", most=0),
            "counts: whole numbers only",
            units_advice(subject, evidence),
            describe_values("cells", "fractional", "fractional values"),
        )
    ]


def logarithm_rules(subject: Subject, evidence: Evidence) -> list[Rule]:
    """Return the rules for values that are declared as logarithms."""
    declared, advice = subject.source.values, units_advice(subject, evidence)
    return [
        Rule(
            "logarithms_not_counts",
            "error",
            between("cell", "fractional", least=1),
            f"{declared}: no cell of whole numbers only",
            advice,
            describe_names("cells"),
        ),
        Rule(
            "totals_within_10k",
            "error",
            between("cell", "total", most=MAX_TOTAL),
            f"{declared}: with the logarithm undone, at most {MAX_TOTAL:,.0f} in a cell",
            advice,
            describe_values("cells", "total", "in all"),
        ),
        Rule(
            "logarithm_base",
            "error",
            among("file", "units", [declared, declared.removesuffix("_10k")]),
            f"{declared}: with the logarithm undone, whole multiples of a cell's smallest value",
            advice,
            describe_units,
        ),
    ]


def unit_rules(subject: Subject, evidence: Evidence) -> list[Rule]:
    """Return the rules on the evidence of whole cells for the declared unit."""
    declared = subject.source.values
    way_out = f"give counts and declare values: counts, or {layer_advice(subject, evidence)}"
    return [
        Rule(
            "values_as_declared",
            "error",
            absent("file", "contradiction"),
            f"nothing that whole cells tell against {declared}",
            way_out,
            describe_column("contradiction"),
        ),
        Rule(
            "values_beyond_doubt",
            "warning",
            absent("file", "doubt"),
            f"values that whole cells prove to be {declared}",
            f"if genes were left out or values corrected after scaling, this is right; else {way_out}",
            describe_column("doubt"),
        ),
    ]


def label_map_rules(subject: Subject) -> list[Rule]:
    """Return the rules on published labels and their map to cell types."""
    source, known = f"sources.{subject.source_name}", subject.source.label_map
    rules = [
        Rule(
            "labels_present",
            "error",
            present("prepared cell", "label"),
            f"a label in obs[{subject.source.label!r}] for every cell",
            f"leave unlabelled cells out ({source}.where or exclude.cells)",
            describe_names("cells"),
        )
    ]
    if known is not None:
        rules.append(
            Rule(
                "labels_in_map",
                "error",
                among("prepared cell", "label", sorted(known)),
                f"one of the {len(known)} labels in {source}.label_map",
                "add them to the map; a label mapped to null is left out",
                describe_groups("cells", "label", "cells"),
            )
        )
    return rules


def type_rules(subject: Subject, gate: Gate) -> list[Rule]:
    """Return the rules on names and numbers of cell types."""
    label_map = f"sources.{subject.source_name}.label_map"
    return [
        Rule(
            "types_are_types",
            "error",
            absent("cell type", "no_type"),
            "names of cell types, not words for cells of none (unknown, nan, doublet …)",
            f"map such labels to a cell type, or to null, in {label_map} (canal stage add: --map CSV)",
            describe_quoted("cells"),
        ),
        Rule(
            "types_told_apart",
            "error",
            absent("cell type", "twin"),
            "no blanks at the ends of a name, and no two types that differ in case or blanks alone",
            f"map them to one name in {label_map} (canal stage add: --map CSV)",
            describe_quoted("twin"),
        ),
        Rule(
            "enough_cells_per_type",
            "error",
            between("cell type", "cells", least=gate.min_cells_per_type),
            f"at least {gate.min_cells_per_type} cells of every type",
            f"map the type to null or to another in sources.{subject.source_name}.label_map",
            describe_values("types", "cells", "cells", smallest=True),
        ),
        Rule(
            "types_balanced",
            "warning",
            between("cell type", "times_fewer", most=gate.max_imbalance),
            f"no type with {gate.max_imbalance:g} times fewer cells than the largest",
            "give more cells of the rare types; until then read their recall, not accuracy",
            describe_values("types", "times_fewer", "times fewer"),
        ),
    ]


def draw_rules() -> list[Rule]:
    """Return the rule for splits in which each cell is drawn by itself, so that a set may lack a type."""
    return [
        Rule(
            "types_in_every_set",
            "warning",
            absent("drawn type", "lacks"),
            "training, validation and test cells of every type (split.rule: independent draws each alone)",
            "give more cells of these types: a type without a training cell is not learned from this stage, "
            "and one without a test cell is not measured",
            describe_texts("types", "lacks"),
        )
    ]


def feature_rules() -> list[Rule]:
    """Return the rule for files that hold features other than genes."""
    return [
        Rule(
            "features_are_genes",
            "warning",
            absent("feature", "no_gene"),
            "gene expression alone",
            "what is no gene is left out of genes and totals; write the genes alone to be told no more",
            describe_groups("features", "no_gene", "features"),
        )
    ]


def panel_rules(subject: Subject, evidence: Evidence, gate: Gate) -> list[Rule]:
    """Return the rules on how many of the panel's genes the source has."""
    shared = evidence.tables["panel gene"]["shared"]
    coverage = float(shared.mean()) if len(shared) else 1.0
    # Below the hard bound the soft one has nothing to add.
    soft = gate.coverage_soft if coverage >= gate.coverage_hard else 0.0
    hint = f"genes it lacks are read as 0; check gene_column and layer of sources.{subject.source_name}"
    return [
        Rule(
            "panel_covered",
            "error",
            among("panel gene", "shared", [1.0], mostly=gate.coverage_hard),
            f"at least {gate.coverage_hard:.0%} of the panel's genes",
            hint,
            describe_coverage,
        ),
        Rule(
            "panel_well_covered",
            "warning",
            among("panel gene", "shared", [1.0], mostly=soft),
            f"at least {gate.coverage_soft:.0%} of the panel's genes",
            hint,
            describe_coverage,
        ),
    ]


def comparison_rules(subject: Subject, gate: Gate) -> list[Rule]:
    """Return the rules that compare the stage with earlier stages."""
    check = f"if new cell types or another protocol do not explain it, check sources.{subject.source_name}"
    return [
        Rule(
            "tokens_like_before",
            "warning",
            no_more_than("panel gene", "drift", "drift_allowed"),
            f"population stability index (PSI) of each gene at most {gate.max_drift:g}, or within chance",
            f"{check}.values and layer",
            describe_drift,
        ),
        Rule(
            "depth_like_before",
            "warning",
            between("file", "depth_ratio", most=gate.max_depth_ratio),
            f"median genes per cell within {gate.max_depth_ratio:g} times of an earlier stage",
            f"{check}.layer and min_genes",
            describe_depth,
        ),
    ]


# Advice where values contradict their declaration.


def layer_advice(subject: Subject, evidence: Evidence) -> str:
    """Return the advice to declare another matrix, with the names of those in the file."""
    return (
        f"set sources.{subject.source_name}.layer (now {subject.source.layer}) to one with plain values; "
        f"the file has {', '.join(evidence.layers)}"
    )


def units_advice(subject: Subject, evidence: Evidence) -> str:
    """Return the advice to declare the units that fit the values, as far as these are known."""
    units, declared = evidence.units, subject.source.values
    if units is None:
        known = f"counts, {', '.join(BASES)}"
        return f"declare the units the file has ({known}), or {layer_advice(subject, evidence)}"
    if units == "scaled":
        return f"the values look scaled: {layer_advice(subject, evidence)}"
    if units == "parts":
        scaled = "every cell has the same sum: these are scaled counts without a logarithm; sc.pp.log1p of"
        return f"{scaled} counts per 10,000 is log1p_10k; or {layer_advice(subject, evidence)}"
    if units == declared:
        return f"other cells do look like {declared}: look at these, or exclude them"
    if units == "counts" or units in BASES:
        return f"the values look like {units}: declare values: {units}"
    base = {"log1p": "e", "log2p": "2"}[units]
    return (
        f"the values look like logarithms to base {base} of counts scaled to another sum than 10,000: "
        f"scale the counts to 10,000, or {layer_advice(subject, evidence)}"
    )
