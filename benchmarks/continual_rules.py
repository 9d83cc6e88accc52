"""Rules of not forgetting of the literature, on the network of `continual_networks`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from continual_networks import (
    Distillation,
    FineTuning,
    Joint,
    Replay,
    ReplayDistillation,
)
from continual_rivals import Kept, Rival
from exact_learners import Answer, Scored
from exact_streams import Drawn
from torch import Tensor
from torch.nn import functional

from canal.continual.cells import LabelledCells


class Reservoir(FineTuning):
    """Experience replay (Chaudhry et al. 2019): with each batch as many cells of a reservoir sample."""

    title = "reservoir ER"

    def __init__(self, drawn: Drawn) -> None:
        super().__init__(drawn)
        self.memory = LabelledCells.empty(len(drawn.genes))
        self.n_seen = 0

    def loss(self, values: Tensor, targets: Tensor) -> Tensor:
        """Add the loss of remembered cells."""
        total = super().loss(values, targets)
        for drawn_values, drawn_targets, _ in self.recalled(len(targets)):
            total = total + FineTuning.loss(self, drawn_values, drawn_targets)
        return total

    def recalled(self, n: int) -> Iterator[tuple[Tensor, Tensor, np.ndarray]]:
        """Yield at most ``n`` cells of the memory, drawn anew; nothing while it is empty."""
        if len(self.memory):
            rows = self.random.integers(len(self.memory), size=min(n, len(self.memory)))
            yield (*(part[rows] for part in self.recall), rows)

    def _fit(self, cells: LabelledCells) -> float:
        self.recall = self.batch(self.memory)
        return super()._fit(cells)

    def remember(self, cells: LabelledCells) -> None:
        """Give each cell seen so far the same chance to be in the memory."""
        slots: list[tuple[LabelledCells, int]] = [(self.memory, row) for row in range(len(self.memory))]
        for row in self.random.permutation(len(cells)):
            self.n_seen += 1
            place = int(self.random.integers(self.n_seen))
            if len(slots) < self.capacity:
                slots.append((cells, int(row)))
            elif place < self.capacity:
                slots[place] = (cells, int(row))
        parts = [source.take([row for own, row in slots if own is source]) for source in (self.memory, cells)]
        self.memory = LabelledCells.concatenate(parts)

    @property
    def n_cells(self) -> int:
        """Cells of the reservoir."""
        return len(self.memory)


class DarkReplay(Reservoir):
    """DER++ (Buzzega et al. 2020): a reservoir whose cells keep the logits that they had when they came."""

    title = "DER++"
    strengths = (0.1, 0.5, 1.0)

    def loss(self, values: Tensor, targets: Tensor) -> Tensor:
        """Add what remembered cells lost of their logits, and half their cross-entropy."""
        total = FineTuning.loss(self, values, targets)
        for drawn_values, _, rows in self.recalled(len(targets)):
            then = self.dark[rows]
            now, known = self.net(drawn_values)[:, : then.shape[1]], torch.isfinite(then)
            total = total + self.strength * functional.mse_loss(now[known], then[known])
        for drawn_values, drawn_targets, _ in self.recalled(len(targets)):
            total = total + 0.5 * FineTuning.loss(self, drawn_values, drawn_targets)
        return total

    def remember(self, cells: LabelledCells) -> None:
        """Keep cells, and the logits of those that are new."""
        before = {one: row for row, one in enumerate(self.memory.cell_ids)}
        super().remember(cells)
        with torch.no_grad():
            now = self.net(self.values(self.memory.expression))
        for row, one in enumerate(self.memory.cell_ids):
            if one in before:
                now[row] = torch.nan
                now[row, : self.dark.shape[1]] = self.dark[before[one]]
        self.dark = now

    def kept(self) -> Kept:
        """Return weights, cells and logits."""
        found = super().kept()
        return Kept(found.n_bytes + 4 * len(self.memory) * len(self.labels), found.n_cells)


class Elastic(FineTuning):
    """EWC (Kirkpatrick et al. 2017): weights that mattered to earlier stages are held."""

    title = "EWC"
    strengths = (1.0, 100.0, 10000.0)

    def __init__(self, drawn: Drawn) -> None:
        super().__init__(drawn)
        self.fisher: dict[str, Tensor] = {}

    def loss(self, values: Tensor, targets: Tensor) -> Tensor:
        """Add how far weights went, each by its Fisher information."""
        total = super().loss(values, targets)
        then = dict(self.old.named_parameters())
        for name, value in self.net.named_parameters():
            if name in self.fisher:
                apart = value[: len(then[name])] - then[name]
                total = total + self.strength / 2 * (self.fisher[name] * apart.square()).sum()
        return total

    def remember(self, cells: LabelledCells) -> None:
        """Add the stage's Fisher information: mean squared gradients of log likelihoods, cell by cell."""
        values, targets = self.batch(cells)
        found = {name: torch.zeros_like(one) for name, one in self.net.named_parameters()}
        for value, target in zip(values, targets, strict=True):
            self.net.zero_grad()
            functional.cross_entropy(self.net(value[None]), target[None]).backward()
            for name, one in self.net.named_parameters():
                found[name] += one.grad.square() / len(targets)  # type: ignore[union-attr]
        for name, old in self.fisher.items():
            found[name][: len(old)] += old
        self.fisher = found

    def kept(self) -> Kept:
        """Return the weights and their Fisher information."""
        return Kept(2 * super().kept().n_bytes, 0)


