import torch

from canal.continual.fit import generator


def draw(*arguments):
    return torch.rand(3, generator=generator(*arguments)).tolist()


def test_the_same_purpose_draws_the_same():
    assert draw(0, "order", 3) == draw(0, "order", 3)


def test_seed_purpose_and_number_each_change_the_draw():
    draws = [draw(0, "order", 1), draw(1, "order", 1), draw(0, "mask", 1), draw(0, "order", 2)]
    assert len({tuple(values) for values in draws}) == 4
