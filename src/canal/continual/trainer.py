"""Train a stage: replay and distillation on cached features, early stopping by validation cells and probes.

Holds the loss, the learning rate of each epoch, and the loading of batches in the background, too.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from canal.config.sections import Continual
from canal.continual.cells import LabelledCells
from canal.continual.feature_cache import PrefixFeatures, representations
from canal.continual.fit import Epoch, Fit, Hooks, generator, groups_of, shared, sum_gradients
from canal.continual.pretraining import place_genes
from canal.continual.processes import Share
from canal.continual.segments import CacheSpace
from canal.continual.stage import Learned, Task
from canal.core.digests import json_digest
from canal.core.progress import counted, doing
from canal.model.annotator import Annotator, gene_vectors, with_genes
from canal.model.backbone import MOST_CELLS
from canal.model.compute import in_threads, precision
from canal.model.head import AnnotatorNetwork, Answer
from canal.model.storage import weights_digest

HISTORY_FORMAT = 1

T = TypeVar("T")
U = TypeVar("U")


def learn_stage(task: Task, settings: Continual, hooks: Hooks | None = None) -> Learned:
    """Learn a stage (bbae047) and return the annotator of its best epoch.

    All training and replayed cells are shuffled anew each epoch. After an epoch the new stage's validation
    cells and each earlier stage's probe set are predicted; the mean of their accuracies, an estimate of the
    average accuracy A_t, is the epoch's score. The best epoch is kept, a tie going to the lower
    cross-entropy; training ends after ``settings.patience`` epochs without a better score.

    The same task, settings and machine give the same weights bit for bit, on however many threads, by however
    many processes (`canal.continual.fit.shared`), with or without the cache, interrupted and resumed or not.

    Raises
    ------
    TrainingError
        If the loss stops being finite, or the disk cannot hold the features that are to be kept.
    """
    hooks = hooks or Hooks()
    start = starting_annotator(task)
    if hooks.processes not in (1, None) and hooks.cache_dir is not None:
        # By all threads, before other processes take some of them: these then find the features.
        start.network.to(hooks.device)
        with precision(hooks.dtype, hooks.device):
            _Material.of(task, settings, start, replace(hooks, on_notice=lambda _: None))
        start.network.to("cpu")
    return shared(_learn, (task, settings, start), hooks, settings.batch_size)


def _learn(task: Task, settings: Continual, start: Annotator, hooks: Hooks, share: Share) -> Learned:
    """Learn a stage as one of several processes; see `learn_stage`."""
    annotator = start if share.size == 1 else deepcopy(start)  # others may start again from it
    network = annotator.network.to(hooks.device)
    if idle := share.idle(len(groups_of(torch.arange(settings.batch_size), network.backbone, share.size))):
        hooks.on_notice(idle)
    fit = Fit(network.trained(), _merit, hooks, fingerprint(task, settings, annotator, hooks), share)
    if not fit.stopped(settings.patience, settings.max_epochs):
        if more := task.added_genes:
            hooks.on_notice(f"the panel grows by {len(more)} genes, such as {', '.join(more[:8])}")
        with precision(hooks.dtype, hooks.device):
            material = _Material.of(task, settings, annotator, hooks)
            while not fit.stopped(settings.patience, settings.max_epochs):
                record = _train_epoch(network, material, fit, settings, task)
                fit.end_epoch(record | _validate(network, material, task.stage, share))
    fit.take_best()
    network.to("cpu")
    return Learned(annotator, task.teacher, history_document(task, settings, fit))


def fingerprint(task: Task, settings: Continual, start: Annotator, hooks: Hooks) -> str:
    """Return a SHA-256 over all that decides what `learn_stage` learns, and the torch that does it."""
    cells = (task.train, task.validation, task.replay, task.probe)
    arrays = {str(i): torch.from_numpy(part.tokens()) for i, part in enumerate(cells)}
    return json_digest(
        {
            "stage": task.stage,
            "labels": task.labels,
            "genes": task.genes,
            "seed": task.seed,
            "settings": settings.model_dump(mode="json", exclude={"method"}, exclude_none=True),
            "start": weights_digest(start.network.state_dict()),
            "tokens": weights_digest(arrays),
            "cells": [[part.cell_ids, part.cell_types, part.stages] for part in cells],
            "torch": torch.__version__,
            "types": [hooks.dtype, hooks.cache.dtype],
        }
    )


@dataclass(frozen=True, eq=False)
class _Material:
    """Features of all cells of a training: training cells, replayed cells, then validation cells by stage.

    ``features`` holds all of them, ``targets`` and ``remembered`` (the teacher's representations) those that
    are trained on; ``validation`` has the rows of each stage's validation cells in ``features``, and their
    targets.
    """

    features: PrefixFeatures
    targets: Tensor
    remembered: Tensor | None
    validation: dict[str, tuple[Tensor, Tensor]]

    @classmethod
    def of(cls, task: Task, settings: Continual, annotator: Annotator, hooks: Hooks) -> _Material:
        """Return the features of the task's cells, cached where ``hooks`` say so."""

        def targets(cells: LabelledCells) -> Tensor:
            return torch.from_numpy(cells.targets(annotator.labels))

        trained = [task.train, task.replay]
        validation = task.validation_cells(settings.max_validation_cells)
        ends = np.cumsum([len(cells) for cells in (*trained, *validation.values())])
        # All cells at once, so that too small a disk raises before anything is computed.
        tokens = np.concatenate([cells.tokens() for cells in (*trained, *validation.values())])
        space = None if hooks.cache_dir is None else CacheSpace(hooks.cache_dir, hooks.cache.max_bytes)
        features = PrefixFeatures(annotator.network.backbone, tokens, space, hooks.cache.dtype)
        if features.shortage:
            hooks.on_notice(features.shortage)
        remembered = None
        if task.teacher is not None:
            teacher, seen = task.teacher.network.to(hooks.device), features
            if task.added_genes:
                # The teacher reads its own panel, so its prefix is another; kept are its answers alone.
                own = np.ascontiguousarray(tokens[: ends[1], : len(task.teacher.genes)])
                seen = PrefixFeatures(teacher.backbone, own, None, hooks.cache.dtype)
            remembered = torch.from_numpy(representations(teacher, seen, space, int(ends[1])))
            teacher.to("cpu")
        rows = [torch.arange(first, last) for first, last in pairwise(ends[1:].tolist())]
        return cls(
            features,
            torch.cat([targets(cells) for cells in trained]),
            remembered,
            {name: (part, targets(validation[name])) for name, part in zip(validation, rows, strict=True)},
        )

    def groups(self, groups: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Return the rows of each group with the features of its cells; pinned, where a GPU is to read them.

        The groups are consecutive ones of a batch, and are read at once.
        """
        if not groups:
            return []
        features = self.features.rows(torch.cat([*groups]).numpy())
        if self.features.device.type != "cpu":
            features = features.pin_memory()
        return list(zip(groups, torch.split(features, [len(group) for group in groups]), strict=True))


def starting_annotator(task: Task) -> Annotator:
    """Return the annotator before its first epoch."""
    random = generator(task.seed, f"head of {task.stage}")
    if not isinstance(task.parent, Annotator):
        return Annotator.start(task.parent, task.genes, task.labels, task.train.expression, random)
    annotator = task.parent.grown(task.new_labels, random)
    if not task.added_genes:
        return annotator
    vectors = place_genes(task.train.expression, gene_vectors(annotator))
    return with_genes(annotator, task.added_genes, vectors)


def _train_epoch(
    network: AnnotatorNetwork, material: _Material, fit: Fit, settings: Continual, task: Task
) -> Epoch:
    """Train on every cell once and return the epoch's learning rate and mean losses."""
    number, device = len(fit.epochs) + 1, fit.hooks.device
    rate = learning_rate(number, settings)
    distillation = distillation_weight(settings.distillation, len(task.old_labels), len(task.labels))
    order = torch.randperm(len(material.targets), generator=generator(task.seed, "order", number))
    parameters, sums, share = list(fit.parameters.values()), np.zeros(3), fit.share
    batches = torch.split(order, settings.batch_size)

    def load(batch: Tensor) -> list[tuple[Tensor, Tensor]]:
        return material.groups(share.part(groups_of(batch, network.backbone, share.size)))

    with (
        closing(prefetched(batches, load)) as loaded,
        counted(f"epoch {number}: trained on", len(order)) as count,
    ):
        for batch, groups in zip(batches, loaded, strict=True):

            def losses(group: tuple[Tensor, Tensor], size: int = len(batch)) -> Tensor:
                chosen, features = group
                remembered = None if material.remembered is None else material.remembered[chosen].to(device)
                answer = network.finish(features.to(device, non_blocking=True))
                targets = material.targets[chosen].to(device)
                parts = stage_losses(answer, targets, remembered, distillation, settings.label_smoothing)
                return torch.stack(parts) * (len(chosen) / size)

            values = sum_gradients(parameters, groups, losses, share, len(sums)).double().cpu()
            fit.step(float(values[0]), rate)
            sums += len(batch) * values.numpy()
            count(len(batch))
    means = zip(("loss", "cross_entropy", "distillation"), (sums / len(order)).tolist(), strict=True)
    return {"epoch": number, "learning_rate": rate, **dict(means)}


@torch.no_grad()
@doing("predicting validation and probe cells")
def _validate(network: AnnotatorNetwork, material: _Material, stage: str, share: Share) -> Epoch:
    """Return the accuracy on each stage's validation cells, their mean as score, and the mean cross-entropy.

    For the new stage the balanced accuracy is returned, too: in it no type outweighs another.
    """
    accuracy: dict[str, float] = {}
    balanced: dict[str, float] = {}
    cross_entropy: list[float] = []
    device = network.head.filter.weight.device

    def load(batch: Tensor) -> list[tuple[Tensor, Tensor]]:
        return material.groups(share.part(groups_of(batch, network.backbone, share.size)))

    def answer(group: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        rows, features = group
        return rows, network.finish(features.to(device, non_blocking=True)).logits.float().cpu()

    for name, (rows, targets) in material.validation.items():
        own = torch.zeros(len(rows), network.head.prototypes.out_features)
        with closing(prefetched(torch.split(rows, MOST_CELLS), load)) as loaded:
            for chosen, part in (one for groups in loaded for one in in_threads(answer, groups)):
                own[chosen - rows[0]] = part
        logits = share.merged(own)
        right = (logits.argmax(1) == targets).double()
        accuracy[name] = float(right.mean())
        balanced[name] = float(np.mean([float(right[targets == c].mean()) for c in set(targets.tolist())]))
        cross_entropy.append(float(functional.cross_entropy(logits.double(), targets)))
    return {
        "validation_accuracy": accuracy[stage],
        "validation_balanced_accuracy": balanced[stage],
        "probe_accuracy": {name: value for name, value in accuracy.items() if name != stage},
        "score": float(np.mean(list(accuracy.values()))),
        "validation_cross_entropy": float(np.mean(cross_entropy)),
    }


def _merit(record: Mapping[str, Any]) -> tuple[float, ...]:
    return record["score"], -record["validation_cross_entropy"]


def history_document(task: Task, settings: Continual, fit: Fit) -> dict[str, Any]:
    """Return history.json: every epoch, which one was kept, and how many cells took part."""
    return {
        "format": HISTORY_FORMAT,
        "stage": task.stage,
        "epochs": fit.epochs,
        "best_epoch": fit.best_epoch,
        "stopped": fit.stopped(settings.patience, settings.max_epochs),
        "n_train": len(task.train),
        "n_replay": len(task.replay),
        "n_validation": len(task.validation_cells(settings.max_validation_cells)[task.stage]),
        "n_probe": len(task.probe),
        "bank_size": settings.bank_size,
        "distillation": settings.distillation,
    }


class Losses(NamedTuple):
    """Scalars of a batch: ``total`` is minimised, ``distillation`` is not yet weighted."""

    total: Tensor
    cross_entropy: Tensor
    distillation: Tensor


def distillation_weight(distillation: float, n_old: int, n_types: int) -> float:
    """Return lambda C_{t-1} / C_t (bbae047): the more types are new, the less the teacher binds.

    ``n_old`` is 0 where there is no teacher.
    """
    return distillation * n_old / n_types


def stage_losses(
    answer: Answer, targets: Tensor, remembered: Tensor | None, distillation: float, smoothing: float
) -> Losses:
    """Return cross-entropy + distillation * mean((h_t - h_{t-1})^2), both over every cell of the batch.

    Parameters
    ----------
    answer
        The student's answer for a batch.
    targets
        int64 ``(cells,)``, positions in the labels.
    remembered
        The teacher's representations h_{t-1} ``(cells, 64)``, or None where there is no teacher.
    distillation
        From `distillation_weight`.
    smoothing
        Share of each target that is spread evenly over all types; published: 0.1.
    """
    cross_entropy = functional.cross_entropy(answer.logits, targets, label_smoothing=smoothing)
    if remembered is None:
        return Losses(cross_entropy, cross_entropy, cross_entropy.new_zeros(()))
    apart = functional.mse_loss(answer.representation, remembered)
    return Losses(cross_entropy + distillation * apart, cross_entropy, apart)


def learning_rate(epoch: int, settings: Continual) -> float:
    """Return the learning rate of ``epoch``, counted from 1.

    A cycle rises linearly from ``min_learning_rate`` over ``warmup_epochs``, then falls along half a cosine.
    The next cycle's cosine part is ``cycle_growth`` times as long and its peak ``cycle_decay`` times as high.
    The same numbers as CosineAnnealingWarmupRestarts (stepped once an epoch), which scBERT and bbae047 use:
    epoch 1 runs at the floor, and the first peak is epoch ``warmup_epochs + 1``.
    """
    warmup = settings.warmup_epochs
    length = max(settings.cycle_epochs, warmup + 1)
    step, peak = epoch - 1, settings.learning_rate
    while step >= length:
        step -= length
        length = (length - warmup) * settings.cycle_growth + warmup
        peak *= settings.cycle_decay
    height = max(0.0, peak - settings.min_learning_rate)
    if step < warmup:
        return settings.min_learning_rate + height * step / warmup
    progress = (step - warmup) / (length - warmup)
    return settings.min_learning_rate + height * (1 + math.cos(math.pi * progress)) / 2


def prefetched(
    items: Iterable[T], load: Callable[[T], U], ahead: int = 2, threads: int = 1
) -> Generator[U, None, None]:
    """Yield ``load(item)`` of every item, in order, while a background thread loads what comes next.

    Parameters
    ----------
    items
        Taken by the consumer's own thread, at most ``ahead + 1`` more than were yielded.
    load
        Called in the background. What it raises is raised where its value would have been yielded, with the
        traceback of the load.
    ahead
        How many loaded values may wait while the consumer works on one: a bound of memory.
    threads
        How many values are loaded at a time.

    The threads end with the iterator. A consumer that stops early closes it (``contextlib.closing``): loads
    that have not begun are then left out.
    """
    waiting: deque[Future[U]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="canal-prefetch") as pool:
        try:
            for item in items:
                waiting.append(pool.submit(load, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
