"""Reading a project's folders into reports, and drawing a stage's figures into a folder."""

import numpy as np
import pandas as pd
import pytest

from canal.config.layout import Layout
from canal.core.digests import file_digest
from canal.core.files import write_json
from canal.report.collect import backbone_history, collect, draw_figures
from tests.support.reports import (
    STAGES,
    make_backbone_history,
    make_cells,
    make_evaluation,
    make_history,
    make_verdict,
)
from tests.support.studies import make_tuned


def write_bank(path):
    from anndata import AnnData

    obs = pd.DataFrame(
        {"cell_type": ["B", "B", "NK"], "stage": ["pbmc", "tumour-lymphoid", "pbmc"]}, index=["a", "b", "c"]
    )
    path.parent.mkdir(parents=True)
    AnnData(X=np.zeros((3, 1), dtype=np.float32), obs=obs).write_h5ad(path)


def write_stage(layout, number):
    """Write what training and evaluation write for a stage; only its key and bank are made up."""
    stage = STAGES[number - 1]
    write_json(layout.metrics(stage) / "evaluation.json", make_evaluation(number))
    write_json(layout.model(stage) / "history.json", make_history(number))
    write_json(layout.model(stage) / "key.json", {"format": 1, "parent": None, "number": number})


@pytest.fixture
def layout(tmp_path):
    layout = Layout(tmp_path / "project")
    write_stage(layout, 1)
    write_stage(layout, 2)
    return layout


def test_a_stage_is_read_whole(layout):
    stage = STAGES[1]
    write_json(layout.verdict(stage), make_verdict(2))
    write_json(layout.split(stage).with_suffix(".json"), {"counts": make_cells(2)})
    write_bank(layout.model(stage) / "bank" / "bank.h5ad")
    (layout.metrics(stage) / "predictions.csv").write_text("cell_id,novelty\na,0.125000\nb,0.500000\n")
    pages = layout.data_docs(stage) / "index.html"
    pages.parent.mkdir(parents=True)
    pages.write_text("")
    first, report = collect(layout, STAGES)
    assert (first.data_docs, report.data_docs) == (None, pages)
    assert report.name == stage
    assert report.evaluation == make_evaluation(2)
    assert report.verdict == make_verdict(2)
    assert report.cells == make_cells(2)
    assert report.bank == {"B": {"pbmc": 1, "tumour-lymphoid": 1}, "NK": {"pbmc": 1}}
    assert report.scores == (0.125, 0.5)


def test_stages_not_yet_measured_are_left_out(layout):
    assert [report.name for report in collect(layout, STAGES)] == list(STAGES[:2])
    (layout.metrics(STAGES[0]) / "evaluation.json").unlink()
    assert [report.name for report in collect(layout, STAGES)] == [STAGES[1]]


def test_a_version_is_matched_by_key_and_not_by_stage(layout):
    digest = file_digest(layout.model(STAGES[0]) / "key.json")
    versions = [
        {"version": 4, "stage": STAGES[0], "key": "0" * 64, "aliases": ["champion"]},
        {"version": 1, "stage": STAGES[0], "key": digest, "aliases": ["previous"]},
    ]
    first, second = collect(layout, STAGES, versions)
    assert (first.version, first.aliases, first.key_digest) == (1, ("previous",), digest)
    assert (second.version, second.aliases) == (None, ())


def test_only_evaluation_and_history_must_be_there(layout):
    (layout.model(STAGES[0]) / "key.json").unlink()
    first = collect(layout, STAGES)[0]
    assert (first.key, first.key_digest, first.verdict, first.bank, first.scores) == (None, "", None, {}, ())


def test_figures_of_a_stage_are_drawn_into_a_folder(layout, tmp_path):
    draw_figures(layout, STAGES[1], tmp_path / "figures")
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert names == {
        "confusion-pbmc.png", "confusion-tumour-lymphoid.png", "loss_curves.png", "novelty.png",
        "r_matrix.png", "recall.png", "reliability.png",
    }  # fmt: skip


def test_a_tuned_stage_has_its_studys_figures_too(layout, tmp_path):
    tuned = make_tuned(STAGES[1])
    write_json(layout.model(STAGES[1]) / "tuned.json", tuned)
    first, second = collect(layout, STAGES)
    assert (first.tuned, second.tuned) == (None, tuned)
    draw_figures(layout, STAGES[1], tmp_path / "figures")
    names = {path.name for path in (tmp_path / "figures").glob("tuning-*")}
    assert names == {
        f"tuning-{name}.png" for name in ("pareto_front", "lambda_by_l", "optimisation", "importances")
    }


def test_the_backbones_figure_is_its_pretraining(layout, tmp_path):
    assert backbone_history(layout) is None
    draw_figures(layout, "backbone", tmp_path / "none")
    assert not (tmp_path / "none").exists()
    write_json(layout.model("backbone") / "history.json", make_backbone_history())
    draw_figures(layout, "backbone", tmp_path / "figures")
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["pretraining.png"]
