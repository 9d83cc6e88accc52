"""Tables on a terminal: within 80 columns, with colour and without, markup never read."""

from io import StringIO

import pytest
from rich.console import Console

from canal.report import terminal
from canal.report.terminal import (
    annotation_table,
    matrix_table,
    next_commands,
    summary,
    version_panel,
    versions_table,
)
from tests.support.reports import MATRIX, STAGES, make_digest, make_evaluation


def rendered(what, width=80, colour=False):
    stream = StringIO()
    Console(
        file=stream, width=width, force_terminal=colour, color_system="truecolor" if colour else None,
    ).print(what, crop=False)  # fmt: skip
    return stream.getvalue()


def make_versions():
    aliases = ([], ["previous"], ["candidate", "champion"])
    return [
        {"version": number, "stage": STAGES[number - 1], "aliases": aliases[number - 1],
         "accuracy": MATRIX[number - 1][-1], "average_accuracy": sum(MATRIX[number - 1]) / number,
         "types": len(make_evaluation(number)["labels"]), "parent": number - 1 or None,
         "key": make_digest(number)}
        for number in (1, 2, 3)
    ]  # fmt: skip


@pytest.fixture
def evaluations():
    return [make_evaluation(number) for number in (1, 2, 3)]


def test_the_summary_holds_matrix_sums_and_versions(evaluations):
    lines = rendered(summary(evaluations, make_versions())).splitlines()
    (row,) = [line.split() for line in lines if line.startswith("tumour-myeloid")]
    assert row == ["tumour-myeloid", "87.1", "79.0", "94.6", "86.9"]
    (sums,) = [line for line in lines if "forgetting" in line]
    assert sums.split("   ") == [
        "average accuracy 86.9 %", "forgetting 4.1 points", "novel cells, H-score 79.4 %",
    ]  # fmt: skip
    (newest,) = [line.split() for line in lines if line.startswith("  3")]
    assert newest == [
        "3",
        "tumour-myeloid",
        "candidate,",
        "champion",
        "94.6",
        "86.9",
        "13",
        "2",
        make_digest(3)[:8],
    ]


@pytest.mark.parametrize("width", [80, 100])
def test_nothing_is_wider_than_the_terminal_or_cut_off(evaluations, width):
    text = rendered(summary(evaluations, make_versions()), width) + rendered(next_commands(), width)
    assert max(len(line) for line in text.splitlines()) <= width
    assert "…" not in text


def test_without_colour_there_are_no_escapes_and_with_colour_there_are(evaluations):
    what = summary(evaluations, make_versions())
    assert "\x1b" not in rendered(what)
    assert "\x1b[" in rendered(what, colour=True)


def test_the_summary_can_be_written_in_ascii(evaluations):
    class AsciiStream(StringIO):
        encoding = "ascii"

    stream = AsciiStream()
    console = Console(file=stream, width=80)
    console.print(summary(evaluations, make_versions()), version_panel(make_view()), next_commands())
    assert stream.getvalue().isascii()


def test_many_stages_are_listed_then_and_now(evaluations):
    stages = [f"a-rather-long-stage-{number}" for number in range(1, 11)]
    matrix = [[0.9 - number / 100] * number for number in range(1, 11)]
    newest = {**evaluations[-1], "stage": stages[-1], "stages": stages, "matrix": matrix}
    text = rendered(summary([newest], []))
    (row,) = [line.split() for line in text.splitlines() if line.startswith("a-rather-long-stage-4")]
    assert row == ["a-rather-long-stage-4", "86.0", "80.0"]
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "…" not in text


def test_what_was_not_measured_is_a_dash_and_left_out_of_the_mean(evaluations):
    newest = {**evaluations[1], "matrix": [[0.9], [None, 0.8]], "forgetting": None}
    text = rendered(summary([newest], []))
    (row,) = [line.split() for line in text.splitlines() if line.startswith("tumour-lymphoid")]
    assert row == ["tumour-lymphoid", "-", "80.0", "80.0"]
    assert "forgetting -" in text


