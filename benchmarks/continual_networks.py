"""The rivals of `benchmarks/continual.py` that train one small network, each by another rule.

All have the same network, of the form of canal's head: the panel's genes, standardised by the first stage's
training cells, to 128, 64 and one unit a type; the same cells (at most 200 of a type and stage), at most 15
epochs, the same memory of raw cells (``bank.capacity``) where they keep any. After each epoch validation
cells and probes are asked, and the best epoch is kept; where a rule has a strength, so is the best of three.
Avalanche, which has most of these rules, replaces this project's torch, so each stands here in a few lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, ClassVar

import numpy as np
import torch
from continual_rivals import Kept, known_accuracy
from exact_learners import Answer, Scored
from exact_streams import Drawn
from torch import Tensor, nn
from torch.nn import functional

from canal.continual.bank import Bank, admit, rank_candidates
from canal.continual.cells import LabelledCells

MOST_OF_TYPE, EPOCHS, BATCH, RATE, SMOOTHING = 200, 15, 64, 1e-3, 0.1


class Net(nn.Module):
    """Genes -> 128 -> 64 -> types; rows are added for new types."""

    def __init__(self, n_genes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(n_genes, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU())
        self.prototypes = nn.Linear(64, 1)

    def grow(self, n_types: int) -> None:
        """Add rows up to ``n_types``; the old ones keep their values."""
        old = self.prototypes
        self.prototypes = nn.Linear(64, n_types)
        with torch.no_grad():
            self.prototypes.weight[: old.out_features] = old.weight
            self.prototypes.bias[: old.out_features] = old.bias

    def forward(self, values: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.prototypes(self.body(values))
        return logits


class FineTuning:
    """Train on the new stage's cells alone: what all the others are to be better than."""

    title, joint, costly = "naive fine-tuning", False, True
    strengths: ClassVar[Sequence[float]] = (0.0,)
    keeps_teacher = False

    def __init__(self, drawn: Drawn) -> None:
        self.drawn, self.seed = drawn, drawn.config.seed
        self.capacity = drawn.config.bank.capacity
        self.random = np.random.default_rng([self.seed, *self.title.encode()])
        torch.manual_seed(int(self.random.integers(1 << 31)))
        self.stages: list[str] = []
        self.labels: tuple[str, ...] = ()
        self.net, self.old = Net(len(drawn.genes)), Net(1)
        self.n_old, self.strength = 0, 0.0

    def learn(self, stage: str) -> None:
        """Train from the last stage's network, by each strength; validation cells choose."""
        cells = capped(self.drawn.stages[stage].train, self.random)
        if not self.stages:
            self.mean = cells.expression.mean(axis=0)
            self.spread = np.maximum(cells.expression.std(axis=0), 0.1)
        self.n_old, self.old = len(self.labels), deepcopy(self.net).requires_grad_(False)
        self.stages.append(stage)
        self.labels += tuple(name for name in cells.types if name not in self.labels)
        self.net.grow(len(self.labels))
        start, found = self.net, []
        for strength in self.strengths if self.n_old else self.strengths[:1]:
            self.net, self.strength = deepcopy(start), strength
            found.append((self._fit(cells), self.net))
        self.net = max(found, key=lambda one: one[0])[1]
        self.remember(cells)

    def answer(self) -> Answer:
        """Return what the network answers."""
        net = self.net

        def logits(expression: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                return net(self.values(expression)).double().numpy()

        return Scored(self.labels, logits)

    def kept(self) -> Kept:
        """Return the size of weights and cells, as float32."""
        n_weights = sum(one.numel() for one in self.net.parameters())
        return Kept(4 * (n_weights + self.n_cells * len(self.drawn.genes)), self.n_cells)

    @property
    def n_cells(self) -> int:
        """The number of raw cells that it keeps."""
        return 0

    @classmethod
    def asked(cls) -> Any:
        """Return the settings."""
        return [3, MOST_OF_TYPE, EPOCHS, BATCH, RATE, SMOOTHING, list(cls.strengths)]

    def values(self, expression: np.ndarray) -> Tensor:
        """Return expression as the network reads it."""
        return torch.from_numpy(((expression - self.mean) / self.spread).astype(np.float32))

    def batch(self, cells: LabelledCells) -> tuple[Tensor, Tensor]:
        """Return cells and their types as tensors."""
        return self.values(cells.expression), torch.from_numpy(cells.targets(self.labels))

    # What another rule does otherwise.

    def pool(self, cells: LabelledCells) -> LabelledCells:
        """Return the cells that an epoch goes through."""
        return cells

    def loss(self, values: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of a batch."""
        return functional.cross_entropy(self.net(values), targets, label_smoothing=SMOOTHING)

    def remember(self, cells: LabelledCells) -> None:
        """Keep what the next stage needs."""

    def _fit(self, cells: LabelledCells) -> float:
        """Train, leave the best epoch's weights in ``net``, and return its accuracy on validation cells."""
        values, targets = self.batch(self.pool(cells))
        optimizer = torch.optim.Adam(self.net.parameters(), RATE, weight_decay=1e-4)
        best, weights = -1.0, self.net.state_dict()
        for _ in range(EPOCHS):
            for rows in torch.from_numpy(self.random.permutation(len(targets))).split(BATCH):
                optimizer.zero_grad()
                self.loss(values[rows], targets[rows]).backward()
                optimizer.step()
            found = known_accuracy(self.answer(), self.drawn, self.stages)
            if found > best:
                best, weights = found, deepcopy(self.net.state_dict())
        self.net.load_state_dict(weights)
        return best


class Joint(FineTuning):
    """Train a new network on the cells of all stages at once."""

    title, joint = "the same network, all cells", True

    def learn(self, stage: str) -> None:
        """Keep the cells."""
        self.stages.append(stage)

    def answer(self) -> Answer:
        """Train, unless that is under way."""
        if not self.labels:
            cells = LabelledCells.concatenate(
                [capped(self.drawn.stages[name].train, self.random) for name in self.stages]
            )
            self.mean = cells.expression.mean(axis=0)
            self.spread = np.maximum(cells.expression.std(axis=0), 0.1)
            self.labels = cells.types
            self.net.grow(len(self.labels))
            self._fit(cells)
        return super().answer()

    @property
    def n_cells(self) -> int:
        """All that it trains on."""
        return sum(len(capped(self.drawn.stages[name].train, self.random)) for name in self.stages)


class Replay(FineTuning):
    """Train on the new cells and on canal's example bank: of each type those most like its prototype."""

    title = "replay alone"

    def __init__(self, drawn: Drawn) -> None:
        super().__init__(drawn)
        self.bank = Bank.empty(len(drawn.genes))

    def pool(self, cells: LabelledCells) -> LabelledCells:
        """Return new and banked cells."""
        return LabelledCells.concatenate([cells, self.bank.cells])

    def remember(self, cells: LabelledCells) -> None:
        """Admit the new cells to the bank."""
        with torch.no_grad():
            represented = self.net.body(self.values(cells.expression)).numpy()
        ranks = rank_candidates(cells, represented, self.net.prototypes.weight.detach().numpy(), self.labels)
        self.bank = admit(self.bank, cells, ranks, self.labels, self.capacity)

    @property
    def n_cells(self) -> int:
        """Banked cells."""
        return len(self.bank)


class Distillation(FineTuning):
    """Hold the representations of new cells near those of the old network, as CANAL does, without a bank."""

    title = "distillation alone"
    strengths = (0.1, 1.0, 10.0)

    def loss(self, values: Tensor, targets: Tensor) -> Tensor:
        """Add the squared distance of the representations, by the published weight."""
        total = super().loss(values, targets)
        if not self.n_old:
            return total
        apart = functional.mse_loss(self.net.body(values), self.old.body(values))
        return total + self.strength * self.n_old / len(self.labels) * apart


class ReplayDistillation(Distillation, Replay):
    """Bank and distillation together: CANAL's rule (Wan et al. 2024), on this network."""

    title = "replay and distillation (CANAL's rule)"


def capped(cells: LabelledCells, random: np.random.Generator) -> LabelledCells:
    """Return at most `MOST_OF_TYPE` cells of each type, drawn at random."""
    types = np.array(cells.cell_types, dtype=object)
    rows = [random.permutation(np.flatnonzero(types == name))[:MOST_OF_TYPE] for name in cells.types]
    return cells.take(np.sort(np.concatenate(rows)))
