import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from canal.model import compute as favor
from canal.model.backbone import orthogonal_projection
from canal.model.compute import KERNEL_EPSILON, favor_attention, heads_at_a_time, scaled_projection
from tests.support.models import seeded


def draw(*shape, seed=0, scale=0.5):
    return torch.randn(*shape, generator=seeded(seed)) * scale


def features(x, projection, largest):
    """Return the formula's features, for ``x`` (positions, size), with the maximum that ``largest`` takes."""
    scaled = x * x.shape[1] ** -0.25
    exponents = scaled @ projection.T
    return (
        torch.exp(exponents - scaled.square().sum(1, keepdim=True) / 2 - largest(exponents)) + KERNEL_EPSILON
    )


def written_out(qkv, heads, projection):
    """Attention head by head and cell by cell, as the paper has it."""
    cells, positions, width = qkv.shape
    size, results = width // 3 // heads, []
    for cell in qkv:
        q, k, v = cell.view(positions, 3, heads, size).permute(1, 2, 0, 3)
        of_cell = []
        for head in range(heads):
            queries = features(q[head], projection, lambda e: e.detach().amax(1, keepdim=True))
            keys = features(k[head], projection, lambda e: e.detach().max())
            of_cell.append((queries @ (keys.T @ v[head])) / (queries @ keys.sum(0))[:, None])
        results.append(torch.cat(of_cell, dim=1))
    return torch.stack(results)


@pytest.fixture(params=["all heads together", "one head at a time"])
def cache(request, monkeypatch):
    if request.param == "one head at a time":
        monkeypatch.setattr(favor, "_CACHE_BYTES", 1)


@pytest.mark.parametrize("loudness", [0.5, 4.0])
def test_values_and_gradients_are_the_formulas(cache, loudness):
    projection = orthogonal_projection(11, 8, seeded())
    qkv = draw(2, 13, 3 * 3 * 8, scale=loudness).double().requires_grad_()
    into = draw(2, 13, 3 * 8, seed=1).double()
    found = favor_attention(qkv, 3, scaled_projection(projection.double()))
    expected = written_out(qkv, 3, projection.double())
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-12)
    (gradient,) = torch.autograd.grad((found * into).sum(), qkv)
    (wanted,) = torch.autograd.grad((expected * into).sum(), qkv)
    assert torch.allclose(gradient, wanted, rtol=1e-8, atol=1e-11)


def test_attention_comes_near_exact_attention():
    qkv = torch.cat([draw(2, 12, 24, seed=seed) for seed in (1, 2, 3)], dim=2)
    found = favor_attention(qkv, 3, scaled_projection(orthogonal_projection(8192, 8, seeded())))
    q, k, v = qkv.view(2, 12, 3, 3, 8).permute(2, 0, 3, 1, 4)
    exact = (torch.softmax(q @ k.mT / math.sqrt(8), dim=-1) @ v).transpose(1, 2).reshape(2, 12, 24)
    assert (found - exact).abs().max() < 0.04


@settings(max_examples=30, deadline=None)
@given(order=st.permutations(range(4)), loudness=st.sampled_from([0.0, 1.0, 30.0]))
def test_a_cell_does_not_change_its_neighbours(order, loudness):
    projection = scaled_projection(orthogonal_projection(10, 8, seeded()))
    qkv = draw(4, 5, 48)
    alone = torch.cat([favor_attention(cell[None], 2, projection) for cell in qkv])
    loud = torch.cat([qkv[list(order)], draw(1, 5, 48, seed=2) * loudness])
    beside = favor_attention(loud, 2, projection)[:4]
    assert torch.allclose(beside, alone[list(order)], atol=1e-6)


def test_large_inputs_have_finite_values_and_gradients(cache):
    qkv = draw(1, 4, 48, scale=40.0).requires_grad_()
    found = favor_attention(qkv, 2, scaled_projection(orthogonal_projection(10, 8, seeded())))
    found.sum().backward()
    assert torch.isfinite(found).all()
    assert torch.isfinite(qkv.grad).all()


def test_as_many_heads_go_together_as_fit():
    assert heads_at_a_time(1001, 10, 266) == 1
    assert heads_at_a_time(33, 2, 16) == 2
