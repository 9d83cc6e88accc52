from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from canal.continual import feature_cache
from canal.continual.feature_cache import PrefixFeatures, prefix_digest, representations
from canal.continual.segments import CacheSpace, RowKind
from canal.model.compute import each_alone
from tests.support.models import DEEP, make_annotator, make_expression

ANNOTATOR = make_annotator(config=DEEP)
TOKENS = np.minimum(make_expression(9), 5).astype(np.uint8)


@pytest.fixture
def backbone():
    return make_annotator(config=DEEP).network.backbone


@pytest.fixture
def space(tmp_path):
    return CacheSpace(tmp_path)


@pytest.fixture
def computed(monkeypatch):
    """The indices that are computed, in order."""
    indices = []

    def counted(work, wanted):
        indices.extend(wanted)
        return each_alone(work, wanted)

    monkeypatch.setattr(feature_cache, "each_alone", counted)
    return indices


def test_kept_and_computed_features_are_the_same_bits_in_any_company(space, backbone):
    kept = PrefixFeatures(backbone, TOKENS, space)
    computed = PrefixFeatures(backbone, TOKENS, None)
    assert torch.equal(kept.rows([8, 0, 3]), computed.rows([8, 0, 3]))
    assert torch.equal(kept.rows(range(9))[4], computed.rows([4])[0])


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_number_of_threads_changes_no_bit_and_is_left_as_it_was(threads):
    backbone = make_annotator(n_genes=300, config=DEEP).network.backbone
    tokens = np.minimum(make_expression(7, 300), 5).astype(np.uint8)
    expected = PrefixFeatures(backbone, tokens, None).rows(range(7))
    torch.set_num_threads(threads)
    try:
        found = PrefixFeatures(backbone, tokens, None).rows(range(7))
        assert torch.get_num_threads() == threads
        with ThreadPoolExecutor(1) as fresh:
            assert fresh.submit(torch.get_num_threads).result() == threads
    finally:
        torch.set_num_threads(1)
    assert torch.equal(found, expected)


def test_features_are_the_networks_own(space, backbone):
    expected = backbone.encode_prefix(torch.from_numpy(TOKENS))
    assert torch.allclose(PrefixFeatures(backbone, TOKENS, space).rows(range(9)), expected, atol=1e-5)


def test_what_is_stored_is_not_computed_again(tmp_path, backbone, monkeypatch):
    before = PrefixFeatures(backbone, TOKENS, CacheSpace(tmp_path)).rows(range(9))
    monkeypatch.setattr(backbone, "encode_prefix", lambda tokens: pytest.fail("computed again"))
    assert torch.equal(PrefixFeatures(backbone, TOKENS, CacheSpace(tmp_path)).rows(range(9)), before)


def test_other_cells_share_what_they_have_in_common(tmp_path, backbone, computed):
    PrefixFeatures(backbone, TOKENS[:5], CacheSpace(tmp_path))
    later = PrefixFeatures(backbone, TOKENS[2:], CacheSpace(tmp_path))
    assert computed == [0, 1, 2, 3, 4, 3, 4, 5, 6]
    assert torch.equal(later.rows([0, 6]), PrefixFeatures(backbone, TOKENS, None).rows([2, 8]))


def test_other_weights_types_torches_or_code_have_their_own_folder(tmp_path, backbone, monkeypatch):
    def key(dtype="float32"):
        return PrefixFeatures(backbone, TOKENS, CacheSpace(tmp_path), dtype).key

    keys = [key(), key("bfloat16")]
    with torch.no_grad():
        backbone.blocks[0].feed_forward.w1.weight[0, 0] += 1.0
    keys.append(key())
    monkeypatch.setattr(feature_cache, "_code_digest", lambda: "edited")
    keys.append(key())
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    keys.append(key())
    assert sorted(keys) == sorted(path.name for path in tmp_path.iterdir())
    assert len(set(keys)) == 5


