import math

import pytest

from canal.core.errors import ModelError
from canal.model.storage import PRESETS, BackboneConfig, require_preset


def test_scbert_has_the_published_shape():
    size = PRESETS["scbert"]
    assert (size.panel, size.vocabulary) == (1000, 16906)
    assert size.backbone == BackboneConfig(
        dim=200, depth=6, heads=10, head_dim=64, n_features=266, ff_mult=4, n_tokens=7
    )


@pytest.mark.parametrize("name", ["tiny", "small", "scbert"])
def test_number_of_features_follows_the_width_of_a_head(name):
    config = PRESETS[name].backbone
    assert config.n_features == math.floor(config.head_dim * math.log(config.head_dim))


@pytest.mark.parametrize("name", ["tiny", "small", "scbert"])
def test_json_and_back(name):
    config = PRESETS[name].backbone
    assert BackboneConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 1}, "depth must be at least 2"),
        ({"dim": 0}, "dim must be a whole number"),
        ({"dim": 16.0}, "dim must be a whole number"),
        ({"heads": True}, "heads must be a whole number"),
        ({"colour": 3}, "has the keys"),
    ],
)
def test_a_wrong_shape_is_refused(change, message):
    with pytest.raises(ModelError, match=message):
        BackboneConfig.from_json(PRESETS["tiny"].backbone.to_json() | change)


def test_something_else_than_a_mapping_is_refused():
    with pytest.raises(ModelError, match="found NoneType"):
        BackboneConfig.from_json(None)


def test_a_preset_takes_its_shape_and_at_most_its_genes():
    scbert = PRESETS["scbert"].backbone
    require_preset(scbert, 16906, "scbert")
    require_preset(PRESETS["tiny"].backbone, 3, "tiny")
    with pytest.raises(ModelError, match=r"dim 200, .* 16906 genes, but .*small has dim 64.*preset: scbert$"):
        require_preset(scbert, 16906, "small")
    with pytest.raises(ModelError, match=r"16907 genes, .*at most 16906 genes; none of tiny, small, scbert"):
        require_preset(scbert, 16907, "scbert")
