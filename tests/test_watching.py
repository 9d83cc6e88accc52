"""`canal watch` over a project's log: what is off, and what it is not fooled by."""

import json
import sqlite3
import time
from dataclasses import replace as changed
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from canal.annotation.drift import histogram
from canal.annotation.records import make_record
from canal.app.watching import ALARM_CODE, watch
from canal.cli import app
from canal.core.digests import canonical_json
from canal.core.errors import CanalError
from canal.core.files import append_line
from tests.support.cells import make_document
from tests.support.outputs import complaints
from tests.support.registry_made import FIRST, SECOND, Made

NOW = datetime(2026, 4, 1, tzinfo=UTC)
GOOD = {"B": 600, "T": 380, "Unassigned": 20}
BAD = {"B": 400, "T": 200, "Unassigned": 400}
USUAL = np.random.default_rng(0).beta(8, 2, 1000)


def answers():
    """Return predictions for 1,000 test cells of each of two stages; a type is unknown to the version."""
    generator = np.random.default_rng(1)
    parts = []
    for stage, types, novel in (("first", ["B", "T"], 30), ("second", ["B", "T", "Mono"], 60)):
        names = [types[i % len(types)] for i in range(1000)]
        rows = pd.DataFrame({"stage": stage, "truth": names, "predicted": names})
        rows["confidence"], rows["novelty"] = generator.beta(8, 2, 1000), generator.beta(2, 5, 1000)
        rows["is_novel"] = np.arange(1000) < novel
        parts.append(rows)
    unknown = parts[0].assign(truth="never learned", is_novel=True)
    table = pd.concat([*parts, unknown], ignore_index=True)
    table.insert(0, "cell_id", [f"first:cell-{i}" for i in range(len(table))])
    return table.round(6)


def profile(median):
    return {"panel_digest": "a", "n_cells": 10, "median_genes": median, "tokens": [[5, 5, 0, 0, 0, 0]] * 20}


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    made = Made(tmp_path_factory.mktemp("watched") / "project", {"sources": make_document()["sources"]})
    first = made.stage("first", made.backbone(FIRST), changed(FIRST, profile=profile(4)), ["B", "T"])
    second = changed(SECOND, answers=answers(), profile=profile(5))
    made.alias("champion", made.stage("second", first, second, ["B", "T", "Mono"]))
    return made


@pytest.fixture
def made(template):
    """Give the project with an empty log."""
    template.project.layout.annotations.unlink(missing_ok=True)
    return template


def noted(made, name="march.h5ad", when="2026-03-05", types=GOOD, version="2", **facts):
    """Note in the log that a version labelled a file, and return the line."""
    one, n = made.project.store.version(version), sum(types.values())
    facts = {
        "time": f"{when}T03:04:05+00:00",
        "input": {"name": name, "bytes": 7, "sha256": name.encode().hex().ljust(64, "0")[:64]},
        "model": {"model": one.model, "version": one.number, "key": one.key},
        "options": {},
        "genes": {"found": 20, "panel": 20, "missing": []},
        "cell_types": types,
        "n_cells": n,
        "labelled": f"labelled-{name}",
        "distributions": {
            "confidence": histogram(USUAL), "novelty": histogram(1 - USUAL), "depth": histogram(USUAL / 4),
        },
    } | facts  # fmt: skip
    line = canonical_json(make_record({name: one for name, one in facts.items() if one is not None}))
    append_line(made.project.layout.annotations, line)
    return line


def seen(made, wanted=None, since=None, by="month"):
    document = watch(made.project, wanted, since, by, NOW)
    assert complaints("watch", document) == []
    return document


def states(document, measure="unassigned"):
    return {row["name"]: row["measures"][measure]["state"] for row in document["rows"]}


def shown(made, *words):
    done = CliRunner().invoke(app, ["watch", *words, "--root", str(made.root)], env={"COLUMNS": "200"})
    return done.exit_code, done.output


