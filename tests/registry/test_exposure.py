"""Who learned from a cell: what each version did with it, and what it inherited."""

import sqlite3
from dataclasses import replace

import pytest

from canal.core.errors import RegistryError
from canal.registry.provenance.exposure import (
    CellQuery,
    CellsSeen,
    excluded_cells,
    exclusions,
    find_cells,
    find_exposures,
)
from tests.support.cells import make_config, make_document, make_tuned_document
from tests.support.registry_made import FIRST, SECOND, Made, two_stages, with_atlas


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return two_stages(tmp_path_factory.mktemp("made") / "project")


@pytest.fixture(scope="module")
def cells_seen(made):
    return CellsSeen(made.project.store)


def exposures(cells_seen, **chosen):
    """What each version did with the chosen cells: grade, roles and where it was inherited from."""
    found = {}
    for exposure in find_exposures(cells_seen, find_cells(cells_seen, CellQuery(**chosen))):
        said = exposure.to_json()
        name = f"{said['model'].removeprefix('canal-')} {said['version']}"
        above = said["inherited_from"]
        found[name] = (said["grade"], said["roles"], above and above["version"])
    return found


def test_a_training_cell_is_in_the_backbone_the_stage_and_its_heirs(cells_seen):
    assert exposures(cells_seen, cell="first:B-1") == {
        "backbone 1": ("learned", {"trained": 1}, None),
        "annotator 1": ("learned", {"trained": 1, "kept": 1}, 1),
        "annotator 2": ("learned", {"replayed": 1, "kept": 1}, 1),
    }


def test_a_cell_of_the_bank_that_is_not_replayed_is_inherited_all_the_same(cells_seen):
    """The second stage replays two cells a type: B-3 is the third."""
    assert exposures(cells_seen, cell="first:B-3")["annotator 2"] == ("learned", {}, 1)


def test_what_a_tuned_stage_replayed_follows_from_the_bank_size_that_its_study_chose(tmp_path):
    """Its request has no L, so only the choice in its key says where the bank was cut."""
    made = two_stages(tmp_path / "project")
    first = made.project.store.version("1")
    document = make_tuned_document(sources=make_document()["sources"], continual={"bank_size": 4})
    made.set_params(**{name: document[name] for name in ("sources", "continual", "tuning", "stages")})
    made.stage("second", first, SECOND, ["B", "T", "Mono"])
    cells_seen = CellsSeen(made.project.store)
    assert exposures(cells_seen, cell="first:B-1")["annotator 3"][1] == {"replayed": 1, "kept": 1}
    assert exposures(cells_seen, cell="first:B-2")["annotator 2"][1] == {"replayed": 1}
    assert exposures(cells_seen, cell="first:B-2")["annotator 3"] == ("learned", {}, 1)


def test_a_validation_cell_steers_and_a_probe_cell_steers_on(cells_seen):
    assert exposures(cells_seen, cell="first:B-4") == {
        "backbone 1": ("steered", {"validated": 1}, None),
        "annotator 1": ("steered", {"validated": 1, "kept": 1}, 1),
        "annotator 2": ("steered", {"validated": 1, "kept": 1}, 1),
    }
    assert exposures(cells_seen, cell="first:T-4")["annotator 2"] == ("steered", {}, 1)


def test_a_test_cell_only_measures(cells_seen):
    found = exposures(cells_seen, cell="first:B-5")
    assert found == {name: ("tested", {"tested": 1}, None) for name in ("annotator 1", "annotator 2")}


def test_a_new_stage_s_cell_is_unknown_to_the_stages_before(cells_seen):
    assert exposures(cells_seen, cell="second:Mono-1") == {
        "annotator 2": ("learned", {"trained": 1, "kept": 1}, None)
    }


@pytest.mark.parametrize("cell", ["second:Mono-2", "first:T-2"])
def test_the_same_content_under_another_name_counts(cells_seen, cell):
    found = find_cells(cells_seen, CellQuery(cell=cell))
    assert found.ids == {"second:Mono-2", "first:T-2"}
    assert found.same == found.ids - {cell}
    assert exposures(cells_seen, cell=cell)["annotator 2"][1] == {"trained": 1, "replayed": 1}


