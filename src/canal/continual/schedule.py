"""The learning rate of each epoch: cosine cycles with warm-up, as published."""

from __future__ import annotations

import math

from canal.config.sections import Continual


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