def test_what_the_parent_made_of_a_stage_stands_in_brackets(evaluations):
    asked = [*evaluations[:-1], {**evaluations[-1], "before": {"n": 30, "accuracy": 0.6137}}]
    lines = rendered(matrix_table(asked)).splitlines()
    row = next(line for line in lines if line.split()[:1] == [evaluations[-2]["stage"]])
    assert "(61.4)" in row
    assert any(line.startswith("(…): ") for line in lines)
    assert "(" not in rendered(matrix_table(evaluations))


def test_an_empty_registry_says_so(evaluations):
    assert "No version is registered yet." in rendered(summary(evaluations, []))
    assert "No version is registered yet." in rendered(summary([], []))


def test_names_are_never_read_as_markup():
    (version,) = make_versions()[:1]
    text = rendered(versions_table([{**version, "stage": "[red]x[/red]", "aliases": ["[bold]"]}]))
    assert "[red]x[/red]" in text
    assert "[bold]" in text


def test_the_next_commands_can_be_copied_whole():
    lines = rendered(next_commands(3)).splitlines()
    for command in (
        "canal versions",
        "canal show 3",
        "canal annotate your.h5ad -o labelled.h5ad",
        "canal stage add NAME --file F ...",
        "canal report",
        "canal registry ui",
    ):
        assert any(line.strip().startswith(command) for line in lines), command


def test_no_next_command_asks_for_a_variable_of_the_environment():
    assert "export" not in rendered(next_commands())
    assert "MLFLOW_" not in rendered(next_commands())


def make_view():
    return {
        **make_versions()[2], "model": "canal-annotator", "created": "2026-01-02T03:04:05+00:00", "branch": 1,
        "parent_key": make_digest(2), "run": "0a1b", "git_commit": "c0ffee", "dirty": True,
        "artifacts": "mlruns/1", "evaluation": make_evaluation(3),
    }  # fmt: skip


def test_one_version_is_shown_with_its_ancestry_and_types():
    text = " ".join(rendered(version_panel(make_view())).split())
    assert "canal-annotator version 3" in text
    assert "learned on version 2" in text
    assert f"parent's key {make_digest(2)}" in text
    assert "13: DC, CD14 Mono, B" in text
    assert "c0ffee, with uncommitted changes" in text
    assert "pbmc 92.9 92.9" in text


def test_what_was_overridden_and_who_retired_it_is_shown_for_ever():
    served = {"entry": 4, "kind": "promote", "time": "2026-01-02T03:04:05+00:00", "who": "A. Person"}
    decided = {
        "served": [served | {"why": "needed [red]today[/red]", "overrides": ["h_score", "ece"]},
                   served | {"entry": 6, "kind": "rollback", "why": "2 is worse", "overrides": []}],
        "overrides": ["ece", "h_score"], "retired": True,
        "retirement": served | {"entry": 7, "kind": "retire", "why": "donor withdrew"},
    }  # fmt: skip
    (row,) = [
        " ".join(line.split())
        for line in rendered(versions_table([make_versions()[0] | decided]), 110).splitlines()
        if line.startswith("  1")
    ]
    assert "retired; promoted despite ece, h_score" in row
    text = " ".join(rendered(version_panel(make_view() | decided), 200).split())
    assert "A. Person: needed [red]today[/red] (ledger entry 4); overridden: h_score, ece" in text
    assert "rolled back to 2026-01-02T03:04:05+00:00 by A. Person: 2 is worse (ledger entry 6)" in text
    assert "donor withdrew (ledger entry 7)" in text
    unknown = make_view() | {"retired": True, "retirement": None, "served": []}
    assert "the ledger does not say by whom" in " ".join(rendered(version_panel(unknown), 200).split())


def test_what_was_too_little_to_judge_is_not_called_a_failure():
    overrides = ["ece", "retention:first/B", "retention:first/NK"]
    row = make_versions()[0] | {"overrides": overrides, "not_judged": overrides[1:]}
    shown = " ".join(rendered(versions_table([row]), 200).split())
    assert "promoted despite ece; promoted with 2 rules not judged: too few cells" in shown
    few = rendered(versions_table([row | {"overrides": overrides[1:]}]), 200)
    assert "despite" not in few
    many = [f"retention:first/{n}" for n in range(9)]
    shown = rendered(versions_table([row | {"overrides": many, "not_judged": []}]), 250)
    assert " and 5 more" in " ".join(shown.split())