@pytest.mark.parametrize("name", ["first", "1" * 64, "1" * 8])
def test_a_data_set_is_found_by_its_name_and_by_its_bytes(cells_seen, name):
    found = exposures(cells_seen, source=name)
    assert list(found) == ["backbone 1", "annotator 1", "annotator 2"]
    assert found["annotator 1"][1] == {"trained": 6, "validated": 2, "tested": 2, "kept": 7}
    assert found["annotator 2"][:2] == (
        "learned",
        {"trained": 1, "replayed": 4, "validated": 1, "tested": 2, "kept": 3},
    )


def test_a_batch_is_narrower_than_its_data_set(cells_seen):
    found = exposures(cells_seen, source="first", batch="donor-1")
    assert found["annotator 1"][1] == {"trained": 2, "kept": 2}
    assert found["annotator 2"][1] == {"replayed": 2, "kept": 2}


def test_a_cell_s_name_alone_will_do_where_one_source_has_it(cells_seen):
    assert find_cells(cells_seen, CellQuery(cell="Mono-1")).cells == {"second:Mono-1"}
    with pytest.raises(RegistryError, match="several cells: 'first:T-1', 'second:T-1'"):
        find_cells(cells_seen, CellQuery(cell="T-1"))
    assert find_cells(cells_seen, CellQuery(source="second", cell="T-1")).cells == {"second:T-1"}


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"source": "third"}, "no registered version knows a source 'third'; there are first, second"),
        ({"source": "1" * 7}, "no registered version knows a source"),
        ({"source": "first", "batch": "x"}, "a batch 'x' of first; there are 'donor-1', 'first'"),
        ({"cell": "first:Q"}, r"a cell 'first:Q'; ids are SOURCE:NAME, such as 'first:B-1'"),
        ({"cell": "x" * 5000}, "no registered version knows a cell 'x{80}'"),
    ],
)
def test_what_nobody_knows_is_answered_with_what_is_known(cells_seen, chosen, message):
    with pytest.raises(RegistryError, match=message):
        find_cells(cells_seen, CellQuery(**chosen))


def test_an_adopted_backbone_learned_from_no_cell_but_its_genes_were_chosen_on_them(tmp_path):
    made = Made(tmp_path / "project", {})
    made.stage("first", made.backbone(FIRST, made.imported()), FIRST, ["B", "T"])
    cells_seen = CellsSeen(made.project.store)
    found = exposures(cells_seen, source="first")
    assert found["backbone 2"] == ("steered", {"panel": 6}, None)
    assert found["annotator 1"][0] == "learned"
    assert list(exposures(cells_seen, cell="first:B-5")) == ["annotator 1"]


def test_a_backbone_without_a_stage_yet_knows_its_cells_by_the_project_s_split(tmp_path):
    made = Made(tmp_path / "project", {})
    made.backbone(FIRST)
    assert exposures(CellsSeen(made.project.store), source="first") == {
        "backbone 1": ("learned", {"trained": None}, None)
    }
    split = made.project.layout.split("first")
    split.parent.mkdir()
    split.write_bytes((made.root / "scratch" / "backbone" / "split" / "cells.csv").read_bytes())
    cells_seen = CellsSeen(made.project.store)
    cells_seen.splits(cells_seen.versions[0])
    assert exposures(cells_seen, source="first")["backbone 1"][1] == {"trained": 6, "validated": 2}


def test_a_backbone_saw_the_cells_of_its_extra_stages(tmp_path):
    made = Made(
        tmp_path / "project", {"backbone": {"extra_stages": ["second"]}, "continual": {"bank_size": 4}}
    )
    first = made.stage("first", made.backbone(FIRST), FIRST, ["B", "T"])
    made.stage("second", first, SECOND, ["B", "T", "Mono"])
    found = exposures(CellsSeen(made.project.store), cell="second:Mono-1")
    assert found["backbone 1"] == ("learned", {"trained": 1}, None)
    assert found["annotator 1"] == ("learned", {}, 1)


