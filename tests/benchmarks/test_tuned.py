"""What the comparison of tuned and published settings learns, and what it says."""

import pytest
import tuned

from canal.config.yaml_file import parse_config
from canal.core.files import write_json

FOUND = {
    seed: {
        way: {
            "row": {"first": 0.9, "second": 0.8 + gain},
            "balanced": {"first": 0.8, "second": 0.7 + gain},
            "average_accuracy": 0.85 + gain / 2,
            "forgetting": 0.02,
            "chosen": {"second": {"distillation": 0.1, "bank_size": 200, "n_replay": 92}},
        }
        for way, gain in (("published", 0.0), ("tuned", 0.02 * seed))
    }
    for seed in (0, 1)
}


@pytest.mark.parametrize(("name", "capacity"), [("embedded", 200), ("immune", 1000)])
def test_both_ways_are_valid_params_and_differ_in_what_is_tuned(name, capacity, tmp_path):
    document = tuned.params(name, None if name == "embedded" else tmp_path, ["tuning.n_trials=5"])
    published, found = (parse_config(tuned.arranged(document, way)) for way in tuned.WAYS)
    later = [stage for stage in found.stages if stage != found.root_stage]
    assert found.tuned == later
    assert published.tuned == []
    assert (published.continual.distillation, published.continual.bank_size) == (0.1, 1000)
    assert (found.tuning.n_trials, found.bank.capacity) == (5, capacity)


def test_the_gain_is_told_seed_by_seed_and_drawn(capsys, tmp_path):
    tuned.report(FOUND)
    said = capsys.readouterr().out
    assert "average accuracy: tuned less published +0.5 points (sd 0.7); by seed +0.0, +1.0" in said
    assert "0.1 / 200" in said
    tuned.draw(FOUND, tmp_path / "tuned.png", "Stream embedded")
    assert (tmp_path / "tuned.png").read_bytes()[:4] == b"\x89PNG"


def test_what_was_measured_with_other_parameters_is_not_taken_for_these(tmp_path):
    document = tuned.params("embedded", None, [])
    asked = tuned.json_digest(tuned.arranged(document, "tuned"))
    write_json(tmp_path / "embedded-0-tuned.json", {"asked": asked, "forgetting": 0.5})
    assert tuned.measured(tmp_path / "embedded-0", document, "tuned")["forgetting"] == 0.5
    other = tuned.params("embedded", None, ["tuning.least_gain=0"])
    with pytest.raises(SystemExit, match="other parameters"):
        tuned.measured(tmp_path / "embedded-0", other, "tuned")
