"""Learning a stage: replay and distillation on cached features, early stopping on old and new cells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from canal.config import Continual
from canal.continual.cells import LabelledCells
from canal.continual.feature_cache import PrefixFeatures, representations
from canal.continual.fit import Epoch, Fit, Hooks
from canal.continual.gradients import groups_of, sum_gradients
from canal.continual.lesson import Learned, Lesson
from canal.continual.losses import distillation_weight, stage_losses
from canal.continual.schedule import learning_rate
from canal.continual.seeds import generator
from canal.digests import json_digest
from canal.model.annotator import Annotator, AnnotatorNetwork
from canal.model.lanes import in_lanes
from canal.model.storage import weights_digest

HISTORY_FORMAT = 1


def learn_stage(lesson: Lesson, settings: Continual, hooks: Hooks | None = None) -> Learned:
    """Learn a stage (bbae047) and return the annotator of its best epoch.

    All training and replayed cells are shuffled anew each epoch. After an epoch the new stage's validation
    cells and each earlier stage's probe are answered; the mean of their accuracies, an estimate of the
    average accuracy A_t, is the epoch's score. The best epoch is kept, a tie going to the lower
    cross-entropy; training ends after ``settings.patience`` epochs without a better score.

    The same lesson, settings and machine give the same weights bit for bit, on however many threads, with or
    without the cache, interrupted and resumed or not.

    Raises
    ------
    TrainingError
        If the loss stops being finite.
    """
    hooks = hooks or Hooks()
    annotator = _first(lesson)
    network = annotator.network.to(hooks.device)
    fit = Fit(network.trained(), _merit, hooks, fingerprint(lesson, settings, annotator))
    if not fit.stopped(settings.patience, settings.max_epochs):
        material = _gather(lesson, annotator, hooks)
        weight = distillation_weight(settings.distillation, len(lesson.old_labels), len(lesson.labels))
        while not fit.stopped(settings.patience, settings.max_epochs):
            record = _train_epoch(network, material, fit, settings, weight, lesson.seed)
            fit.end_epoch(record | _judge(network, material, lesson.stage))
    fit.take_best()
    network.to("cpu")
    return Learned(annotator, lesson.teacher, _history(lesson, settings, fit))


def fingerprint(lesson: Lesson, settings: Continual, start: Annotator) -> str:
    """Return a SHA-256 over all that decides what `learn_stage` learns, and the torch that does it."""
    cells = (lesson.train, lesson.validation, lesson.replay, lesson.probe)
    arrays = {str(i): torch.from_numpy(part.tokens()) for i, part in enumerate(cells)}
    return json_digest(
        {
            "stage": lesson.stage,
            "labels": lesson.labels,
            "genes": lesson.genes,
            "seed": lesson.seed,
            "settings": settings.model_dump(mode="json"),
            "start": weights_digest(start.network.state_dict()),
            "tokens": weights_digest(arrays),
            "cells": [[part.cell_ids, part.cell_types, part.stages] for part in cells],
            "torch": torch.__version__,
        }
    )


@dataclass(frozen=True, eq=False)
class _Material:
    """Cells as the network is fed them: training and replayed cells, and those that judge."""

    parts: tuple[PrefixFeatures, ...]
    targets: Tensor
    remembered: Tensor | None
    judges: dict[str, tuple[PrefixFeatures, Tensor]]

    def batch(self, indices: np.ndarray) -> Tensor:
        """Return the prefix features of cells counted through all parts."""
        first, second = self.parts
        old = indices >= len(first)
        rows = torch.empty((len(indices), *first.shape[1:]))
        for part, chosen, offset in ((first, ~old, 0), (second, old, len(first))):
            if chosen.any():
                rows[torch.from_numpy(chosen)] = part.rows(indices[chosen] - offset)
        return rows


def _first(lesson: Lesson) -> Annotator:
    """Return the annotator before its first epoch."""
    random = generator(lesson.seed, f"head of {lesson.stage}")
    if isinstance(lesson.parent, Annotator):
        return lesson.parent.grown(lesson.new_labels, random)
    return Annotator.start(lesson.parent, lesson.genes, lesson.labels, lesson.train.expression, random)


def _gather(lesson: Lesson, annotator: Annotator, hooks: Hooks) -> _Material:
    backbone, labels = annotator.network.backbone, annotator.labels

    def prefix(cells: LabelledCells) -> PrefixFeatures:
        return PrefixFeatures(backbone, cells.tokens(), hooks.cache_dir)

    def targets(cells: LabelledCells) -> Tensor:
        return torch.from_numpy(cells.targets(labels))

    parts = (prefix(lesson.train), prefix(lesson.replay))
    remembered = None
    if lesson.teacher is not None:
        teacher = lesson.teacher.network.to(hooks.device)
        answers = [representations(teacher, part, hooks.cache_dir) for part in parts]
        remembered = torch.from_numpy(np.concatenate(answers))
        teacher.to("cpu")
    judges = {stage: (prefix(cells), targets(cells)) for stage, cells in lesson.judges.items()}
    return _Material(parts, torch.cat([targets(lesson.train), targets(lesson.replay)]), remembered, judges)


def _train_epoch(
    network: AnnotatorNetwork, material: _Material, fit: Fit, settings: Continual, weight: float, seed: int
) -> Epoch:
    """Show every cell once and return the epoch's rate and mean losses."""
    number, device = len(fit.epochs) + 1, fit.hooks.device
    rate = learning_rate(number, settings)
    order = torch.randperm(len(material.targets), generator=generator(seed, "order", number))
    parameters, sums = list(fit.parameters.values()), np.zeros(3)
    for batch in torch.split(order, settings.batch_size):

        def losses(group: Tensor, size: int = len(batch)) -> Tensor:
            remembered = None if material.remembered is None else material.remembered[group].to(device)
            answer = network.finish(material.batch(group.numpy()).to(device))
            targets = material.targets[group].to(device)
            found = stage_losses(answer, targets, remembered, weight, settings.label_smoothing)
            return torch.stack(found) * (len(group) / size)

        found = sum_gradients(parameters, groups_of(batch, network.backbone), losses).double().cpu()
        fit.step(float(found[0]), rate)
        sums += len(batch) * found.numpy()
    loss, cross_entropy, distillation = (float(value) for value in sums / len(order))
    return {
        "epoch": number,
        "learning_rate": rate,
        "loss": loss,
        "cross_entropy": cross_entropy,
        "distillation": distillation,
    }


