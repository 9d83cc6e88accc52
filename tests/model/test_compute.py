import numpy as np
import pytest
import torch

from canal.core.errors import ModelError
from canal.model.compute import bfloat16_speed, find_device, precision
from tests.support.models import DEEP, make_annotator, make_expression


def test_auto_is_the_cpu_where_there_is_no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_device("auto") == find_device("cpu") == "cpu"
    with pytest.raises(ModelError, match="torch sees no GPU"):
        find_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert find_device("auto") == "cuda"


def test_a_device_of_another_name_is_refused():
    with pytest.raises(ModelError, match="auto, cpu or cuda, found 'tpu'"):
        find_device("tpu")


@pytest.mark.parametrize("threads", [1, 2])
def test_bfloat16_answers_nearly_the_same_in_every_thread(threads):
    annotator, cells = make_annotator(config=DEEP), make_expression(12, seed=3)
    exact = annotator.answers(cells)
    torch.set_num_threads(threads)
    try:
        with precision("bfloat16", "cpu"):
            rough = annotator.answers(cells)
    finally:
        torch.set_num_threads(1)
    assert rough.representation.dtype == torch.bfloat16
    assert not torch.equal(rough.logits.float(), exact.logits)
    scale = exact.representation.std()
    assert (rough.representation.float() - exact.representation).abs().mean() < 0.05 * scale
    assert np.array_equal(annotator.answers(cells).logits, exact.logits)


def test_gradients_in_bfloat16_point_the_same_way():
    annotator, cells = make_annotator(config=DEEP), make_expression(4, seed=3)
    tokens = torch.from_numpy(np.minimum(cells, 5).astype(np.uint8))
    parameters = list(annotator.network.trained().values())

    def gradient():
        loss = annotator.network(tokens).representation.float().square().sum()
        return torch.cat(
            [
                part.flatten()
                for part in torch.autograd.grad(loss, parameters, allow_unused=True)
                if part is not None
            ]
        )

    exact = gradient()
    with precision("bfloat16", "cpu"):
        rough = gradient()
    assert torch.nn.functional.cosine_similarity(exact, rough, dim=0) > 0.98


def test_the_speed_of_bfloat16_is_a_ratio():
    assert 1e-4 < bfloat16_speed("cpu") < 1e3
