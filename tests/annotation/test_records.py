"""Annotation records: in the file, in the log, and never believed when they were edited."""

import json

import anndata
import pytest
from hypothesis import given
from hypothesis import strategies as st

from canal.annotation.annotate import annotate_adata, annotate_h5ad
from canal.annotation.options import Callbacks, Options
from canal.annotation.records import genuine, make_record, parse_record, read_log, read_record
from canal.core.digests import canonical_json
from canal.core.errors import DataError
from canal.io.h5ad import open_h5ad
from tests.support.cells import gene_names, make_adata, write_adata

NOTED = {
    "time": "2026-01-02T03:04:05.678+00:00",
    "input": {"name": "in.h5ad", "bytes": 7, "sha256": "e" * 64},
}
OPTIONS = Options(model_name={"version": 3, "key": "k" * 64, "record": "r" * 64}, origin=NOTED)


@pytest.fixture
def source(tmp_path):
    cells = make_adata({"B": 30, "NK": 25}, n_genes=60)
    cells.var_names = [*gene_names(20), *(f"OTHER{i}" for i in range(40))]
    return write_adata(cells, tmp_path / "in.h5ad")


def recorded(path):
    with open_h5ad(path) as file:
        return read_record(file)


def facts(**changes):
    return {"model": {"key": "k"}, "options": {}, "cell_types": {"B": 2}, "n_cells": 2} | changes


def test_a_labelled_file_says_who_when_and_from_what(annotator, source, tmp_path):
    told = []
    annotate_h5ad(annotator, source, tmp_path / "out.h5ad", OPTIONS, Callbacks(on_record=told.append))
    record = recorded(tmp_path / "out.h5ad")
    assert record["model"] == OPTIONS.model_name
    assert (record["time"], record["input"]) == (NOTED["time"], NOTED["input"])
    assert sum(record["cell_types"].values()) == record["n_cells"] == 55
    assert genuine(record)
    assert [json.loads(line) for line in told] == [record]
    assert "\n" not in told[0]


def test_the_record_survives_anndata(annotator, source, tmp_path):
    annotate_h5ad(annotator, source, tmp_path / "out.h5ad", OPTIONS)
    labelled = anndata.read_h5ad(tmp_path / "out.h5ad")
    labelled[:10].copy().write_h5ad(tmp_path / "part.h5ad")
    assert recorded(tmp_path / "part.h5ad") == recorded(tmp_path / "out.h5ad")


def test_in_memory_there_is_a_record_without_an_input(annotator, source):
    table = annotate_adata(annotator, anndata.read_h5ad(source), Options(model_name={"version": 3}))
    record = table.attrs["canal"]
    assert record["model"] == {"version": 3}
    assert genuine(record)
    assert "input" not in record


def test_who_keeps_the_log_is_told_before_the_file_appears(annotator, source, tmp_path):
    def refuse(record):
        assert not (tmp_path / "out.h5ad").exists()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        annotate_h5ad(annotator, source, tmp_path / "out.h5ad", OPTIONS, Callbacks(on_record=refuse))
    assert [path.name for path in tmp_path.iterdir()] == ["in.h5ad"]


@given(st.dictionaries(st.text(max_size=5), st.integers(0, 99), max_size=4), st.text(max_size=20))
def test_any_edit_is_noticed(counts, name):
    record = make_record(facts(cell_types=counts, input={"name": name, "sha256": "e"}))
    line = canonical_json(record)
    assert genuine(json.loads(line))
    assert not genuine(record | {"n_cells": 3})
    assert not genuine(record | {"more": 1})


def test_the_first_format_is_read_though_it_cannot_prove_itself():
    record = parse_record(json.dumps({"format": 1, **facts()}))
    assert genuine(record) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"format": NaN, "model": {}, "options": {}, "cell_types": {}, "n_cells": 1}', "not JSON"),
        (json.dumps(facts(format=2, time="\ud800")), "not JSON"),
        ("[]", "lacks some of model, options"),
        (json.dumps({"format": 1, "source": "a", "repairs": {}}), "lacks some of model, options"),
        (json.dumps(facts(format=3)), "reads formats 1, 2, found 3"),
        (json.dumps(facts(format=2, model="3")), "model: not what is expected"),
        (json.dumps(facts(format=2, input={"name": 3})), "input.name, input.sha256: not what"),
        (json.dumps(facts(format=2, model={"key": []})), "model.key: not what is expected"),
        (json.dumps(facts(format=2, cell_types={"B": "2"})), "cell_types: not what is expected"),
    ],
)
def test_what_is_no_record_is_refused_with_the_reason(tmp_path, text, message):
    assert message in parse_record(text)
    cells = make_adata({"B": 3}, n_genes=5)
    cells.uns["canal"] = text.replace("\ud800", "")
    path = write_adata(cells, tmp_path / "x.h5ad")
    with pytest.raises(DataError, match=r"x\.h5ad: uns\['canal'\] is no annotation record"):
        recorded(path)


@pytest.mark.parametrize("uns", [{}, {"canal": {"a": 1}}, {"canal": [1, 2]}])
def test_a_file_that_nobody_labelled_says_so(tmp_path, uns):
    cells = make_adata({"B": 3}, n_genes=5)
    cells.uns.update(uns)
    with pytest.raises(DataError, match="no annotation record"):
        recorded(write_adata(cells, tmp_path / "x.h5ad"))


def test_the_log_is_read_line_by_line(tmp_path):
    path = tmp_path / "annotations.jsonl"
    assert read_log(path).records == ()
    one = make_record(facts(model={"key": "k"}))
    two = make_record(facts(model={"key": "other"}, cell_types={"odd \u2028 name": 2}))
    path.write_text(f"{canonical_json(one)}\n{canonical_json(two)}\ntorn{{\n", encoding="utf-8")
    log = read_log(path)
    assert (log.records, log.unreadable) == ((one, two), 1)
    assert log.of_versions({"k"}) == [one]
