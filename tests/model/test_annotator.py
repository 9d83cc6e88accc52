import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from canal.core.digests import tree_digests
from canal.core.errors import ModelError
from canal.model.annotator import Annotator
from canal.model.backbone import empty_performer
from canal.model.centroids import TypeAngle, TypeCentroids, TypeDistance
from canal.model.head import Blend, NoveltyRule
from canal.model.storage import PRESETS
from tests.support.models import DEEP, make_annotator, make_backbone, make_expression, seeded

ANNOTATOR = make_annotator(config=DEEP)
CELLS = make_expression(12, seed=3)
LOGITS = ANNOTATOR.predict(CELLS).logits
RULE = NoveltyRule(0.8, -3.0, 0.0, 0.3)


@pytest.fixture
def saved(tmp_path):
    ANNOTATOR.with_novelty(RULE).save(tmp_path / "model")
    return tmp_path / "model"


@settings(max_examples=40, deadline=None)
@given(
    order=st.permutations(range(12)),
    size=st.integers(1, 12),
    padding=st.integers(0, 3),
    loudness=st.sampled_from([0.0, 1.0, 30.0]),
)
def test_a_prediction_does_not_depend_on_its_batch(order, size, padding, loudness):
    pad = make_expression(padding, seed=9) * np.float32(loudness)
    batch = np.concatenate([CELLS[list(order)], pad])
    found = ANNOTATOR.predict(batch, batch_size=size).logits[:12]
    assert np.abs(found - LOGITS[list(order)]).max() < 1e-5


def test_a_prediction_says_what_the_logits_say():
    prediction = ANNOTATOR.predict(CELLS)
    exponents = np.exp(prediction.logits)
    expected = exponents / exponents.sum(axis=1, keepdims=True)
    assert prediction.probabilities == pytest.approx(expected, abs=1e-6)
    assert prediction.confidence == pytest.approx(expected.max(axis=1), abs=1e-6)
    assert prediction.labels == [ANNOTATOR.labels[i] for i in prediction.logits.argmax(axis=1)]
    assert not prediction.novelty.any()
    assert not prediction.is_novel.any()


def test_novelty_comes_from_the_rule():
    prediction = ANNOTATOR.with_novelty(RULE).predict(CELLS)
    assert prediction.novelty == pytest.approx(RULE.score(LOGITS))
    assert prediction.is_novel.tolist() == RULE.is_novel(prediction.novelty).tolist()
    assert prediction.novelty.any()


def test_no_cells_give_no_predictions():
    prediction = ANNOTATOR.predict(CELLS[:0])
    assert prediction.labels == []
    assert prediction.probabilities.shape == (0, 3)


def test_answers_hang_together():
    answer = ANNOTATOR.answers(CELLS)
    assert [part.shape for part in answer] == [(12, 128), (12, 64), (12, 3)]
    again = ANNOTATOR.network.head.answer(answer.manifold)
    assert torch.allclose(again.logits, answer.logits, atol=1e-6)
    assert np.array_equal(ANNOTATOR.represent(CELLS), answer.representation.numpy())
    assert ANNOTATOR.prototypes().shape == (3, 64)


@pytest.mark.parametrize("shape", [(3, 19), (3, 21), (20,)])
def test_expression_of_another_panel_is_refused(shape):
    with pytest.raises(ModelError, match="20 panel genes"):
        ANNOTATOR.predict(np.zeros(shape, dtype=np.float32))


def test_saved_and_loaded(saved):
    loaded = Annotator.load(saved)
    assert (loaded.labels, loaded.genes, loaded.novelty) == (ANNOTATOR.labels, ANNOTATOR.genes, RULE)
    assert np.array_equal(loaded.predict(CELLS).logits, LOGITS)
    assert set(loaded.network.trained()) == set(ANNOTATOR.network.trained())


def test_saving_what_was_loaded_gives_the_same_bytes(saved, tmp_path):
    Annotator.load(saved).save(tmp_path / "again")
    assert tree_digests(saved) == tree_digests(tmp_path / "again")


