"""A stream of one's own files, whole or in part."""

from collections import Counter

import numpy as np
import stream

from canal.config.yaml_file import parse_config
from canal.core.digests import json_digest
from tests.support.recorded import recorded_form


def test_a_stream_is_learned_without_tuning(tmp_path):
    document = stream.params("immune", tmp_path, ["continual.max_epochs=3"])
    config = parse_config(document)
    assert config.continual.max_epochs == 3
    assert config.tuned == []


def test_the_stream_of_old_is_as_it_was(tmp_path):
    config = parse_config(stream.params("first", tmp_path, []))
    assert config.tuned == ["tumour-lymphoid", "tumour-myeloid"]
    assert config.tuning.n_trials == 8
    request = recorded_form(config, "tumour-myeloid")
    # The request of b42cc87's own params.yaml: what was learned from it is found again.
    assert json_digest(request) == "7e02a2162a4c9de1ece907b70770ee32dc8fcf644f5ad41deb175f99149d66c1"


def test_a_part_of_a_stream_is_learned(tmp_path):
    document = stream.params("pancreas", tmp_path, ["novelty.holdouts=[alpha]"], ["baron"])
    config = parse_config(document)
    assert (list(config.stages), list(config.sources)) == (["baron"], ["baron"])
    assert config.tuned == []


def test_cells_are_taken_in_proportion_but_ten_of_each_type():
    types = np.array(["a"] * 600 + ["b"] * 300 + ["rare"] * 20 + ["few"] * 6 + ["c"] * 80)
    rows = stream.sample(types, 250)
    assert Counter(types[rows].tolist()) == {"a": 149, "b": 75, "rare": 10, "few": 6, "c": 20}
    assert list(rows) == sorted(set(rows))
    assert list(stream.sample(types, 250)) == list(rows)
    assert len(stream.sample(types, 5000)) == len(types)