class WithoutForgetting(FineTuning):
    """LwF (Li and Hoiem 2016): new cells keep the old network's answers about old types."""

    title = "LwF"
    strengths = (0.3, 1.0, 3.0)

    def loss(self, values: Tensor, targets: Tensor) -> Tensor:
        """Add the divergence from the old answers, at temperature 2."""
        total = super().loss(values, targets)
        if not self.n_old:
            return total
        then = (self.old(values) / 2).softmax(1)
        now = (self.net(values)[:, : self.n_old] / 2).log_softmax(1)
        return total + self.strength * 4 * functional.kl_div(now, then, reduction="batchmean")


class Exemplars(FineTuning):
    """iCaRL (Rebuffi et al. 2017): exemplars by herding, sigmoids with distillation, nearest mean answers."""

    title = "iCaRL"

    def __init__(self, drawn: Drawn) -> None:
        super().__init__(drawn)
        self.herd: dict[str, list[LabelledCells]] = {}

    def pool(self, cells: LabelledCells) -> LabelledCells:
        """Return new cells and exemplars."""
        return LabelledCells.concatenate([cells, *(one for group in self.herd.values() for one in group)])

    def loss(self, values: Tensor, targets: Tensor) -> Tensor:
        """Return the sigmoid loss; old types have the old network's sigmoids as targets."""
        wanted = functional.one_hot(targets, len(self.labels)).float()
        if self.n_old:
            wanted[:, : self.n_old] = torch.maximum(self.old(values).sigmoid(), wanted[:, : self.n_old])
        loss = functional.binary_cross_entropy_with_logits(self.net(values), wanted, reduction="sum")
        return loss / len(targets)

    def represented(self, expression: np.ndarray) -> np.ndarray:
        """Return unit vectors."""
        with torch.no_grad():
            return functional.normalize(self.net.body(self.values(expression))).numpy()

    def remember(self, cells: LabelledCells) -> None:
        """Herd the stage's cells; each type has the same room, shared by its stages."""
        quota = max(1, self.capacity // len(self.labels))
        for name in cells.types:
            own = cells.of_types([name])
            places = self.represented(own.expression)
            self.herd.setdefault(name, []).append(own.take(herded(places, quota)))
        for name, groups in self.herd.items():
            share = max(1, quota // len(groups))
            self.herd[name] = [one.take(range(min(share, len(one)))) for one in groups]

    def answer(self) -> Answer:
        """Return the sigmoids while training, then minus the distance to the mean of exemplars."""
        if set(self.herd) != set(self.labels):
            return super().answer()
        means = []
        for name in self.labels:
            members = LabelledCells.concatenate(self.herd[name])
            mean = self.represented(members.expression).mean(axis=0)
            means.append(mean / max(float(np.linalg.norm(mean)), 1e-12))
        return Scored(self.labels, lambda expression: self.represented(expression) @ np.array(means).T * 10)

    @property
    def n_cells(self) -> int:
        """Exemplars."""
        return sum(len(one) for group in self.herd.values() for one in group)


def herded(places: np.ndarray, n: int) -> list[int]:
    """Return the rows whose running mean stays nearest the mean of all, in that order."""
    mean, total, chosen = places.mean(axis=0), np.zeros(places.shape[1]), list[int]()
    for k in range(1, min(n, len(places)) + 1):
        apart = np.square(mean - (total + places) / k).sum(axis=1)
        apart[chosen] = np.inf
        chosen.append(int(apart.argmin()))
        total = total + places[chosen[-1]]
    return chosen


NETWORKS: dict[str, type[Rival]] = {
    "naive": FineTuning,
    "joint": Joint,
    "replay": Replay,
    "distillation": Distillation,
    "canal-rule": ReplayDistillation,
    "er": Reservoir,
    "ewc": Elastic,
    "lwf": WithoutForgetting,
    "derpp": DarkReplay,
    "icarl": Exemplars,
}
