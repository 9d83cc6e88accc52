"""Options of `canal.annotate` that are none, refused in words before anything is read."""

from pathlib import Path

import numpy as np
import pytest

import canal


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"effort": "slow"}, "--effort: expected full, fast, found 'slow'"),
        ({"effort": None}, "--effort: expected full, fast, found None"),
        ({"values": "log"}, "--values: expected auto, counts, log1p_10k, log2p_10k, found 'log'"),
        ({"device": "tpu"}, "--device: expected auto, cpu, cuda, found 'tpu'"),
        ({"dtype": np.float32}, "--dtype: expected float32, bfloat16, found <class"),
        ({"layer": None}, "--layer: expected a text, found None"),
        ({"gene_column": 3}, "--gene-column: expected a text or None, found 3"),
        ({"vote": True}, "--vote: expected a text or None, found True"),
        ({"chunk_cells": 0}, "--chunk-cells: expected a whole number, 1 or more, found 0"),
        ({"chunk_cells": 2.5}, "--chunk-cells: expected a whole number, 1 or more, found 2.5"),
        ({"min_coverage": 40}, "--min-coverage: expected a number from 0 to 1, found 40"),
        ({"max_novelty": "high"}, "--max-novelty: expected a number from 0 to 1, found 'high'"),
        ({"force": "no"}, "--force: expected True or False, found 'no'"),
        ({"naming": "mouse"}, r"--naming: expected canal.Naming\(...\), found 'mouse'"),
    ],
)
def test_a_value_that_is_none_of_an_option_is_refused(given, message):
    with pytest.raises(canal.CanalError, match=message):
        canal.Options(**given)


def test_a_species_and_a_table_that_are_none_are_refused():
    with pytest.raises(canal.CanalError, match="--species: expected auto, human, mouse, found 'Mouse'"):
        canal.Naming(species="Mouse")
    with pytest.raises(canal.CanalError, match="orthologs: expected the path of a table, found dict"):
        canal.Naming(orthologs={"Cd3e": "CD3E"})


def test_numbers_of_numpy_and_paths_in_text_are_taken(tmp_path):
    options = canal.Options(chunk_cells=np.int64(5), max_novelty=np.float32(0.5), min_confidence=1)
    assert (options.chunk_cells, options.max_novelty) == (5, 0.5)
    table = tmp_path / "own.tsv"
    table.write_text("Cd3e\tCD3E\n")
    naming = canal.Naming(orthologs=str(table))
    assert naming.orthologs == Path(table)
    assert naming.to_json()["orthologs"]["name"] == "own.tsv"
