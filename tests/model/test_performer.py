import pytest
import torch

from canal.model.backbone import empty_performer, new_performer
from tests.support.models import DEEP, TINY, make_backbone, seeded


def tokens_of(n_cells, n_genes=20, seed=0):
    return torch.randint(0, 6, (n_cells, n_genes), generator=seeded(seed), dtype=torch.uint8)


@pytest.mark.parametrize("config", [TINY, DEEP], ids=["tiny", "deep"])
def test_prefix_and_rest_are_the_whole(config):
    network = make_backbone(config=config).network
    tokens = tokens_of(3)
    with torch.no_grad():
        whole = network(tokens)
        parts = network.encode_rest(network.encode_prefix(tokens))
    assert whole.shape == (3, 21, config.dim)
    assert torch.equal(whole, parts)


def test_the_trained_block_is_the_last_but_one_and_comes_after_the_prefix():
    network = make_backbone(config=DEEP).network
    tokens = tokens_of(2)
    before = network.encode_prefix(tokens)
    with torch.no_grad():
        network.blocks[1].feed_forward.w1.weight.add_(1.0)
        network.norm.weight.mul_(2.0)
    assert torch.equal(before, network.encode_prefix(tokens))
    with torch.no_grad():
        network.blocks[0].feed_forward.w1.weight.add_(1.0)
    assert not torch.equal(before, network.encode_prefix(tokens))


def test_frozen_is_all_but_the_last_block_but_one_and_the_final_norm():
    network = make_backbone(config=DEEP).network
    network.freeze()
    trained = {name for name, value in network.named_parameters() if value.requires_grad}
    assert trained == {n for n, _ in network.named_parameters() if n.startswith(("blocks.1.", "norm."))}


def test_the_closing_position_has_no_gene_embedding_and_token_zero():
    network = make_backbone(config=TINY).network
    first = network.encode_prefix(tokens_of(2))  # tiny has no frozen block: embeddings alone
    assert torch.equal(network.pos_emb.weight[-1], torch.zeros(TINY.dim))
    assert torch.equal(first[:, -1], network.token_emb.weight[0].expand(2, -1))


def test_query_key_and_value_have_no_bias():
    names = dict(make_backbone().network.named_parameters())
    assert "blocks.0.attention.to_out.bias" in names
    assert not {f"blocks.0.attention.to_{x}.bias" for x in "qkv"} & names.keys()


def test_projections_are_saved_but_not_trained():
    network = make_backbone().network
    name = "blocks.0.attention.projection_matrix"
    assert name in network.state_dict()
    assert name not in dict(network.named_parameters())


def test_new_networks_draw_from_their_generator_alone():
    embedding = torch.zeros(5, TINY.dim)
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first = new_performer(TINY, embedding, seeded(3)).state_dict()
    assert torch.equal(state, torch.random.get_rng_state())
    second = new_performer(TINY, embedding, seeded(3)).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.isfinite(value).all() for value in first.values())


def test_the_position_of_a_gene_matters():
    network = make_backbone().network
    tokens = torch.zeros(2, 20, dtype=torch.uint8)
    tokens[0, 0] = tokens[1, 1] = 5
    first, second = network(tokens)
    assert not torch.allclose(first.mean(0), second.mean(0), atol=1e-4)


def test_an_empty_network_takes_no_memory():
    assert all(value.is_meta for value in empty_performer(TINY, 10).state_dict().values())