@torch.no_grad()
def _judge(network: AnnotatorNetwork, material: _Material, stage: str) -> Epoch:
    """Return accuracy on each stage's judges, their mean as the score, and the mean cross-entropy."""
    accuracy: dict[str, float] = {}
    cross_entropy: list[float] = []
    device = network.head.filter.weight.device
    for name, (features, targets) in material.judges.items():

        def answer(rows: Tensor, features: PrefixFeatures = features) -> Tensor:
            return network.finish(features.rows(rows.numpy()).to(device)).logits.cpu()

        rows = torch.split(torch.arange(len(targets)), network.backbone.cells_at_a_time)
        logits = torch.cat(in_lanes(answer, rows))
        accuracy[name] = float((logits.argmax(1) == targets).double().mean())
        cross_entropy.append(float(functional.cross_entropy(logits.double(), targets)))
    return {
        "validation_accuracy": accuracy[stage],
        "probe_accuracy": {name: value for name, value in accuracy.items() if name != stage},
        "score": float(np.mean(list(accuracy.values()))),
        "validation_cross_entropy": float(np.mean(cross_entropy)),
    }


def _merit(record: Mapping[str, Any]) -> tuple[float, ...]:
    return record["score"], -record["validation_cross_entropy"]


def _history(lesson: Lesson, settings: Continual, fit: Fit) -> dict[str, Any]:
    return {
        "format": HISTORY_FORMAT,
        "stage": lesson.stage,
        "epochs": fit.epochs,
        "best_epoch": fit.best_epoch,
        "stopped": fit.stopped(settings.patience, settings.max_epochs),
        "n_train": len(lesson.train),
        "n_replay": len(lesson.replay),
        "n_validation": len(lesson.validation),
        "n_probe": len(lesson.probe),
        "bank_size": settings.bank_size,
        "distillation": settings.distillation,
    }
