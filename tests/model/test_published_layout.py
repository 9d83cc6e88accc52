"""A checkpoint's tensors find their places, or the ones that do not are named."""

import numpy as np
import pytest
import torch

from canal.core.errors import ModelError
from canal.model.backbone import empty_performer
from canal.model.published import translate
from tests.support.models import TINY, seeded
from tests.support.published import ODD, published_forward, published_state

LAYER = "performer.net.layers.1"
FIRST = "performer.net.layers.0"


def network_of(state):
    found = translate(state)
    network = empty_performer(found.config, found.n_genes)
    network.load_state_dict(found.tensors, assign=True)
    return network.eval()


@pytest.mark.parametrize("config", [TINY, ODD], ids=["tiny", "odd"])
def test_hidden_states_are_those_of_the_published_mathematics(config):
    state = published_state(config, n_genes=15)
    tokens = torch.randint(0, 7, (2, 15), generator=seeded(1), dtype=torch.uint8)
    with torch.no_grad():
        hidden = network_of(state)(tokens).numpy()
    wanted = np.array([published_forward(state, cell.tolist(), config.heads) for cell in tokens])
    assert hidden.shape == (2, 16, config.dim)
    assert np.abs(hidden - wanted).max() < 1e-4
    assert np.abs(wanted[0] - wanted[1]).max() > 0.1


def test_every_tensor_matters_to_the_reference():
    """The comparison above would notice two tensors of one shape that were exchanged."""
    state = published_state(TINY, n_genes=6)
    plain = published_forward(state, [0, 1, 2, 3, 4, 5], TINY.heads)
    for name in state:
        if name.startswith("to_out.") or "calls_since" in name:
            continue
        other = {**state, name: state[name] * 1.5 + 0.1}
        assert np.abs(published_forward(other, [0, 1, 2, 3, 4, 5], TINY.heads) - plain).max() > 1e-3, name


def test_the_shape_is_that_of_the_tensors():
    found = translate(published_state(ODD, n_genes=9))
    assert (found.config, found.n_genes) == (ODD, 9)
    assert {value.dtype for value in found.tensors.values()} == {torch.float32}


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(kind):
    state = published_state(TINY, n_genes=9)
    name = f"{LAYER}.0.fn.to_q.weight"
    found = translate(state | {name: state[name].to(kind)})
    assert torch.equal(found.tensors["blocks.1.attention.to_q.weight"], state[name].to(kind).float())


def test_counters_of_later_versions_and_absent_logits_are_no_matter():
    state = published_state(TINY, n_genes=9)
    state["performer.proj_updater.calls_since_last_redraw"] = torch.tensor(1)
    for name in ("to_out.weight", "to_out.bias", "performer.calls_since_last_redraw"):
        del state[name]
    assert translate(state).config == TINY


def without(name):
    return lambda state: state.pop(name)


def put(name, value):
    return lambda state: state.__setitem__(name, value)


def changed(name, change):
    return lambda state: state.__setitem__(name, change(state[name]))


def with_one(value):
    def change(tensor):
        tensor = tensor.clone()
        tensor.view(-1)[3] = value
        return tensor

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without(f"{LAYER}.1.norm.bias"), rf"1 \(such as {LAYER}\.1\.norm\.bias\) missing, none not known"),
        (without("pos_emb.emb.weight"), r"pos_emb\.emb\.weight\) missing"),
        (
            put(f"{LAYER}.0.fn.to_q.bias", torch.zeros(16)),
            rf"none missing, 1 \(such as {LAYER}\.0\.fn\.to_q\.bias",
        ),
        (
            put("performer.net.layers.7.0.norm.bias", torch.zeros(16)),
            r"14 .*missing, 1 .*layers\.7\.0\.norm\.bias",
        ),
        (put("module.extra", torch.zeros(1)), r"1 \(such as module\.extra\) not known"),
        (
            changed(f"{LAYER}.1.fn.fn.w2.weight", lambda t: t.T),
            r"1 tensor.* have a shape .*fn\.w2\.weight \(expected \(16, 64\), found \(64, 16\)",
        ),
        (
            changed(f"{FIRST}.0.fn.to_q.weight", lambda t: t[:8]),
            r"7 tensor\(s\) have a shape .*0\.fn\.to_k\.weight",
        ),
        (changed(f"{FIRST}.0.fn.to_q.weight", lambda t: t[:12]), r"to_q has 12 rows .* of 8, "),
        (changed(f"{FIRST}.1.fn.fn.w1.weight", lambda t: t[:17]), r"w1 has 17 rows .* of 16, "),
        (
            changed("token_emb.weight", lambda t: t.ravel()),
            r"no matrices, such as token_emb\.weight \(112,\)",
        ),
        (changed("token_emb.weight", lambda t: t[:0]), r"no matrices, such as token_emb\.weight \(0, 16\)"),
        (changed("norm.weight", lambda t: t.int()), r"1 tensor.* are no plain .*norm\.weight \(torch\.int32"),
        (changed("norm.weight", lambda t: t.to_sparse()), r"are no plain .*norm\.weight .*sparse_coo"),
        (changed("norm.weight", lambda t: t.to("meta")), r"are no plain .*norm\.weight .*meta"),
        (put("norm.bias", [0.0] * 16), r"are no plain .*norm\.bias \(list\)"),
        (put("norm.bias", torch.zeros(1).expand(16)), r"norm\.bias \(claims more values than it stores\)"),
        (changed("norm.bias", with_one(float("nan"))), r"1 tensor.* hold values .*norm\.bias \(1 of 16\)"),
        (changed("pos_emb.emb.weight", with_one(1e300)), r"not finite in float32.*pos_emb.*\(1 of 160\)"),
    ],
)
def test_what_does_not_fit_is_named(damage, message):
    state = published_state(TINY, n_genes=9)
    damage(state)
    with pytest.raises(ModelError, match=message):
        translate(state)


def test_an_empty_state_is_refused():
    with pytest.raises(ModelError, match=r"32 \(such as token_emb\.weight.*missing"):
        translate({})