def test_growth_appends_and_leaves_the_parent_alone():
    grown = ANNOTATOR.with_novelty(RULE).grown(("pDC", "mast"), seeded())
    assert grown.labels == ("B", "NK", "T", "pDC", "mast")
    assert grown.novelty is None
    assert grown.predict(CELLS).logits[:, :3] == pytest.approx(LOGITS, abs=1e-5)
    with torch.no_grad():
        for value in grown.network.parameters():
            value.mul_(1.5)
    assert np.array_equal(ANNOTATOR.predict(CELLS).logits, LOGITS)


def test_a_label_twice_is_refused():
    with pytest.raises(ModelError, match="unique"):
        ANNOTATOR.grown(("B",), seeded())


def test_trained_is_the_head_the_last_block_but_one_and_the_norm():
    names = ANNOTATOR.network.trained()
    assert {name.split(".")[0] for name in names} == {"backbone", "head"}
    backbone = {name for name in names if name.startswith("backbone")}
    assert all(name.startswith(("backbone.blocks.1.", "backbone.norm.")) for name in backbone)


def test_starting_twice_gives_the_same_weights():
    backbone = make_backbone(config=DEEP)
    first, second = (
        Annotator.start(backbone, backbone.vocabulary[:9], ("a", "b"), CELLS[:, :9], seeded(4))
        for _ in range(2)
    )
    assert np.array_equal(first.predict(CELLS[:, :9]).logits, second.predict(CELLS[:, :9]).logits)


@pytest.mark.parametrize("name", ["weights.safetensors", "config.json", "labels.json", "genes.json"])
def test_a_missing_file_is_named(saved, name):
    (saved / name).unlink()
    with pytest.raises(ModelError, match=name):
        Annotator.load(saved)


@pytest.mark.parametrize("name", ["weights.safetensors", "config.json", "labels.json", "genes.json"])
def test_a_file_cut_short_is_refused(saved, name):
    path = saved / name
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ModelError, match=name):
        Annotator.load(saved)


def test_an_unknown_format_is_refused(saved):
    path = saved / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2}))
    with pytest.raises(ModelError, match="reads model format 1, found 2"):
        Annotator.load(saved)


@pytest.mark.parametrize("name", ["labels.json", "genes.json"])
def test_a_count_that_does_not_fit_the_weights_is_refused(saved, name):
    path = saved / name
    path.write_text(json.dumps(json.loads(path.read_text())[:-1]))
    with pytest.raises(ModelError, match="does not fit"):
        Annotator.load(saved)


def damage(tensors, how):
    bias = tensors["head.filter.bias"]
    if how == "missing":
        del tensors["head.filter.bias"]
    elif how == "not expected":
        tensors["head.surplus"] = bias.clone()
    elif how == "float64":
        tensors["head.filter.bias"] = bias.double()
    else:
        tensors["head.filter.bias"] = bias * torch.nan


@pytest.mark.parametrize("how", ["missing", "not expected", "float64", "not finite"])
def test_weights_that_do_not_fit_are_named(saved, how):
    path = saved / "weights.safetensors"
    tensors = load_file(path)
    damage(tensors, how)
    save_file(tensors, path)
    with pytest.raises(ModelError, match=how) as caught:
        Annotator.load(saved)
    assert "head.surplus" in str(caught.value) or "head.filter.bias" in str(caught.value)


def test_fewer_cells_go_at_a_time_through_a_larger_network():
    tiny = empty_performer(PRESETS["tiny"].backbone, 32)
    published = empty_performer(PRESETS["scbert"].backbone, 1000)
    assert tiny.cells_at_a_time > published.cells_at_a_time == 1


