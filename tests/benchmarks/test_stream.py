"""A stream of one's own files, whole or in part."""

import pandas as pd
import stream

from canal.params import parse_config


def test_a_stream_is_learned_without_tuning(tmp_path):
    document = stream.params("immune", tmp_path, ["continual.max_epochs=3"])
    config = parse_config(document)
    assert config.continual.max_epochs == 3
    assert list(config.finetune.fixed) == list(config.stages)


def test_a_part_of_a_stream_is_learned(tmp_path):
    document = stream.params("pancreas", tmp_path, ["novelty.holdouts=[alpha]"], ["baron"])
    config = parse_config(document)
    assert (list(config.stages), list(config.sources)) == (["baron"], ["baron"])
    assert list(config.finetune.fixed) == ["baron"]


def test_drawn_cells_keep_shares_and_rare_types_stay_out():
    types = pd.Series(["a"] * 600 + ["b"] * 300 + ["rare"] * 20 + ["c"] * 80)
    rows = stream.drawn(types, 250)
    assert types[rows].value_counts().to_dict() == {"a": 153, "b": 77, "c": 20}
    assert list(rows) == sorted(set(rows))
    assert list(stream.drawn(types, 250)) == list(rows)
    assert len(stream.drawn(types, 5000)) == 1000