def test_a_month_that_left_the_range_is_told_with_what_to_do(made):
    noted(made, "february.h5ad", "2026-02-05")
    noted(made, "march.h5ad", "2026-03-05", BAD)
    noted(made, "also march.h5ad", "2026-03-07")
    document = seen(made)
    assert states(document) == {"2026-02": "in range", "2026-03": "alarm"}
    assert document["ranges"]["unassigned"] == [0.03, 0.06]
    (alarm,) = document["alarms"]
    assert (
        alarm["what"] == "420 of 2,000 cells of 2026-03 are Unassigned (21.0 %; on test cells 3.0 to 6.0 %)"
    )
    assert alarm["where"] == "above all in march.h5ad"
    assert alarm["command"] == "canal novel labelled-march.h5ad -o novel.csv"
    assert alarm["cause"] == "novel cells"
    code, told = shown(made)
    assert (code, alarm["what"] in told, f"  {alarm['command']}\n" in told) == (ALARM_CODE, True, True)
    code, told = shown(made, "--json")
    assert (code, json.loads(told)["alarms"][0]["row"]) == (ALARM_CODE, "2026-03")


def test_what_is_in_range_ends_with_0(made):
    noted(made)
    document = seen(made)
    assert document["alarms"] == []
    assert {one["state"] for one in document["rows"][0]["measures"].values()} == {"in range"}
    assert (document["rows"][0]["cell_types"], document["rows"][0]["cells"]) == ({"B": 600, "T": 380}, 1000)
    code, told = shown(made)
    assert (code, "All that could be judged is in range." in told) == (0, True)


def test_a_shifted_study_is_told_from_novel_cells_and_from_missing_genes(made):
    study = {"like_learned": 0.2, "known_unassigned": {}}
    noted(made, types=BAD, study=study)
    assert seen(made)["alarms"][0]["cause"] == "shifted study"
    assert seen(made)["alarms"][0]["command"].startswith("canal stage add NAME --file march.h5ad")
    noted(made, "few.h5ad", "2026-01-05", BAD, genes={"found": 9, "panel": 20})
    told = {(one["row"], one["measure"]): one["cause"] for one in seen(made)["alarms"]}
    assert told[("2026-01", "unassigned")] == told[("2026-01", "genes")] == "missing genes"
    # A larger file of the same month has all genes: what is novel in it is not explained by those of another.
    more = {"B": 1200, "T": 760, "Unassigned": 1000}
    noted(made, "whole.h5ad", "2026-01-06", more)
    told = {(one["row"], one["measure"]): one["cause"] for one in seen(made)["alarms"]}
    assert told[("2026-01", "unassigned")] == "novel cells"


def test_a_file_out_of_range_in_a_month_that_is_not_is_named(made):
    noted(made, "small.h5ad", types={"B": 60, "Unassigned": 60}, distributions=None)
    for number in range(9):
        noted(made, f"large-{number}.h5ad")
    document = seen(made)
    assert document["alarms"] == []
    assert document["rows"][0]["outside"] == [{"file": "small.h5ad", "measures": ["unassigned"]}]
    assert "by itself out of range: small.h5ad (--by file)" in shown(made)[1]
    document = seen(made, by="file")
    assert [one["row"] for one in document["alarms"]] == ["small.h5ad"]


def test_a_file_counts_once_when_it_was_first_labelled(made):
    noted(made, when="2026-02-05", types=BAD)
    noted(made, when="2026-03-05")  # the same bytes again, with other options
    document = seen(made)
    assert [(row["name"], row["cells"]) for row in document["rows"]] == [("2026-02", 1000)]
    assert states(document) == {"2026-02": "in range"}
    assert document["left_out"]["again"] == 1
    assert seen(made, None, "2026-03")["rows"] == []


def test_other_versions_count_for_themselves(made):
    noted(made, types=BAD, version="1")
    noted(made, "zip.h5ad", types=BAD, model={"key": "f" * 64, "version": 2})
    document = seen(made)
    assert (document["rows"], document["left_out"]["other_versions"]) == ([], {"1": 1, "elsewhere": 1})
    code, told = shown(made)
    assert code == 0
    assert "canal annotate FILE -o LABELLED.h5ad" in told
    assert "not counted: 1 record of version 1: canal watch 1" in told
    assert [row["files"] for row in seen(made, "1")["rows"]] == [1]


def test_a_version_that_was_not_measured_gives_no_alarm(made):
    noted(made, types=BAD, version="1")
    document = seen(made, "1")
    assert document["alarms"] == []
    assert states(document) == {"2026-03": "not measured"}
    assert "predictions for test cells are not here" in document["why_not"]["unassigned"]
    assert "not measured: Unassigned" in shown(made, "1")[1]


