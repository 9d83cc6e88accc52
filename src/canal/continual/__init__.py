"""Learning stage after stage: tasks, replay, distillation, novelty rules, caches and evaluation."""
