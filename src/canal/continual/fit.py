"""The training loop's state: gradients, optimiser, best values so far, patience, and checkpoints to resume.

A checkpoint is one safetensors file, replaced after each epoch, with the training's state as JSON inside; a
resumed training ends with the same bits. Each random draw has a generator of its own, named by its purpose,
so that no draw shifts another. A batch's gradients are sums over groups of its cells, which are computed in
threads side by side.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from canal.config.sections import Cache
from canal.core.errors import TrainingError
from canal.core.files import new_file
from canal.model import Precision
from canal.model.backbone import Performer
from canal.model.compute import in_threads
from canal.model.storage import weights_digest

Epoch = dict[str, Any]
"""Record of an epoch: its number as ``epoch``, and its measures, JSON values only."""

Merit = Callable[[Mapping[str, Any]], tuple[float, ...]]
"""The merit of an epoch: a tuple, the larger the better. Patience uses its first entry alone."""

CHECKPOINT = "checkpoint.safetensors"

FORMAT = 1
"""Of a checkpoint."""

_STATE = "canal"
Group = TypeVar("Group")
_LEAST_GROUPS = 2


def _silent(_: object) -> None:
    """Do nothing."""


@dataclass(frozen=True)
class Hooks:
    """How a training reports its progress, and where it keeps checkpoints and cached features.

    Attributes
    ----------
    on_epoch : callable
        Called with each epoch's record once its checkpoint is written; a resumed training calls it for the
        restored epochs first. An exception that it raises ends the training, which can be resumed.
    checkpoint_dir : Path or None
        Folder of ``checkpoint.safetensors``; None: no checkpoints.
    cache_dir : Path or None
        Folder for frozen features, which other trainings share; None: compute them when needed.
    device : str
        A torch device. Weights repeat to the bit on "cpu", in float32.
    dtype : str
        Of matrix products; see `canal.model.compute.precision`.
    cache : Cache
        How large the folder may become, and the type of the features, which holds with or without a folder.
    on_notice : callable
        Called with a message for the user.
    """

    on_epoch: Callable[[Epoch], None] = _silent
    checkpoint_dir: Path | None = None
    cache_dir: Path | None = None
    device: str = "cpu"
    dtype: Precision = "float32"
    cache: Cache = Cache()
    on_notice: Callable[[str], None] = _silent


@dataclass
class Fit:
    """Named parameters under Adam (amsgrad), with the best values so far.

    Attributes
    ----------
    parameters : dict
        What is fitted, in place.
    merit : callable
        Judges an epoch's record.
    hooks : Hooks
    fingerprint : str
        Names this training; a checkpoint with another name is not resumed.
    epochs : list
        Records of all epochs so far.
    """

    parameters: dict[str, nn.Parameter]
    merit: Merit
    hooks: Hooks
    fingerprint: str
    epochs: list[Epoch] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._optimizer = torch.optim.Adam(list(self.parameters.values()), amsgrad=True, fused=True)
        self._best = self._values()
        if self._path is not None and (checkpoint := read_checkpoint(self._path, self.fingerprint)):
            self._restore(checkpoint)
        for record in self.epochs:
            self.hooks.on_epoch(record)

    def step(self, value: float, learning_rate: float) -> None:
        """Move all parameters against their gradients, which are those of a loss of ``value``.

        Raises
        ------
        TrainingError
            If the loss is not finite.
        """
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss became {value} in epoch {len(self.epochs) + 1}: lower the learning rate "
                f"(now {learning_rate:g}) or check the cells for extreme values"
            )
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        # In one of the threads of `in_threads`: torch's own would go on spinning on their cores.
        in_threads(lambda _: self._optimizer.step(), [None])

    def end_epoch(self, record: Epoch) -> None:
        """Add an epoch's record, keep its values if they are the best, write a checkpoint, tell the hook."""
        self.epochs.append(record)
        if self.best_epoch == record["epoch"]:
            self._best = self._values()
        if self._path is not None:
            tensors = with_prefix("now", self._values()) | with_prefix("best", self._best)
            for name, parameter in self.parameters.items():
                tensors |= with_prefix(f"adam/{name}", self._optimizer.state[parameter])
            write_checkpoint(self._path, self.fingerprint, Checkpoint(tensors, self.epochs))
        self.hooks.on_epoch(record)

    @property
    def best_epoch(self) -> int:
        """Number of the first epoch of highest merit; 0 before the first."""
        return max(self.epochs, key=self.merit)["epoch"] if self.epochs else 0

    @property
    def epochs_without_better(self) -> int:
        """How many epochs have passed since the first entry of the merit last rose."""
        firsts = [self.merit(record)[0] for record in self.epochs]
        return len(firsts) - 1 - firsts.index(max(firsts)) if firsts else 0

    def stopped(self, patience: int, max_epochs: int) -> str:
        """Return why no further epoch is due: "patience", "max_epochs", or "" if one is."""
        if self.epochs and self.epochs_without_better >= patience:
            return "patience"
        return "max_epochs" if len(self.epochs) >= max_epochs else ""

    @torch.no_grad()
    def take_best(self) -> None:
        """Give the parameters the values of the best epoch."""
        for name, parameter in self.parameters.items():
            parameter.copy_(self._best[name])

    @property
    def _path(self) -> Path | None:
        folder = self.hooks.checkpoint_dir
        return None if folder is None else folder / CHECKPOINT

    def _values(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.parameters.items()}

    @torch.no_grad()
    def _restore(self, checkpoint: Checkpoint) -> None:
        now = without_prefix("now", checkpoint.tensors)
        for name, parameter in self.parameters.items():
            parameter.copy_(now[name])
            state = without_prefix(f"adam/{name}", checkpoint.tensors)
            self._optimizer.state[parameter] = {k: v.to(parameter.device) for k, v in state.items()}
        best = without_prefix("best", checkpoint.tensors)
        self._best = {name: best[name].to(value.device) for name, value in self.parameters.items()}
        self.epochs = list(checkpoint.epochs)


