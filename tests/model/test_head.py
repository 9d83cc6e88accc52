import pytest
import torch

from canal.model.head import Head, grow, new_head
from tests.support.models import seeded


def hidden_of(n_cells=60, positions=9, dim=16, seed=0, offset=0.0):
    random = torch.randn(n_cells, positions, dim, generator=seeded(seed))
    genes = torch.randn(positions, dim, generator=seeded(seed + 1))
    return random * 0.1 + genes + offset


@pytest.mark.parametrize("offset", [0.0, 5.0, -5.0])
def test_no_layer_is_born_dead(offset):
    hidden = hidden_of(offset=offset)
    head = new_head(hidden, 4, seeded())
    filtered = head.filter(hidden).squeeze(-1)
    assert filtered.mean().item() == pytest.approx(0.0, abs=1e-3)
    assert filtered.std(dim=0, correction=0).mean().item() == pytest.approx(0.5, rel=1e-3)
    manifold, representation, logits = head(hidden)
    for layer in (manifold, representation):
        alive = (layer > 0).any(dim=0)
        assert alive.all(), f"{int((~alive).sum())} of {len(alive)} units never fire"
    assert logits.shape == (60, 4)


def test_every_parameter_of_a_new_head_gets_a_gradient():
    hidden = hidden_of()
    head = new_head(hidden, 4, seeded()).requires_grad_(True)
    torch.nn.functional.cross_entropy(head(hidden).logits, torch.arange(60) % 4).backward()
    for name, value in head.named_parameters():
        assert value.grad.abs().sum() > 0, name


def test_identical_cells_give_a_finite_head():
    hidden = hidden_of(n_cells=1).expand(5, -1, -1)
    head = new_head(hidden, 3, seeded())
    assert all(torch.isfinite(value).all() for value in head.state_dict().values())


def test_the_head_by_hand():
    head = Head(dim=2, positions=2, n_types=2)
    with torch.no_grad():
        for value in head.parameters():
            value.zero_()
        head.filter.weight[:] = torch.tensor([[1.0, -1.0]])
        head.filter.bias[:] = 0.5
        head.to_manifold.weight[0] = torch.tensor([2.0, 1.0])
        head.to_representation.weight[0, 0] = 3.0
        head.prototypes.weight[:, 0] = torch.tensor([1.0, -1.0])
        # positions (1, 0) and (0, 1): filter 1.5 and -0.5, ReLU 1.5 and 0; manifold 3; representation 9
        answer = head(torch.eye(2).reshape(1, 2, 2))
    assert answer.manifold[0, 0] == 3.0
    assert answer.representation[0, 0] == 9.0
    assert answer.logits.tolist() == [[9.0, -9.0]]


def test_growth_keeps_every_old_value_bit_for_bit():
    hidden = hidden_of()
    old = new_head(hidden, 3, seeded())
    before = {name: value.clone() for name, value in old.state_dict().items()}
    new = grow(old, 2, seeded(7))
    values = new.state_dict()
    assert values["prototypes.weight"].shape == (5, 64)
    for name, value in before.items():
        assert torch.equal(values[name][: len(value)], value), name
        assert torch.equal(old.state_dict()[name], value), name
    assert torch.equal(new(hidden).representation, old(hidden).representation)
    assert values["prototypes.weight"][3:].abs().sum() > 0


def test_growth_shares_no_memory_with_the_old_head():
    old = new_head(hidden_of(), 3, seeded())
    new = grow(old, 1, seeded())
    before = old.filter.weight.clone()
    with torch.no_grad():
        for value in new.parameters():
            value.add_(1.0)
    assert torch.equal(old.filter.weight, before)


def test_growth_by_nothing():
    old = new_head(hidden_of(), 3, seeded())
    assert torch.equal(grow(old, 0, seeded()).prototypes.weight, old.prototypes.weight)
