"""Labels of a new file are harmonised, judged and declared; a project's own suites judge it, too."""

from __future__ import annotations

import csv
import json
from collections import Counter

import anndata
import great_expectations as gx
import pytest
from typer.testing import CliRunner

from canal.annotation.harmonise import COLUMNS
from canal.cli import app
from canal.core.errors import CanalError
from tests.support.cells import make_adata, write_adata

pytestmark = pytest.mark.pipeline

IDS = {"T cells": "CL:0000084", "B": "CL:0000236", "DC": "CL:0000451"}


@pytest.fixture
def file(tmp_path):
    """Give cells of two known types, one of them called otherwise, of a new one, and of none."""
    cells = make_adata(
        {"T cells": 30, "B": 30, "DC": 40, "Unknown": 12}, seed=8, kinds={"T cells": "T", "Unknown": "T"}
    )
    ids = cells.obs["cell_type"].map(IDS).fillna("unknown")
    cells.obs["cell_type_ontology_term_id"] = ids.astype("category")
    first = cells.obs_names[cells.obs["cell_type"] == "T cells"][0]
    cells.obs.loc[first, "cell_type"] = " T cells "
    return write_adata(cells, tmp_path / "third.h5ad")


def invoke(line, *arguments):
    return CliRunner().invoke(app, [*arguments, "--root", str(line.root)])


def refused(line, *arguments):
    done = invoke(line, *arguments)
    assert isinstance(done.exception, CanalError), done.output
    return str(done.exception)


def told(line, *arguments):
    done = invoke(line, *arguments, "--json")
    assert done.exit_code == 0, f"{done.output}{done.exception!r}"
    return json.loads(done.stdout)


def decide(sheet, **types):
    with sheet.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    for row in rows:
        row["cell_type"] = types[row["label"].replace(" ", "_")]
    with sheet.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def test_a_files_labels_are_mapped_judged_and_declared(line, file, tmp_path):
    sheet, before = tmp_path / "map.csv", (line.root / "params.yaml").read_bytes()
    shown = told(line, "stage", "map", str(file), "--values", "counts", "-o", str(sheet))
    rows = {row["label"]: row for row in shown["labels"]}
    assert shown["model"] == "second"
    assert {label: row["n_cells"] for label, row in rows.items()} == Counter(
        label.strip() for label in anndata.read_h5ad(file).obs["cell_type"]
    )
    assert rows["T cells"]["proposed"] == "T"
    assert rows["B"]["proposed"] == "B"
    assert (rows["Unknown"]["cell_type"], rows["Unknown"]["ambiguous"]) == ("drop", "")
    assert rows["DC"]["label_id"] == "CL:0000451"
    for label, (likeliest, assigned) in model_answers(line, file, tmp_path).items():
        row = rows[label]
        assert row["model_type"] == min(likeliest, key=lambda name: (-likeliest[name], name))
        shares = {
            "likeliest_share": likeliest[row["model_type"]],
            "model_share": assigned[row["model_type"]],
            "unassigned": assigned["Unassigned"],
        }
        for name, n in shares.items():
            assert row[name] == pytest.approx(n / row["n_cells"], abs=1e-3)

    decide(sheet, T_cells="T", B="", DC="DC", Unknown="drop")
    add = ("stage", "add", "third", "--file", str(file), "--values", "counts", "--map", str(sheet))
    assert "1 of 4 labels are undecided: 'B'" in refused(line, *add)
    decide(sheet, T_cells="T", B="B", DC="DC", Unknown="drop")
    judge = ("validate", str(file), "--values", "counts", "--map", str(sheet))
    verdict = told(line, *judge)
    assert (verdict["stage"], verdict["passed"]) == ("third", True)
    assert verdict["counts"]["types"] == {"B": 30, "DC": 40, "T": 30}
    assert (line.root / "params.yaml").read_bytes() == before

    said = line.canal(*add)
    assert "rules hold" in said
    assert "cell_ids_unique" not in said
    source = line.project().config.sources["third"]
    assert source.label_map == {
        "T cells": "T", " T cells ": "T", "B": "B", "DC": "DC", "Unknown": None
    }  # fmt: skip
    assert source.ontology == {"T": "CL:0000084", "B": "CL:0000236", "DC": "CL:0000451"}


def model_answers(line, file, tmp_path):
    """Return the likeliest types and the labels of the cells of each label, by `canal annotate`."""
    out = tmp_path / "labelled.h5ad"
    line.canal("annotate", str(file), "-o", str(out), "--model", "2")
    obs = anndata.read_h5ad(out).obs
    by_label = obs.groupby(obs["cell_type"].str.strip(), observed=True)
    return {
        label: (Counter(own["canal_best_type"]), Counter(own["canal_cell_type"])) for label, own in by_label
    }


def test_without_units_names_and_ids_alone_speak_and_it_is_said(line, file):
    done = invoke(line, "stage", "map", str(file))
    assert done.exit_code == 0
    assert "the model is not asked" in done.stderr
    assert "why ambiguous" in done.stdout
    assert done.stdout.index("DC") < done.stdout.index("T cells")  # no known type is called so
    told_of = invoke(line, "stage", "map", str(file), "--values", "count")
    assert told_of.exit_code == 2
    assert "is not one of 'counts'" in " ".join(told_of.stderr.split())


def test_a_file_without_labels_or_ids_is_refused(line, file, tmp_path):
    assert "holds no id of the Cell Ontology" in refused(
        line, "stage", "map", str(file), "--ontology", "batch"
    )
    assert "no column 'type'" in refused(line, "stage", "map", str(file), "--label", "type")
    assert "ends in .csv" in refused(line, "stage", "map", str(file), "-o", str(tmp_path / "map.xlsx"))
    (tmp_path / "map.csv").write_text("mine")
    assert "exists already" in refused(line, "stage", "map", str(file), "-o", str(tmp_path / "map.csv"))
    assert "give one of both" in refused(
        line, "validate", str(file), "--stage", "second", "--values", "counts"
    )


@pytest.mark.chaos
def test_a_suite_judges_what_comes_and_nothing_that_was_learned(line, file):
    keys = line.keys()
    verdict = (line.root / "verdicts" / "second" / "verdict.json").read_bytes()
    suite = gx.ExpectationSuite(
        name="types",
        expectations=[gx.expectations.ExpectTableRowCountToBeBetween(min_value=50)],  # type: ignore[attr-defined]
    )
    (line.root / "gate" / "types.json").write_text(json.dumps(suite.to_json_dict()))
    assert "gate" in line.run("dvc", "status", "validate@second")
    line.learn()
    assert line.keys() == keys
    assert (line.root / "verdicts" / "second" / "verdict.json").read_bytes() == verdict
    judge = ("validate", str(file), "--values", "counts", "--label", "cell_type")
    done = invoke(line, *judge, "--json")
    assert done.exit_code == 1
    (rule,) = (one for one in json.loads(done.stdout)["rules"] if one["rule"].startswith("types: "))
    assert (rule["passed"], rule["severity"], rule["found"]) == (False, "error", "4")
    (line.root / "gate" / "types.json").write_text("{")
    assert "gate/types.json is no readable JSON" in refused(line, *judge)