def test_temperature_and_ids_are_saved_beside_the_weights(saved):
    plain = (saved / "config.json").read_bytes()
    ids = {"B": "CL:0000236", "T": "CL:0000084"}
    settled = Annotator.load(saved).with_temperature(0.5).with_ontology(ids | {"DC": "CL:0000451"})
    settled.save(saved)
    loaded = Annotator.load(saved)
    assert loaded.temperature == 0.5
    assert loaded.ontology == ids  # DC is no label
    assert loaded.grown(("DC",), seeded()).with_ontology({"DC": "CL:0000451"}).ontology["DC"] == "CL:0000451"
    assert loaded.grown(("DC",), seeded()).temperature == 1.0
    before, after = ANNOTATOR.predict(CELLS), loaded.predict(CELLS)
    assert after.labels == before.labels
    assert (after.confidence > before.confidence).all()
    replace(loaded, temperature=1.0, ontology={}).save(saved)
    assert (saved / "config.json").read_bytes() == plain
    assert not (saved / "ontology.json").exists()


@pytest.mark.parametrize("found", [0, -1.0, "1", True])
def test_a_temperature_that_makes_no_sense_is_refused(saved, found):
    path = saved / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"temperature": found}))
    with pytest.raises(ModelError, match="temperature must be a number above 0"):
        Annotator.load(saved)


@pytest.mark.parametrize(("ids", "said"), [(["B"], "must map"), ({"B": 3}, "must map"), ({"DC": "x"}, "DC")])
def test_ids_of_no_label_are_refused(saved, ids, said):
    (saved / "ontology.json").write_text(json.dumps(ids))
    with pytest.raises(ModelError, match=said):
        Annotator.load(saved)


OLD_CENTROIDS = TypeCentroids(TypeDistance(torch.zeros(3, 21), torch.eye(21)))
CENTROIDS = TypeCentroids(OLD_CENTROIDS.distance, TypeAngle(torch.ones(3, 21), torch.ones(21)))
OLD_BLEND = Blend(0.3, 0.1, 20.0, 9.0)
BLEND = Blend(0.3, 0.1, 20.0, 9.0, 0.2, 0.1)


@pytest.mark.parametrize(
    ("blend", "centroids", "others"),
    [(BLEND, CENTROIDS, OLD_CENTROIDS), (OLD_BLEND, OLD_CENTROIDS, CENTROIDS)],
)
def test_a_rule_and_its_centroids_belong_together(saved, blend, centroids, others):
    blended = replace(RULE, blend=blend)
    before = ANNOTATOR.with_novelty(blended, centroids)
    before.save(saved)
    found = Annotator.load(saved)
    assert sorted(found.centroids.tensors()) == sorted(centroids.tensors())
    np.testing.assert_array_equal(found.predict(CELLS).novelty, before.predict(CELLS).novelty)
    for other in (others, None):
        with pytest.raises(ModelError, match="restore the model"):
            ANNOTATOR.with_novelty(blended, other)
    with pytest.raises(ModelError, match="needs no component .* found distance"):
        ANNOTATOR.with_novelty(RULE, centroids)
    (saved / "novelty.safetensors").unlink()
    with pytest.raises(ModelError, match="needs distance.*found none"):
        Annotator.load(saved)


@pytest.mark.parametrize(
    "change",
    [
        {"centres": torch.zeros(3, 20)},
        {"centres": torch.zeros(0, 21)},
        {"whitening": torch.zeros(9, 21)},
        {"profiles": torch.zeros(2, 21)},
        {"spread": torch.zeros(21)},
        {"spread": torch.full((21,), torch.nan)},
        {"spread": torch.ones(20)},
        {"spread": None},
        {"more": torch.ones(1)},
    ],
)
def test_centroids_of_another_model_are_refused(saved, change):
    ANNOTATOR.with_novelty(replace(RULE, blend=BLEND), CENTROIDS).save(saved)
    tensors = {name: value for name, value in (CENTROIDS.tensors() | change).items() if value is not None}
    save_file(tensors, saved / "novelty.safetensors")
    with pytest.raises(ModelError, match="restore the model"):
        Annotator.load(saved)