@dataclass(frozen=True)
class Checkpoint:
    """A training after its last whole epoch: all tensors by name, and one record an epoch."""

    tensors: dict[str, Tensor]
    epochs: list[dict[str, Any]]


def write_checkpoint(path: Path, fingerprint: str, checkpoint: Checkpoint) -> None:
    """Replace ``path`` by ``checkpoint``, whole or not at all.

    ``fingerprint`` names the training: cells, parent, settings and seed.
    """
    state = {
        "format": FORMAT,
        "fingerprint": fingerprint,
        "digest": weights_digest(checkpoint.tensors),
        "epochs": checkpoint.epochs,
    }
    tensors = {name: value.detach().cpu().contiguous() for name, value in checkpoint.tensors.items()}
    with new_file(path) as temporary:
        save_file(tensors, temporary, metadata={_STATE: json.dumps(state, sort_keys=True, allow_nan=False)})


def read_checkpoint(path: Path, fingerprint: str) -> Checkpoint | None:
    """Return the checkpoint of the training named ``fingerprint``.

    None if there is none, it is damaged, or it belongs to another training: then the training starts over.
    """
    try:
        with safe_open(path, framework="pt") as file:
            state = json.loads((file.metadata() or {})[_STATE])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        known = (state["format"], state["fingerprint"]) == (FORMAT, fingerprint)
        whole = known and state["digest"] == weights_digest(tensors)
        return Checkpoint(tensors, state["epochs"]) if whole else None
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None


def with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return ``tensors`` with ``prefix/`` before each name."""
    return {f"{prefix}/{name}": value for name, value in tensors.items()}


def without_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose name begins with ``prefix/``, by the rest of their name."""
    start = f"{prefix}/"
    return {name[len(start) :]: value for name, value in tensors.items() if name.startswith(start)}


def generator(seed: int, purpose: str, number: int = 0) -> torch.Generator:
    """Return a CPU generator that depends on nothing but its three arguments.

    ``number`` counts uses of one purpose, such as epochs: a resumed training draws the same numbers.
    """
    entropy = [seed, number, *purpose.encode()]
    state = np.random.SeedSequence(entropy).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 31 | int(state[1]) >> 1)


# Gradients.


def groups_of(rows: Tensor, performer: Performer) -> tuple[Tensor, ...]:
    """Return ``rows`` of a batch in groups that go through ``performer`` at a time, at least two groups.

    How a batch is divided depends on its size and the network's shape, never on the number of threads or on a
    measurement: sums of gradients, and so the weights, are the same bits on one core and on many.
    """
    size = performer.cells_at_a_time
    if not performer.token_emb.weight.is_cuda:
        size = min(size, -(-len(rows) // _LEAST_GROUPS))
    return torch.split(rows, max(1, size))


def sum_gradients(
    parameters: Sequence[nn.Parameter], groups: Sequence[Group], losses: Callable[[Group], Tensor]
) -> Tensor:
    """Set each parameter's gradient to that of the batch's loss, and return the batch's losses.

    Parameters
    ----------
    parameters
        What is fitted. All must take part in the loss.
    groups
        The batch, divided.
    losses
        A group's share of the batch's losses, a vector whose first entry is minimised.

    Returns
    -------
    Tensor
        The sum of ``losses`` over the groups, detached.
    """

    def one(group: Group) -> tuple[Tensor, tuple[Tensor, ...]]:
        with torch.enable_grad():
            values = losses(group)
            return values.detach(), torch.autograd.grad(values[0], parameters)

    values, gradients = zip(*in_threads(one, groups), strict=True)
    # By `in_threads` as well: torch's own threads would go on spinning on their cores.
    added = in_threads(_added, zip(*gradients, strict=True))
    for parameter, gradient in zip(parameters, added, strict=True):
        parameter.grad = gradient
    return _added(values)


def _added(parts: Sequence[Tensor]) -> Tensor:
    """Return the sum in the order of the groups, in the memory of the first part."""
    total = parts[0]
    for part in parts[1:]:
        total += part
    return total
