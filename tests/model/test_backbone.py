import json

import pytest
import torch

from canal.core.digests import tree_digests
from canal.core.errors import ModelError
from canal.model.backbone import Backbone
from tests.support.models import DEEP, make_backbone


def test_saved_and_loaded(tmp_path):
    backbone = make_backbone(config=DEEP)
    backbone.save(tmp_path / "model")
    loaded = Backbone.load(tmp_path / "model")
    assert (loaded.config, loaded.vocabulary) == (DEEP, backbone.vocabulary)
    tokens = torch.arange(20).remainder(6).reshape(1, 20)
    assert torch.equal(loaded.network(tokens), backbone.network(tokens))
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "config.json",
        "vocabulary.json",
        "weights.safetensors",
    ]


def test_equal_backbones_have_equal_bytes(tmp_path):
    make_backbone().save(tmp_path / "a")
    make_backbone().save(tmp_path / "b")
    assert tree_digests(tmp_path / "a") == tree_digests(tmp_path / "b")


def test_a_panel_takes_its_rows_in_its_order():
    backbone = make_backbone()
    panel = (backbone.vocabulary[7], backbone.vocabulary[2])
    network = backbone.for_panel(panel)
    rows = backbone.network.pos_emb.weight
    assert network.n_genes == 2
    assert torch.equal(network.pos_emb.weight, rows[[7, 2, 20]])
    with torch.no_grad():
        network.token_emb.weight.add_(1.0)
    assert not torch.equal(network.token_emb.weight, backbone.network.token_emb.weight)


def test_a_gene_outside_the_vocabulary_is_named():
    with pytest.raises(ModelError, match=r"1 of 2 panel genes.*UNHEARD"):
        make_backbone().for_panel(("CD3D", "UNHEARD"))


def test_a_repeated_gene_of_the_vocabulary_is_refused(tmp_path):
    make_backbone().save(tmp_path / "model")
    path = tmp_path / "model" / "vocabulary.json"
    names = json.loads(path.read_text())
    path.write_text(json.dumps([names[1], *names[1:]]))
    with pytest.raises(ModelError, match="occur more than once"):
        Backbone.load(tmp_path / "model")
