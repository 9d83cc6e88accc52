import copy

import pytest
import torch

from canal.model import compute as favor
from canal.model.backbone import FirstBlock, first_block
from tests.support.models import DEEP, make_backbone, seeded


@pytest.fixture
def network():
    return make_backbone(config=DEEP).network


def tokens_of(n_cells, seed=0, most=6):
    return torch.randint(0, most, (n_cells, 20), generator=seeded(seed), dtype=torch.uint8)


@pytest.mark.parametrize("cache", [1, 1 << 20])
@pytest.mark.parametrize(
    "tokens", [tokens_of(5), tokens_of(3, most=1), torch.full((2, 20), 5).to(torch.uint8)]
)
def test_looking_up_gives_what_computing_gives(network, monkeypatch, cache, tokens):
    monkeypatch.setattr(favor, "_CACHE_BYTES", cache)
    with torch.no_grad():
        computed = network.encode_prefix(tokens)
    with torch.inference_mode():
        looked_up = network.encode_prefix(tokens)
    assert torch.allclose(computed, looked_up, atol=1e-5)


def test_a_cell_is_the_same_bits_in_any_company(network):
    tokens = tokens_of(6)
    with torch.inference_mode():
        alone = torch.cat([first_block(network)(one[None].long()) for one in tokens_of(6)])
        assert torch.allclose(first_block(network)(tokens.long()), alone, atol=1e-6)


def test_tables_are_made_once_and_again_when_a_weight_changes(network, monkeypatch):
    made, of = [], FirstBlock.of
    monkeypatch.setattr(FirstBlock, "of", lambda performer: made.append(performer) or of(performer))
    with torch.inference_mode():
        before = network.encode_prefix(tokens_of(2))
        network.encode_prefix(tokens_of(2))
    assert len(made) == 1
    with torch.no_grad():
        network.blocks[0].feed_forward.w1.weight.mul_(1.5)
        network.token_emb.weight.add_(0.5)
    with torch.inference_mode():
        assert not torch.allclose(network.encode_prefix(tokens_of(2)), before, atol=1e-3)
    assert len(made) == 2
    copied = copy.deepcopy(network)
    with torch.inference_mode():
        assert torch.equal(copied.encode_prefix(tokens_of(2)), network.encode_prefix(tokens_of(2)))
