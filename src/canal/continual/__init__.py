"""Learning stage after stage: replay, distillation, the trainer, and what is measured of it."""
