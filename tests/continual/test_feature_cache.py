import numpy as np
import pytest
import torch

from canal.continual.feature_cache import PrefixFeatures, prefix_digest, representations, stored
from tests.model.make import DEEP, make_annotator, make_expression

ANNOTATOR = make_annotator(config=DEEP)
TOKENS = np.minimum(make_expression(9), 5).astype(np.uint8)


@pytest.fixture
def backbone():
    return make_annotator(config=DEEP).network.backbone


def test_kept_and_computed_features_are_the_same_bits_in_any_company(tmp_path, backbone):
    kept = PrefixFeatures(backbone, TOKENS, tmp_path)
    computed = PrefixFeatures(backbone, TOKENS, None)
    assert torch.equal(kept.rows([8, 0, 3]), computed.rows([8, 0, 3]))
    assert torch.equal(kept.rows(range(9))[4], computed.rows([4])[0])


def test_features_are_the_networks_own(tmp_path, backbone):
    expected = backbone.encode_prefix(torch.from_numpy(TOKENS))
    assert torch.allclose(PrefixFeatures(backbone, TOKENS, tmp_path).rows(range(9)), expected, atol=1e-5)


def test_what_is_stored_is_not_computed_again(tmp_path, backbone, monkeypatch):
    before = PrefixFeatures(backbone, TOKENS, tmp_path).rows(range(9))
    monkeypatch.setattr(backbone, "encode_prefix", lambda tokens: pytest.fail("computed again"))
    assert torch.equal(PrefixFeatures(backbone, TOKENS, tmp_path).rows(range(9)), before)


def test_other_weights_or_cells_have_their_own_file(tmp_path, backbone):
    PrefixFeatures(backbone, TOKENS, tmp_path)
    PrefixFeatures(backbone, TOKENS[:5], tmp_path)
    with torch.no_grad():
        backbone.blocks[0].feed_forward.w1.weight[0, 0] += 1.0
    PrefixFeatures(backbone, TOKENS, tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_trained_weights_do_not_change_the_prefix(backbone):
    before = prefix_digest(backbone)
    with torch.no_grad():
        for value in backbone.blocks[1].parameters():
            value.add_(1.0)
        backbone.norm.weight.add_(1.0)
    assert prefix_digest(backbone) == before


@pytest.mark.parametrize("damage", ["cut short", "empty", "other shape", "no array"])
def test_a_damaged_file_is_written_anew(tmp_path, backbone, damage):
    expected = PrefixFeatures(backbone, TOKENS, tmp_path).rows(range(9))
    (path,) = tmp_path.iterdir()
    if damage == "cut short":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "other shape":
        with path.open("wb") as stream:
            np.save(stream, np.zeros((2, 2), dtype=np.float32))
    else:
        path.write_bytes(b"" if damage == "empty" else b"no array at all")
    assert torch.equal(PrefixFeatures(backbone, TOKENS, tmp_path).rows(range(9)), expected)
    assert len(list(tmp_path.iterdir())) == 1


def test_an_interrupted_computation_leaves_no_file(tmp_path):
    def rows():
        yield np.zeros(3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stored(tmp_path / "values.npy", (2, 3), rows)
    assert list(tmp_path.iterdir()) == []


def test_representations_are_the_teachers(tmp_path):
    network = ANNOTATOR.network
    features = PrefixFeatures(network.backbone, TOKENS, tmp_path)
    kept = representations(network, features, tmp_path)
    assert np.array_equal(kept, representations(network, features, None))
    assert kept == pytest.approx(ANNOTATOR.represent(TOKENS.astype(np.float32)), abs=1e-5)


def test_no_cells(tmp_path, backbone):
    features = PrefixFeatures(backbone, TOKENS[:0], tmp_path)
    assert features.rows([]).shape == (0, 21, 16)
    assert representations(ANNOTATOR.network, features, tmp_path).shape == (0, 64)
