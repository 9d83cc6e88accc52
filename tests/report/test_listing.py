"""Names on a terminal stand whole on one line, whatever its width; empty lists say what comes next."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console, Group

from canal.quality.verdict import RuleResult
from canal.registry.provenance.lineage import Edge, Graph, Node
from canal.report.cell_tables import (
    exposure_table,
    forward_group,
    impact_group,
    marker_table,
    novel_table,
    unlearned_group,
    who_group,
)
from canal.report.exchange_tables import merged_group, model_group, models_table, shared_group
from canal.report.gate_tables import finding, map_table, verdict_table
from canal.report.lineage_page import lineage_tree
from canal.report.listing import Column, Listing, text
from canal.report.project_tables import plan_table
from canal.report.registry_tables import (
    audit_report,
    comparison_table,
    difference_group,
    ledger_table,
    rebuilt_table,
    rulings_table,
)
from canal.report.study_figures import tuning_table
from canal.report.terminal import annotation_table, matrix_table, version_panel, versions_table
from tests.quality.test_verdict import a_verdict
from tests.report.test_terminal import make_view
from tests.support.reports import make_digest
from tests.support.studies import make_tuned

STAGE = "stage-with-a-name-of-exactly-40-letters1"
OTHER = "another-stage-of-a-name-with-40-letters2"
TYPE = "CD16-positive, CD56-dim natural killer 3"
NEW_TYPE = "CD4-positive alpha-beta memory T cell  4".replace("  ", " ") + "."
ALIAS = "alias-that-a-person-gave-it-40-letters-5"
FILE = "a-file-of-cells-with-forty-letters6.h5ad"
MODEL = "model-on-the-shelf-named-with-40-letters"
RULE = f"recall[{STAGE}/T]"
KEY = make_digest(7)
NAMES = (STAGE, OTHER, TYPE, NEW_TYPE, ALIAS, FILE, MODEL)


def printed(what, width):
    stream = io.StringIO()
    Console(file=stream, width=width).print(Group(what), crop=False)
    return stream.getvalue().splitlines()


def versions():
    return [
        {"version": 12, "stage": STAGE, "aliases": [ALIAS, "champion"], "accuracy": 0.9, "types": 7,
         "average_accuracy": 0.8, "parent": 11, "key": KEY, "overrides": [RULE], "retired": True},
        {"version": 11, "stage": OTHER, "aliases": [], "key": KEY},
    ]  # fmt: skip


def seen(version, grade="learned"):
    return {
        "model": "canal-annotator", "version": version, "stage": STAGE, "aliases": [ALIAS], "retired": False,
        "grade": grade, "roles": {"trained": 1234, "tested": None}, "inherited_from": None,
    }  # fmt: skip


def cells(**more):
    return {"cell": None, "source": STAGE, "batch": OTHER, "cells": 4321, "same_content": [], "reserve": 0,
            "versions": [seen(12), seen(3)], **more}  # fmt: skip


def impact(**more):
    records = [{"time": "2026-01-02T03:04:05", "input": {"name": FILE, "sha256": KEY}, "n_cells": 9,
                "model": {"version": 12}}]  # fmt: skip
    steps = [{"kind": "run", "why": "it learned from them", "text": f"canal retire 12 --why {STAGE}"}]
    return cells(same_bytes={}, aliases={ALIAS: 12}, annotations=records, unreadable_annotations=0,
                 steps=steps, **more)  # fmt: skip


def difference(**more):
    pair: dict[str, float] = {"before": 0.9, "after": 0.8, "change": -0.1}
    return {
        "before": {"version": 11, "stage": OTHER}, "after": {"version": 12, "stage": STAGE},
        "relation": "version 12 was learned on version 11",
        "params": [{"path": "continual.learning_rate", "before": 0.001, "after": 0.01}],
        "data": [{"path": "bytes.source", "before": KEY, "after": make_digest(8)}],
        "code": [], "sums": {"basis": {"same": True}, "stages": {}}, "genes": {"added": [], "removed": []},
        "labels": {"added": [NEW_TYPE], "removed": [], "kept": 5}, "accuracy": {STAGE: pair},
        "novelty": pair, "recall": {STAGE: {TYPE: {"n": 20, **pair}}},
        "file": {"name": FILE, "n_cells": 100, "changed": 3, "flows": [
            {"from": TYPE, "to": NEW_TYPE, "n": 3, "examples": ["AAACCTGAGAAACCAT-1"]}]}, **more,
    }  # fmt: skip


def lineage():
    ids: dict[str, str | int | float | None] = {"model": "m", "version": 12, "stage": STAGE, "key": KEY}
    nodes = (
        Node("version:12", "version", f"canal-annotator 12 ({STAGE})", {**ids, "aliases": ALIAS}),
        Node("data:1", "data", f"data set of {OTHER}", {"cells": 12345, "sha256": KEY}),
        Node("bytes:1", "bytes", FILE, {"sha256": KEY}),
    )
    return Graph(nodes, (Edge("version:12", "data:1", "trained on"), Edge("data:1", "bytes:1", "made from")))


def comparison():
    pair = {"n": 1234, "champion": 0.9, "candidate": 0.95, "difference": 0.05, "low": 0.01, "high": 0.08,
            "lost": 3, "gained": 9, "p": 0.0001, "power": 0.8}  # fmt: skip
    stage = {**pair, "types": {TYPE: pair}, "too_few_to_judge": {}}
    return {"champion": 11, "champion_stage": "s", "candidate": 12, "candidate_stage": "t",
            "loss_to_see": 0.1, "not_compared": {}, "stages": {STAGE: stage}}  # fmt: skip


def ledger():
    return [{"seq": 4, "time": "2026-01-02T03:04:05+00:00", "kind": "promote", "model": "canal-annotator",
             "version": 12, "aliases": {ALIAS: 12}, "details": {}, "who": "A. Person",
             "why": "lung, reviewed"}]  # fmt: skip


def rulings():
    ruling = {"rule": RULE, "value": "0.9", "bound": "at least 0.95", "passed": False, "overridden": False,
              "note": "interval of 1,000 paired bootstraps, 44 cells"}  # fmt: skip
    return {"version": 12, "stage": STAGE, "compared_with": {"version": 11, "stage": OTHER}, "champion": 11,
            "rulings": [ruling]}  # fmt: skip


def labels():
    one = {"label": TYPE, "n_cells": 12, "proposed": NEW_TYPE, "by": "model", "model_type": TYPE,
           "model_share": 0.625, "unassigned": 0.25, "ambiguous": "they differ"}  # fmt: skip
    return {"ambiguous": 1, "labels": [one]}


def novel(**more):
    group = {"group": 1, "n_cells": 1234, "top_genes": [{"gene": "CD3D"}] * 8, "purity": 0.5,
             "nearest_types": {TYPE: 0.9, NEW_TYPE: 0.1}, "batches": {STAGE: 1000, OTHER: 234}}  # fmt: skip
    return {"n_novel": 1234, "groups": [group], "left_out": 3, "warnings": [], **more}


def who():
    record = {"model": {"model": "m", "version": 12, "stage": STAGE, "key": KEY, "record": KEY},
              "input": {"name": FILE, "sha256": KEY}, "options": {"layer": "X"},
              "cell_types": {TYPE: 12345}}  # fmt: skip
    return {"file": FILE, "record": record, "registry": None, "not_checked": "no project", "genuine": True,
            "labels": {"as_written": True}}  # fmt: skip


def failed():
    examples = (f"{TYPE} (3 cells)",)
    return a_verdict(
        RuleResult("enough_cells_per_type", "error", False, "at least 20 cells of every type", "1 of 8 types",
                   examples, "map the type to null or to another in label_map")
    )  # fmt: skip


def shelf():
    types = [{"type": TYPE, "cells": 1234, "tested": 100, "recall": 0.97}]
    return {"name": MODEL, "types": types, "genes": 300, "average_accuracy": 0.9, "bytes": 12_345_678,
            "model": "m", "version": 12, "stage": STAGE, "added": "2026-01-02T", "source": FILE,
            "stages": [STAGE, OTHER], "network_weight": None, "method": "exact", "needs_torch": False,
            "sources": {}, "made": {"time": "2026", "git_commit": None, "user": None}, "key": KEY,
            "sha256": KEY, "holds": {"bank": 0, "probe": 0, "named": 0}, "without_cells": False}  # fmt: skip


def shared():
    return {"stages": {STAGE: {TYPE: 30}}, "given_away": {STAGE: {TYPE: 0}},
            "withheld": {OTHER: {NEW_TYPE: 2}}, "min_cells": 10, "left_out": [], "keyed": False,
            "basis": KEY, "sha256": KEY, "path": FILE, "size": 12_345_678}  # fmt: skip


def merged():
    return {"cells": {STAGE: 5}, "version": 13, "own": "version 12", "other": FILE, "basis": KEY, "sums": KEY,
            "equals": KEY, "overlap": {"checked": "not checked"}, "released": None, "meanings": {},
            "new_types": [NEW_TYPE, TYPE], "uncalibrated": [], "lacking": [], "network": True}  # fmt: skip


def markers():
    genes = [{"gene": "CD3D", "direction": None}]
    types = [{"cell_type": TYPE, "side": "both", "genes": genes}]
    return {"model": {"model": "m", "version": 3, "stage": STAGE}, "cell_types": types}


def summary():
    return {"n_cells": 20_000, "cell_types": {TYPE: 12_345, NEW_TYPE: 7_655}, "values": "counts",
            "values_detected": True, "genes": {"found": 287, "panel": 300}, "warnings": []}  # fmt: skip


def plan():
    stage = {"stage": STAGE, "fate": "learn", "version": 3, "why": "its learning rate differs from 2's",
             "steps": [f"train@{STAGE}", "evaluate@x"]}  # fmt: skip
    return {"stages": [stage], "steps": {}, "perhaps": []}


def evaluation():
    return {"stage": OTHER, "stages": [STAGE, OTHER], "matrix": [[0.9], [0.8, 0.7]]}


TABLES = {
    "versions": (lambda: versions_table(versions()), (STAGE, OTHER, ALIAS, KEY[:8])),
    "show": (lambda: version_panel({**make_view(), "stage": STAGE, "aliases": [ALIAS]}), (STAGE, ALIAS)),
    "matrix": (lambda: matrix_table([evaluation()]), (STAGE, OTHER)),
    "gate": (lambda: verdict_table(failed()), ("enough_cells_per_type",)),
    "gate, all": (lambda: verdict_table(failed(), everything=True), ("has_cells",)),
    "stage map": (lambda: map_table(labels()), (TYPE, NEW_TYPE)),
    "plan": (lambda: plan_table(plan()), (STAGE, "learn", "evaluate")),
    "lineage": (lambda: lineage_tree(lineage()), (STAGE, OTHER, FILE, ALIAS)),
    "lineage --data": (lambda: forward_group(cells()), (STAGE, ALIAS)),
    "exposure": (lambda: exposure_table("seen", [seen(12)]), (STAGE, ALIAS, "canal-annotator 12", "learned")),
    "impact": (lambda: impact_group(impact()), (STAGE, OTHER, ALIAS, FILE)),
    "audit": (
        lambda: audit_report({"findings": [{"subject": STAGE, "check": "bytes", "what": "they differ"}],
                              "notes": [], "counts": {"versions": 3}, "seconds": 2.0}),
        (STAGE,),
    ),
    "ledger": (lambda: ledger_table(ledger()), (ALIAS, "A. Person", "2026-01-02T03:04:05Z")),
    "compare": (lambda: comparison_table(comparison()), (STAGE, TYPE)),
    "promote": (lambda: rulings_table(rulings()), (RULE, STAGE, OTHER, "FAILS")),
    "rebuild": (
        lambda: rebuilt_table({"gone": [], "versions": [
            {**one, "model": MODEL, "retired": True} for one in versions()]}),
        (STAGE, MODEL, ALIAS),
    ),
    "diff": (lambda: difference_group(difference()), (STAGE, OTHER, TYPE, NEW_TYPE, FILE)),
    "models": (lambda: models_table([shelf()]), (MODEL, STAGE)),
    "models show": (lambda: model_group(shelf()), (MODEL, TYPE, KEY)),
    "share": (lambda: shared_group(shared()), (STAGE, OTHER, TYPE, FILE)),
    "merge": (lambda: merged_group(merged()), (STAGE, NEW_TYPE, TYPE, FILE)),
    "who": (lambda: who_group(who()), (STAGE, FILE, TYPE, KEY)),
    "novel": (lambda: novel_table(novel()), (TYPE, NEW_TYPE, STAGE, OTHER)),
    "markers": (lambda: marker_table(markers()), (TYPE, "CD3D")),
    "tune show": (lambda: tuning_table(make_tuned(STAGE)), (STAGE, "published", "chosen")),
    "annotate": (lambda: annotation_table(summary()), (TYPE, NEW_TYPE)),
    "unlearn": (
        lambda: unlearned_group(
            {"versions": {STAGE: {"before": 11, "after": 12}}, "n_cells": 3, "n_summed": 3, "source": OTHER,
             "lost_types": [TYPE], "not_calibrated": [], "basis": {}, "champion": None, "retired": []},
            dry_run=False),
        (STAGE, OTHER, TYPE),
    ),
}  # fmt: skip


@pytest.mark.parametrize("width", [40, 60, 80, 110])
@pytest.mark.parametrize("table", TABLES)
def test_a_name_stands_whole_on_one_line_at_every_width(table, width):
    make, names = TABLES[table]
    lines = printed(make(), width)
    for name in names:
        assert any(name in line for line in lines), (name, lines)
    assert "…" not in "".join(lines)
    for line in lines:
        # a line is wider than the terminal for one name alone, never for prose
        assert len(line) <= width or any(name in line for name in names) or " " not in line.strip(), line


WITH_KEYS = {"lineage", "models show", "who", "rebuild", "show", "share", "merge"}
"""Tables with a whole SHA-256, which is longer than 60 letters."""


@pytest.mark.parametrize("width", [60, 80])
@pytest.mark.parametrize("table", sorted(set(TABLES) - WITH_KEYS))
def test_no_line_is_wider_than_the_terminal_if_its_names_are_not(table, width):
    assert max(map(len, printed(TABLES[table][0](), width))) <= width


def test_a_column_without_room_stands_below_its_row_with_its_heading():
    found = Listing("", (Column("stage"), Column("cells", "number"), Column("why", "prose")))
    found.add("a-stage-of-a-long-name", "12,345", "it was never learned before today")
    assert [len(printed(found, width)) for width in (80, 30)] == [3, 5]
    assert printed(found, 30)[3:] == ["  why: it was never learned", "  before today"]


def test_texts_break_at_blanks_alone_and_keep_their_indentation():
    assert printed(text(f"  see {FILE} for all of them"), 46) == [f"  see {FILE}", "  for all of them"]


@pytest.mark.parametrize(
    ("what", "command"),
    [
        (versions_table([]), "canal run"),
        (ledger_table([]), "canal promote"),
        (models_table([]), "canal models add"),
        (novel_table(novel(n_novel=0, groups=[])), "canal annotate"),
        (plan_table({"stages": [], "steps": {}, "perhaps": []}), "canal stage add"),
        (forward_group(cells(versions=[])), "nothing is needed"),
        (impact_group(impact(versions=[])), "nothing is needed"),
        (map_table({"ambiguous": 0, "labels": []}), "--label"),
        (audit_report({"findings": [], "notes": [], "counts": {}, "seconds": 0.1}), "canal run"),
        (audit_report({"findings": [], "notes": [], "counts": {"runs": 3}, "seconds": 1}),
         "everything holds"),
    ],
)  # fmt: skip
def test_an_empty_list_names_the_next_command(what, command):
    assert command in " ".join(printed(what, 110))


def test_a_difference_says_first_what_counts():
    shown = "\n".join(printed(difference_group(difference()), 110))
    order = ["change their label", "1 type appears", "1 type loses recall", "H-score",
             "Accuracy of each stage", "learning_rate", "bytes.source", "code and digests"]  # fmt: skip
    assert sorted(order, key=shown.index) == order
    assert "1 type loses recall on test cells, 2 cells in all:" in shown
    assert "novel cells, H-score: 90.0 % before, 80.0 % after (-10.0 points)" in shown


@pytest.mark.parametrize(
    ("rule", "found", "expected", "words"),
    [
        ("labels_present", "0 of 600 cells", "a label", "0 cells without a label (at most 0)"),
        ("labels_present", "1,200 of 3,000 cells", "", "1,200 of 3,000 cells without a label (at most 0)"),
        ("panel_covered", "96% (287 of 300)", "at least 40% of the panel's genes",
         "287 of 300 panel genes found (at least 120)"),
        ("has_cells", "600 cells that the declaration keeps", "", "600 cells that the declaration keeps"),
        ("own_rule", "2 of 9 cells", "", "2 of 9 cells that do not meet it (at most 0)"),
        ("tokens_like_before", "3 of 300 genes (1%)", "",
         "3 of 300 genes expressed otherwise than before (1%)"),
    ],
)  # fmt: skip
def test_what_a_rule_found_has_a_noun(rule, found, expected, words):
    assert finding(RuleResult(rule, "error", True, expected, found)) == words


def test_every_rule_that_counts_rows_has_its_words():
    from canal.quality import rules, symbols
    from canal.report import gate_tables

    named = {name for name in gate_tables._FAILING if not name.startswith(("symbols_human", "symbols_mouse"))}
    written = "".join(Path(one.__file__).read_text(encoding="utf-8") for one in (rules, symbols))
    assert not [name for name in named if f'"{name}"' not in written]


def test_a_pipe_is_as_wide_as_columns_say_and_without_them_110():
    program = (
        "from canal.report.listing import Column, Listing, show\n"
        "found = Listing('', (Column('stage'), Column('why', 'prose')))\n"
        "found.add('lung', 'word ' * 60)\n"
        "show(found)\n"
    )
    for columns, widest in ((None, 110), ("70", 70), ("no number", 110)):
        there = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR")}
        there |= {"FORCE_COLOR": "1", "TERM": "xterm", "NO_COLOR": "1"}
        there |= {} if columns is None else {"COLUMNS": columns}
        done = subprocess.run(
            [sys.executable, "-c", program], env=there, capture_output=True, text=True, check=True
        )
        lines = done.stdout.splitlines()
        assert widest - 5 <= max(map(len, lines)) <= widest
