"""The calibration benchmark: its errors by hand, and a real model's stages beside all of them together."""

import json

import calibration
import numpy as np
import pytest

from tests.support.models import make_annotator


def test_a_sure_model_that_is_right_half_the_time_is_off_by_half():
    annotator = make_annotator()
    logits = np.full((40, len(annotator.labels)), -20.0, dtype=np.float32)
    logits[:, 0] = 20.0
    truth = np.array([annotator.labels[i % 2] for i in range(40)], dtype=object)
    sure = calibration.errors(annotator, logits, truth, 1.0, seed=0)
    assert sure["ece"] == pytest.approx(0.5)
    assert (sure["n"], sure["accuracy"]) == (40, 0.5)
    assert calibration.errors(annotator, logits, truth, 50.0, seed=0)["ece"] < 0.2


@pytest.mark.pipeline
@pytest.mark.chaos
def test_all_stages_are_pooled(learned, capsys):
    line, _ = learned
    calibration.main(["--root", str(line.root), "--json"])
    (found,) = json.loads(capsys.readouterr().out).values()
    pooled = found["errors"].pop(calibration.POOLED)["with"]
    assert found["stage"] == "second"
    assert pooled["n"] == sum(one["with"]["n"] for one in found["errors"].values())
    calibration.main(["--root", str(line.root), "--stage", "first"])
    assert "the aim of 0.05" in capsys.readouterr().out
