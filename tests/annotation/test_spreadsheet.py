"""Tables that a person opens: nothing in them is taken for a formula."""

import json

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from canal.annotation.labelled import read_back
from canal.annotation.output import write_table
from canal.annotation.records import Log, make_record
from canal.core.digests import canonical_json
from canal.io.writer import as_text, original

FORMULAS = ["=1+1", "+1", "-1", "@sum", "\tx", "\rx", "'=1", "''-1"]


@pytest.mark.parametrize("value", FORMULAS)
def test_a_formula_becomes_a_text(value):
    assert as_text(value) == f"'{value}"


@given(st.text(alphabet="'=+-@\t\rab ", max_size=6))
def test_the_original_is_read_back(value):
    assert original(as_text(value)) == value


@pytest.mark.parametrize("value", ["B", "CD4+ T", "'quoted'", "", "5=6"])
def test_other_texts_stay(value):
    assert as_text(value) == original(value) == value


def test_labels_and_names_in_a_csv_are_texts_and_numbers_numbers(tmp_path):
    table = pd.DataFrame(
        {
            "canal_cell_type": pd.Categorical(["=cmd()", "B", "=cmd()"]),
            "canal_runner_up": ["-x", None, "B"],
            "canal_margin": [-0.5, 0.25, 1.0],
        },
        index=["+cell", "@cell", "cell"],
    )
    facts = {"model": {}, "options": {}, "n_cells": 3, "cell_types": {"=cmd()": 2, "B": 1}}
    told = []
    write_table(tmp_path / "t.csv", table, canonical_json(make_record(facts)), told.append)
    lines = (tmp_path / "t.csv").read_text().splitlines()
    assert lines[1:] == ["'+cell,'=cmd(),'-x,-0.500000", "'@cell,B,,0.250000", "cell,'=cmd(),B,1.000000"]
    noted = read_back(tmp_path / "t.csv", Log((json.loads(told[0]),), 0))
    assert list(noted.types) == ["=cmd()", "B", "=cmd()"]
    assert noted.mismatch() == ""
    assert table.index.tolist() == ["+cell", "@cell", "cell"]