def test_damaged_records_are_told_and_count_nowhere(made):
    path = made.project.layout.annotations
    noted(made)
    line = noted(made, "other.h5ad")
    append_line(path, "torn {")
    append_line(path, line.replace('"B":600', '"B":601'))  # edited
    noted(made, "wrong.h5ad", n_cells=999)
    noted(made, "none.h5ad", n_cells=0, types={})
    noted(made, "ahead.h5ad", "2031-01-01")
    document = seen(made)
    assert [(row["name"], row["files"]) for row in document["rows"]] == [("2026-03", 2)]
    left = document["left_out"]
    assert (left["unreadable"], left["edited"], left["damaged"], left["future"]) == (1, 1, 2, 1)
    assert "1 record of a time that has not come" in shown(made)[1]


def test_records_of_older_canals_count_where_they_can(made):
    noted(made, "old.h5ad", distributions=None, labelled=None, types=BAD)
    first = {"format": 1, "model": {"key": made.project.store.version("2").key}, "options": {}}
    append_line(made.project.layout.annotations, json.dumps(first | {"cell_types": GOOD, "n_cells": 1000}))
    document = seen(made)
    assert states(document) == {"undated": "in range", "2026-03": "alarm"}
    assert states(document, "confidence") == {"undated": "not recorded", "2026-03": "not recorded"}
    assert document["alarms"][0]["command"] == "canal novel LABELLED.h5ad -o novel.csv"
    assert list(states(seen(made, None, "2026-01"))) == ["2026-03"]


def test_a_month_with_one_tiny_file_is_too_few(made):
    noted(made, types={"B": 10, "Unassigned": 80})
    document = seen(made)
    assert (document["alarms"], states(document)) == ([], {"2026-03": "too few"})
    assert "(88.9 %)" in shown(made)[1]


def test_an_erased_version_is_not_measured(made):
    noted(made, types=BAD)
    version = made.project.store.version("2")
    with sqlite3.connect(made.root / "mlflow.db") as database:
        row = ("default", version.model, 2, "canal.erased", "true")
        database.execute("INSERT INTO model_version_tags VALUES (?, ?, ?, ?, ?)", row)
    try:
        document = seen(made, "2")
    finally:
        with sqlite3.connect(made.root / "mlflow.db") as database:
            database.execute("DELETE FROM model_version_tags WHERE key = 'canal.erased'")
        database.close()
    assert (document["alarms"], states(document)) == ([], {"2026-03": "not measured"})
    assert document["why_not"]["unassigned"] == "it was erased"


def test_no_log_is_no_error(made):
    code, told = shown(made)
    assert (code, "is on record" in told) == (0, True)
    assert seen(made)["rows"] == []


@pytest.mark.parametrize("since", ["2026", "2026-13", "march", "2026-1", "2026-01-05"])
def test_what_is_no_month_is_refused(made, since):
    with pytest.raises(CanalError, match="--since: expected a month such as 2026-01"):
        watch(made.project, None, since)


def test_names_of_files_cannot_steer_terminal_or_shell(made):
    noted(made, "-x; rm\x1b[2J.h5ad", types=BAD)
    document = seen(made)
    assert document["alarms"][0]["command"] == "canal novel 'labelled--x; rm\x1b[2J.h5ad' -o novel.csv"
    noted(made, "-y.h5ad", "2026-01-05", BAD, labelled="-y.h5ad")
    assert "canal novel ./-y.h5ad -o novel.csv" in [one["command"] for one in seen(made)["alarms"]]
    assert "\x1b[2J" not in shown(made)[1]


def test_a_figure_is_drawn_or_refused(made, tmp_path):
    words = ["watch", "--plot", str(tmp_path / "x.svg"), "--root", str(made.root)]
    assert "nothing to draw" in str(CliRunner().invoke(app, words).exception)
    noted(made)
    code, told = shown(made, "--plot", str(tmp_path / "x.svg"))
    assert (code, (tmp_path / "x.svg").stat().st_size > 1000, "wrote" in told) == (0, True, True)
    done = CliRunner().invoke(app, ["watch", "--plot", str(tmp_path / "x.txt"), "--root", str(made.root)])
    assert "a figure is written as .svg, .png, .pdf" in str(done.exception)


def test_thousands_of_records_are_read_in_seconds(made):
    line = noted(made)
    made.project.layout.annotations.write_text(f"{line}\n" * 3000)
    began = time.process_time()
    document = seen(made)
    assert time.process_time() - began < 10
    assert (document["left_out"]["again"], document["rows"][0]["files"]) == (2999, 1)