def test_a_name_cannot_steer_the_terminal():
    (version,) = make_versions()[:1]
    assert "\x1b" not in rendered(versions_table([{**version, "stage": "a\x1b[2Jb\u202e"}]))


def test_unassigned_cells_are_told_by_reason():
    document = {
        "n_cells": 10,
        "cell_types": {"B": 4, "Unassigned": 6},
        "values": "counts",
        "values_detected": True,
        "genes": {"found": 20, "panel": 20},
        "warnings": [],
        "unassigned_by": {"low_quality": 1, "is_novel": 2, "max_novelty": 3, "min_confidence": 0},
    }
    told = rendered(annotation_table(document), width=200)
    assert (
        "1 express no gene of the model, 2 novel by the version's rule, 3 above --max-novelty, 0 below"
        in told
    )
    assert "Unassigned:" not in rendered(annotation_table(document | {"unassigned_by": {}}))
    unknown = "was not measured: that takes two data sets"
    assert unknown in told  # a version of one study cannot say how far others lie
    study = {"like_learned": 0.9, "known_unassigned": {"lowest": 0.05, "usual": 0.06, "highest": 0.07}}
    assert unknown not in rendered(annotation_table(document | {"study": study}), width=200)


def test_coarse_types_are_counted_the_first_eight():
    document = {
        "n_cells": 10,
        "cell_types": {"B": 4, "Unassigned": 6},
        "values": "counts",
        "values_detected": True,
        "genes": {"found": 20, "panel": 20},
        "warnings": [],
    }
    assert "coarse types" not in rendered(annotation_table(document))
    coarse = {"B": 4, "lymphocyte": 3, "Unassigned": 3}
    told = rendered(annotation_table(document | {"coarse_types": coarse}), width=200)
    assert "coarse types: B 4, lymphocyte 3, Unassigned 3\n" in told
    many = {f"type {n}": 1 for n in range(10)}
    told = rendered(annotation_table(document | {"coarse_types": many}), width=200)
    assert "type 7 1, ...\n" in told


def test_a_rule_that_had_too_few_cells_is_not_called_overridden():
    made = {"time": "2026-01-01", "who": "A. Person", "why": "reviewed", "entry": 4, "kind": "promote"}
    few = ["retention:first/B"]
    view = {"served": [made | {"overrides": ["ece", *few], "not_judged": few, "too_few": "rare"}]}
    assert [told for _, told in terminal._decisions(view)] == [
        "2026-01-01 by A. Person: reviewed (ledger entry 4); overridden: ece; too few test cells to judge, "
        "let pass (rare): retention:first/B"
    ]


def test_two_aliases_of_one_version_are_explained():
    row = make_versions()[0]
    why = "candidate is the newest version, and stays so once it serves (champion)"
    both = rendered(versions_table([row | {"aliases": ["candidate", "champion"]}]), width=200)
    assert why in " ".join(both.split())
    alone = rendered(versions_table([row | {"aliases": ["candidate"]}]), width=200)
    assert why not in " ".join(alone.split())


def test_cells_that_a_limit_cut_do_not_count_as_unlike_all_that_was_learned():
    expected = {"lowest": 0.05, "usual": 0.05, "highest": 0.06}
    summary = {
        "n_cells": 100, "values": "counts", "values_detected": True, "warnings": [],
        "genes": {"found": 20, "panel": 20, "missing": []}, "cell_types": {"B": 60, "Unassigned": 40},
        "study": {"known_unassigned": expected, "like_learned": 0.95},
        "unassigned_by": {"low_quality": 1, "is_novel": 4, "min_confidence": 35},
    }  # fmt: skip
    told = " ".join(rendered(annotation_table(summary), 200).split())
    assert "some 5 % would be Unassigned (5 % to 6 %): 5.0 % are" in told
    assert "35 below --min-confidence" in told
    del summary["unassigned_by"]
    assert "40.0 % are, so some are likely unlike" in " ".join(
        rendered(annotation_table(summary), 200).split()
    )
