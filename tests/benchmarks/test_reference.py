"""The yardstick does what the engine does, or the ratios would mean nothing."""

import numpy as np
import pytest
import reference
import torch

from canal.continual.cells import LabelledCells
from canal.continual.fit import generator
from canal.continual.trainer import learn_stage
from canal.model.storage import PRESETS
from tests.support.models import DEEP, make_annotator, make_expression
from tests.support.tasks import SETTINGS, second_task


def test_logits_are_the_engines():
    annotator, cells = make_annotator(config=DEEP), make_expression(7)
    found = reference.predict(cells, reference.weights_of(annotator), batch_size=3)
    assert found == pytest.approx(annotator.predict(cells).logits, abs=1e-5)


def test_an_epoch_ends_with_the_engines_weights():
    task = second_task()
    settings = SETTINGS.model_copy(update={"max_epochs": 1, "warmup_epochs": 0})
    learned = learn_stage(task, settings)

    student = task.parent.grown(task.new_labels, generator(task.seed, f"head of {task.stage}"))
    weights, teacher = reference.weights_of(student), reference.weights_of(task.parent)
    together = LabelledCells.concatenate([task.train, task.replay])
    order = torch.randperm(len(together), generator=generator(task.seed, "order", 1)).numpy()
    cells = (together.expression[order], together.targets(task.labels)[order])
    optimizer = reference.optimizer_of(weights, settings.learning_rate)
    loss = reference.train_epoch(weights, teacher, cells, optimizer, settings.distillation * 2 / 3)

    assert loss == pytest.approx(learned.history["epochs"][0]["loss"], rel=1e-4)
    before, after = student.network.state_dict(), learned.annotator.network.state_dict()

    def distance(values):
        return np.concatenate([(weights[name] - values[name]).detach().abs().flatten() for name in values])

    # Adam turns the last bits of a gradient that is all but zero into a whole step: a few weights may differ.
    assert np.mean(distance(after) > 1e-4) < 0.01
    assert np.mean(distance(before) > 1e-3) > 0.1


def test_a_published_cell_costs_18_gflop():
    assert reference.nominal_flops(PRESETS["scbert"].backbone, 1000) == pytest.approx(18.2e9, rel=0.01)