def test_trained_weights_do_not_change_the_prefix(backbone):
    before = prefix_digest(backbone)
    with torch.no_grad():
        for value in backbone.blocks[1].parameters():
            value.add_(1.0)
        backbone.norm.weight.add_(1.0)
    assert prefix_digest(backbone) == before


@pytest.mark.parametrize("damage", ["cut short", "empty", "other shape", "no array", "a flipped byte"])
def test_a_damaged_file_is_written_anew(tmp_path, backbone, damage):
    expected = PrefixFeatures(backbone, TOKENS, CacheSpace(tmp_path)).rows(range(9))
    (path,) = tmp_path.rglob("*.npy")
    if damage == "cut short":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "other shape":
        with path.open("wb") as stream:
            np.save(stream, np.zeros((2, 2), dtype=np.float32))
    elif damage == "a flipped byte":
        path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    else:
        path.write_bytes(b"" if damage == "empty" else b"no array at all")
    assert torch.equal(PrefixFeatures(backbone, TOKENS, CacheSpace(tmp_path)).rows(range(9)), expected)
    assert len(list(tmp_path.rglob("*.npy"))) == 1


def test_rounded_features_are_the_same_kept_or_not_and_near_the_exact_ones(space, backbone):
    exact = PrefixFeatures(backbone, TOKENS, None).rows(range(9))
    kept = PrefixFeatures(backbone, TOKENS, space, "bfloat16").rows(range(9))
    assert torch.equal(kept, PrefixFeatures(backbone, TOKENS, None, "bfloat16").rows(range(9)))
    assert not torch.equal(kept, exact)
    assert ((kept - exact).abs() <= exact.abs() * 2.0**-8).all()


def test_cells_that_do_not_fit_are_reported_and_have_the_same_features(tmp_path, backbone):
    two = RowKind((21, 16)).segment_bytes(2)
    few = PrefixFeatures(backbone, TOKENS, CacheSpace(tmp_path, two))
    assert few.kept == 2
    assert few.shortage.startswith("the features of 2 of 9 cells are kept")
    whole = PrefixFeatures(backbone, TOKENS, None)
    assert torch.equal(few.rows(range(9)), whole.rows(range(9)))
    assert whole.shortage == PrefixFeatures(backbone, TOKENS, CacheSpace(tmp_path)).shortage == ""


def test_representations_are_the_teachers(tmp_path, computed):
    network, space = ANNOTATOR.network, CacheSpace(tmp_path)
    features = PrefixFeatures(network.backbone, TOKENS, space)
    kept = representations(network, features, space)
    assert np.array_equal(kept, representations(network, features, None))
    assert kept == pytest.approx(ANNOTATOR.represent(TOKENS.astype(np.float32)), abs=1e-5)
    computed.clear()
    assert np.array_equal(kept[:4], representations(network, features, CacheSpace(tmp_path), 4))
    assert computed == []


def test_rounded_features_have_their_own_representations(tmp_path):
    network, space = ANNOTATOR.network, CacheSpace(tmp_path)
    for dtype in ("float32", "bfloat16"):
        features = PrefixFeatures(network.backbone, TOKENS, space, dtype)
        kept = representations(network, features, space)
        assert np.array_equal(kept, representations(network, features, None))


def test_another_teacher_answers_for_itself(tmp_path):
    space, other = CacheSpace(tmp_path), make_annotator(config=DEEP)
    with torch.no_grad():
        other.network.head.to_representation.bias.add_(1.0)
    both = [
        representations(one.network, PrefixFeatures(one.network.backbone, TOKENS, space), space)
        for one in (ANNOTATOR, other)
    ]
    assert np.abs(both[0] - both[1]).max() > 0.01


def test_no_cells(space, backbone):
    features = PrefixFeatures(backbone, TOKENS[:0], space)
    assert features.rows([]).shape == (0, 21, 16)
    assert representations(ANNOTATOR.network, features, space).shape == (0, 64)
