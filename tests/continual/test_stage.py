import numpy as np
import pytest

from canal.config.sections import Cache
from canal.continual.bank import ParentState
from canal.continual.fit import Hooks
from canal.continual.stage import Learned, finish
from canal.continual.trainer import learn_stage
from canal.model.annotator import Annotator
from canal.model.backbone import Performer
from tests.support.cells import make_config, make_document
from tests.support.models import seeded
from tests.support.tasks import SETTINGS, first_learned, first_task, second_task


def config_with(ontology):
    document = make_document()
    for name, ids in ontology.items():
        document["sources"][name]["ontology"] = ids
    return make_config(sources=document["sources"])


@pytest.fixture(scope="module")
def artifacts():
    config = config_with({"first": {"B": "CL:0000236"}})
    return finish(first_task(), first_learned(), ParentState.none(24), config)


def test_the_temperature_is_fitted_on_cells_that_were_not_trained_on(artifacts):
    annotator, cells = artifacts.annotator, first_task().validation
    targets = cells.targets(annotator.labels)

    def cross_entropy(temperature):
        found = annotator.with_temperature(temperature).predict(cells.expression).probabilities
        return -np.log(found[np.arange(len(cells)), targets]).mean()

    assert annotator.temperature != 1.0
    assert cross_entropy(annotator.temperature) < cross_entropy(1.0)


def test_what_training_kept_of_its_cells_is_not_computed_again(artifacts, tmp_path, monkeypatch):
    kept, computed = Hooks(cache_dir=tmp_path), []
    learn_stage(first_task(), SETTINGS.model_copy(update={"max_epochs": 1}), kept)
    monkeypatch.setattr(Performer, "encode_prefix", lambda *_: computed.append(1))
    again = finish(first_task(), first_learned(), ParentState.none(24), make_config(), kept)
    assert computed == []
    assert again.annotator.temperature == pytest.approx(artifacts.annotator.temperature, abs=1e-3)
    assert again.annotator.novelty.threshold == pytest.approx(artifacts.annotator.novelty.threshold, abs=1e-4)
    assert again.bank.cells.cell_ids == artifacts.bank.cells.cell_ids


@pytest.mark.parametrize("rounded", [{"cache": Cache(dtype="bfloat16")}, {"dtype": "bfloat16"}])
def test_rounded_features_are_not_what_the_rule_is_set_on(artifacts, tmp_path, rounded):
    again = finish(
        first_task(),
        first_learned(),
        ParentState.none(24),
        make_config(),
        Hooks(cache_dir=tmp_path, **rounded),
    )
    assert again.annotator.novelty == artifacts.annotator.novelty
    assert not list(tmp_path.iterdir())


def test_a_stage_keeps_the_ids_of_the_stages_before():
    config = config_with({"first": {"B": "CL:0000236"}, "second": {"NK": "CL:0000623"}})
    first = finish(first_task(), first_learned(), ParentState.none(24), config)
    task = second_task(parent=first.annotator)
    learned = Learned(first.annotator.grown(("NK",), seeded()), first.annotator, {})
    parent_state = ParentState(first.bank, first.probe)
    assert finish(task, learned, parent_state, config).annotator.ontology == {
        "B": "CL:0000236",
        "NK": "CL:0000623",
    }


def test_what_was_finished_is_loaded_as_it_was(artifacts, tmp_path):
    artifacts.save(tmp_path)
    loaded = Annotator.load(tmp_path / "model")
    assert (loaded.temperature, loaded.ontology) == (artifacts.annotator.temperature, {"B": "CL:0000236"})
