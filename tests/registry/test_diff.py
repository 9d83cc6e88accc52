"""What became different from one version to another."""

from dataclasses import replace

import pytest

from canal.core.errors import RegistryError
from canal.registry.provenance.diff import _by_type, difference
from tests.support.cells import make_document
from tests.support.registry_made import SECOND, two_stages


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two stages, and the second learned again on a branch with another distillation."""
    made = two_stages(tmp_path_factory.mktemp("made") / "project")
    document = make_document()
    document["stages"]["second"] |= {"branch": 2, "continual": {"distillation": 2.0}}
    document["sources"] = {
        name: one.model_dump(mode="json", exclude_unset=True)
        for name, one in made.project.config.sources.items()
    }
    made.set_params(
        stages=document["stages"], sources=document["sources"], continual={"bank_size": 4}, seed=7
    )
    again = replace(SECOND, train=["Mono-1"], recall={"second": {"Mono": 1.0}})
    made.stage("second", made.project.store.version("1"), again, ["B", "T", "Mono"])
    return made


def between(made, before, after):
    store = made.project.store
    return difference(store, store.version(before), store.version(after))


def listed(changes):
    return {one["path"]: (one["before"], one["after"]) for one in changes}


def test_a_stage_adds_types_and_is_told_to_be_the_next(made):
    found = between(made, "1", "2")
    assert found["labels"] == {"added": ["Mono"], "removed": [], "kept": 2}
    assert found["genes"] == {"added": [], "removed": [], "kept": 2}
    assert found["relation"] == "version 2 was learned on version 1"
    assert between(made, "2", "1")["labels"]["removed"] == ["Mono"]
    assert between(made, "2", "1")["relation"] == "version 2 was learned on version 1"


def test_recall_gained_and_lost_is_listed_by_stage_and_type(made):
    recall = between(made, "1", "2")["recall"]
    assert recall["first"]["B"] == {"n": 5, "before": 0.8, "after": 1.0, "change": pytest.approx(0.2)}
    assert recall["first"]["T"]["change"] == -0.5
    assert recall["second"]["Mono"] == {"n": 5, "before": None, "after": 0.75, "change": None}
    assert between(made, "2", "3")["recall"]["first"]["T"]["after"] is None


def test_recall_of_other_test_cells_is_shown_and_not_compared():
    """Test cells may have left in between, such as those of a donor who withdrew consent."""
    old, new = {"B": {"n": 125, "recall": 0.992}}, {"B": {"n": 117, "recall": 0.991}}
    assert _by_type(old, new) == {"B": {"n": 117, "before": 0.992, "after": 0.991, "change": None}}


def test_branches_differ_in_parameters_data_and_nothing_else(made):
    found = between(made, "2", "3")
    assert found["relation"] == "both were learned on canal-annotator 1, then went apart"
    assert listed(found["params"]) == {"continual.distillation": (0.1, 2.0), "seed": (0, 7)}
    assert set(listed(found["data"])) == {"split"}
    assert found["code"] == []
    assert found["labels"]["added"] == []


def test_data_are_told_by_digest_and_declaration(made):
    found = listed(between(made, "1", "2")["data"])
    assert found["source"] == ("first", "second")
    assert found["bytes.source"] == ("1" * 64, "2" * 64)
    assert found["parent.stage"] == ("backbone", "first")


def test_a_damaged_version_is_not_compared(tmp_path):
    made = two_stages(tmp_path / "project")
    path = made.folder(made.project.store.version("2")) / "metrics" / "evaluation.json"
    path.write_text(path.read_text().replace("0.75", "0.95"))
    with pytest.raises(RegistryError, match=r"evaluation\.json"):
        between(made, "1", "2")