def test_a_backbone_saw_the_cells_of_unlabelled_sources(tmp_path):
    """A cell of the same content under another name counts, too; one that was not drawn is unknown."""
    made = with_atlas(tmp_path / "project")
    cells_seen = CellsSeen(made.project.store)
    for cell in ("atlas:x-1", "second:Mono-1"):
        found = exposures(cells_seen, cell=cell)
        assert found["backbone 1"] == ("learned", {"trained": 1}, None)
        assert found["annotator 1"][0] == "learned"
    assert exposures(cells_seen, source="atlas")["backbone 1"][1] == {"trained": 2, "validated": 1}
    assert exposures(cells_seen, source="a" * 64)["backbone 1"][1] == {"trained": 2, "validated": 1}
    assert exposures(cells_seen, source="atlas", batch="donor-9")["backbone 1"][1] == {"trained": 1}
    with pytest.raises(RegistryError, match=r"no registered version knows a cell 'atlas:x-9'"):
        exposures(cells_seen, cell="atlas:x-9")
    path = made.folder(made.project.store.versions("canal-backbone")[0]) / "corpus" / "atlas" / "cells.csv"
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(RegistryError, match=r"corpus/atlas/cells\.csv"):
        CellsSeen(made.project.store)


def test_a_branch_without_the_cell_has_not_touched_it(tmp_path):
    made = two_stages(tmp_path / "project")
    document = make_document()
    document["stages"]["second"]["branch"] = 2
    made.set_params(stages=document["stages"], continual={"bank_size": 4})
    without = replace(SECOND, train=["T-1"], bank=["T-1"], like={})
    made.stage("second", made.project.store.version("1"), without, ["B", "T", "Mono"])
    assert list(exposures(CellsSeen(made.project.store), cell="second:Mono-1")) == ["annotator 2"]


def test_half_made_versions_do_not_count(tmp_path):
    made = two_stages(tmp_path / "project")
    with sqlite3.connect(made.root / "mlflow.db") as database:
        database.execute("DELETE FROM model_version_tags WHERE key = 'status' AND version = 2")
    database.close()
    assert list(exposures(CellsSeen(made.project.store), cell="first:B-1")) == ["backbone 1", "annotator 1"]


@pytest.mark.parametrize("name", ["split/cells.csv", "bank/bank.h5ad", "metrics/predictions.csv", "key.json"])
def test_damaged_tables_are_never_believed(tmp_path, name):
    made = two_stages(tmp_path / "project")
    path = made.folder(made.project.store.version("2")) / name
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(RegistryError, match=name.replace(".", r"\.")):
        exposures(CellsSeen(made.project.store), cell="first:B-1")


def test_exclusions_are_known_by_content(cells_seen):
    document = make_document()
    document["sources"]["first"]["exclude"] = {"cells": ["T-2", "gone"], "batches": ["donor-1"]}
    config = make_config(sources=document["sources"])
    assert list(exclusions(config)) == ["first"]
    found = excluded_cells(cells_seen, config)
    assert sorted(found.values()) == ["first:B-1", "first:T-1", "first:T-2"]
    cells = cells_seen.cells
    assert set(cells["cell_digest"][cells["cell_id"] == "second:Mono-2"]) <= set(found)
    assert exclusions(make_config()) == excluded_cells(cells_seen, make_config()) == {}


def test_an_empty_registry_knows_nothing(tmp_path):
    cells_seen = CellsSeen(Made(tmp_path / "project", {}).project.store)
    assert cells_seen.versions == []
    with pytest.raises(RegistryError, match="there are none yet"):
        find_cells(cells_seen, CellQuery(source="first"))


def test_a_cell_in_reserve_is_met_by_no_version_unless_another_stage_has_its_content(tmp_path):
    made = Made(tmp_path / "project", {})
    stage_cells = replace(FIRST, reserve=["B-6", "B-7"])
    first = made.stage("first", made.backbone(stage_cells), stage_cells, ["B", "T"])
    made.stage("second", first, replace(SECOND, like={"Mono-2": "first:B-7"}), ["B", "T", "Mono"])
    cells_seen = CellsSeen(made.project.store)
    assert exposures(cells_seen, cell="first:B-6") == {}
    assert find_cells(cells_seen, CellQuery(cell="first:B-6")).reserve == {"first:B-6"}
    assert exposures(cells_seen, cell="first:B-7")["annotator 2"][0] == "learned"
    assert find_cells(cells_seen, CellQuery(cell="first:B-7")).reserve == frozenset()
    assert find_cells(cells_seen, CellQuery(source="first")).reserve == {"first:B-6"}
