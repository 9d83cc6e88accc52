import numpy as np
import pytest

from canal.config.sections import Cache
from canal.continual.fit import Hooks
from canal.continual.stage import Learned, Past, finish
from canal.continual.trainer import learn_stage
from canal.model.annotator import Annotator
from canal.model.backbone import Performer
from tests.continual.lessons import SETTINGS, first_learned, first_lesson, second_lesson
from tests.support.cells import make_config, make_document
from tests.support.models import seeded


def config_with(ontology):
    document = make_document()
    for name, ids in ontology.items():
        document["sources"][name]["ontology"] = ids
    return make_config(sources=document["sources"])


@pytest.fixture(scope="module")
def finished():
    config = config_with({"first": {"B": "CL:0000236"}})
    return finish(first_lesson(), first_learned(), Past.none(24), config)


def test_the_temperature_is_fitted_on_cells_that_were_not_trained_on(finished):
    annotator, cells = finished.annotator, first_lesson().validation
    targets = cells.targets(annotator.labels)

    def cross_entropy(temperature):
        found = annotator.with_temperature(temperature).predict(cells.expression).probabilities
        return -np.log(found[np.arange(len(cells)), targets]).mean()

    assert annotator.temperature != 1.0
    assert cross_entropy(annotator.temperature) < cross_entropy(1.0)


def test_what_training_kept_of_its_cells_is_not_computed_again(finished, tmp_path, monkeypatch):
    kept, computed = Hooks(cache_dir=tmp_path), []
    learn_stage(first_lesson(), SETTINGS.model_copy(update={"max_epochs": 1}), kept)
    monkeypatch.setattr(Performer, "encode_prefix", lambda *_: computed.append(1))
    again = finish(first_lesson(), first_learned(), Past.none(24), make_config(), kept)
    assert computed == []
    assert again.annotator.temperature == pytest.approx(finished.annotator.temperature, abs=1e-3)
    assert again.annotator.novelty.threshold == pytest.approx(finished.annotator.novelty.threshold, abs=1e-4)
    assert again.bank.cells.cell_ids == finished.bank.cells.cell_ids


@pytest.mark.parametrize("rounded", [{"cache": Cache(dtype="bfloat16")}, {"dtype": "bfloat16"}])
def test_rounded_features_are_not_what_the_rule_is_set_on(finished, tmp_path, rounded):
    again = finish(
        first_lesson(), first_learned(), Past.none(24), make_config(), Hooks(cache_dir=tmp_path, **rounded)
    )
    assert again.annotator.novelty == finished.annotator.novelty
    assert not list(tmp_path.iterdir())


def test_a_stage_keeps_the_ids_of_the_stages_before():
    config = config_with({"first": {"B": "CL:0000236"}, "second": {"NK": "CL:0000623"}})
    first = finish(first_lesson(), first_learned(), Past.none(24), config)
    lesson = second_lesson(parent=first.annotator)
    learned = Learned(first.annotator.grown(("NK",), seeded()), first.annotator, {})
    past = Past(first.bank, first.probe)
    assert finish(lesson, learned, past, config).annotator.ontology == {
        "B": "CL:0000236",
        "NK": "CL:0000623",
    }


def test_what_was_finished_is_loaded_as_it_was(finished, tmp_path):
    finished.save(tmp_path)
    loaded = Annotator.load(tmp_path / "model")
    assert (loaded.temperature, loaded.ontology) == (finished.annotator.temperature, {"B": "CL:0000236"})
