"""The training loop's state: gradients, optimiser, best values so far, patience, and checkpoints to resume.

A checkpoint is one safetensors file, replaced after each epoch, with the training's state as JSON inside; a
resumed training ends with the same bits. Each random draw has a generator of its own, named by its purpose,
so that no draw shifts another. A batch's gradients are sums over groups of its cells, which are computed in
threads side by side, and by several processes where `Hooks` says so.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from canal.config.sections import Cache
from canal.continual.processes import ALONE, LostProcessError, Share, assisted, joined
from canal.core.digests import json_digest
from canal.core.errors import ConfigError, TrainingError
from canal.core.files import new_file
from canal.model import Precision
from canal.model.backbone import Performer
from canal.model.compute import in_threads
from canal.model.storage import weights_digest
from canal.runtime.together import PROCESSES

Epoch = dict[str, Any]
"""Record of an epoch: its number as ``epoch``, and its measures, JSON values only."""

Merit = Callable[[Mapping[str, Any]], tuple[float, ...]]
"""The merit of an epoch: a tuple, the larger the better. Patience uses its first entry alone."""

CHECKPOINT = "checkpoint.safetensors"

FORMAT = 1
"""Of a checkpoint."""

MOST_RESTARTS = 3
"""How often a training goes on from its last epoch after one of its processes was lost."""

_STATE = "canal"
Result = TypeVar("Result")
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
    processes : int or None
        How many learn together, this one included; None: those that torchrun has started, one of which this
        is. See `shared`.
    """

    on_epoch: Callable[[Epoch], None] = _silent
    checkpoint_dir: Path | None = None
    cache_dir: Path | None = None
    device: str = "cpu"
    dtype: Precision = "float32"
    cache: Cache = Cache()
    on_notice: Callable[[str], None] = _silent
    processes: int | None = 1


def shared(work: Callable[..., Result], arguments: tuple[Any, ...], hooks: Hooks, batch_size: int) -> Result:
    """Return ``work(*arguments, hooks, share)``, which as many processes as ``hooks`` say call together.

    Each of them learns the same network; this one alone writes checkpoints and calls the hooks. Where one is
    lost, new ones go on from the last checkpoint, `MOST_RESTARTS` times.

    Parameters
    ----------
    work
        A function of a module; what it is given can be pickled, except for the hooks' functions.
    arguments, hooks
    batch_size
        Cells of a batch, of which each process needs one at least.

    Raises
    ------
    ConfigError
        If there are more processes than cells of a batch, or torch cannot connect them here.
    LostProcessError
        If processes were lost once more than `MOST_RESTARTS` times; under torchrun, which starts all of them
        anew, the first time.
    """
    if hooks.processes is None:
        share = joined(hooks.device)
        _require_cells(share.size, batch_size)
        return work(*arguments, hooks if share.rank == 0 else _unheard(hooks), share)
    if hooks.processes == 1:
        return work(*arguments, hooks, ALONE)
    _require_cells(hooks.processes, batch_size)
    told: list[int] = [0]

    def tell_once(record: Epoch) -> None:
        """Leave out the epochs that were told before a process was lost."""
        if record["epoch"] > told[-1]:
            told.append(record["epoch"])
            hooks.on_epoch(record)

    for left in reversed(range(MOST_RESTARTS + 1)):
        try:
            with assisted(hooks.processes, hooks.device, work, (*arguments, _unheard(hooks))) as share:
                return work(*arguments, replace(hooks, on_epoch=tell_once), share)
        except LostProcessError as error:
            if not left:
                raise LostProcessError(
                    f"{error}; so it was {MOST_RESTARTS + 1} times. Start the step again, which goes on from "
                    f"its last epoch, or by fewer processes ({PROCESSES})"
                ) from error
            hooks.on_notice(f"{error}: going on from epoch {told[-1]}")
    raise AssertionError


def _unheard(hooks: Hooks) -> Hooks:
    """Return the hooks of a process beside the first."""
    return replace(hooks, on_epoch=_silent, on_notice=_silent)


def _require_cells(processes: int, batch_size: int) -> None:
    if processes > batch_size:
        raise ConfigError(
            f"{processes} processes were asked for ({PROCESSES}, or torchrun), but a batch has {batch_size} "
            f"cells (batch_size in params.yaml): ask for {batch_size} at most"
        )


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
    share : Share
        What this process does of the training; the first one alone writes checkpoints.
    epochs : list
        Records of all epochs so far.
    """

    parameters: dict[str, nn.Parameter]
    merit: Merit
    hooks: Hooks
    fingerprint: str
    share: Share = ALONE
    epochs: list[Epoch] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._optimizer = torch.optim.Adam(list(self.parameters.values()), amsgrad=True, fused=True)
        self._best = self._values()
        if self._path is not None and (checkpoint := read_checkpoint(self._path, self.fingerprint)):
            self._restore(checkpoint)
        self.share.agree(json_digest([self.fingerprint, self.epochs]))
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
        if self._path is not None and self.share.rank == 0:
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


def groups_of(rows: Tensor, performer: Performer, processes: int = 1) -> tuple[Tensor, ...]:
    """Return ``rows`` of a batch in groups that go through ``performer`` at a time, at least two groups.

    How a batch is divided depends on its size and the network's shape, never on the number of threads or on a
    measurement: sums of gradients, and so the weights, are the same bits on one core and on many. On a GPU
    alone, where groups are large and bits are not promised, there are as many as ``processes`` at least.
    """
    size = performer.cells_at_a_time
    least = processes if performer.token_emb.weight.is_cuda else _LEAST_GROUPS
    return torch.split(rows, max(1, min(size, -(-len(rows) // least))))


def sum_gradients(
    parameters: Sequence[nn.Parameter],
    groups: Sequence[Group],
    losses: Callable[[Group], Tensor],
    share: Share = ALONE,
    n_losses: int = 1,
) -> Tensor:
    """Set each parameter's gradient to that of the batch's loss, and return the batch's losses.

    Parameters
    ----------
    parameters
        What is fitted. All must take part in the loss.
    groups
        The batch, divided; of several processes, what is this one's.
    losses
        A group's share of the batch's losses, a vector of ``n_losses`` whose first entry is minimised. What
        is a mean over the batch is divided by the whole batch's number, whoever computes the group.
    share, n_losses

    Returns
    -------
    Tensor
        The sum of ``losses`` over the groups, of all processes, detached.
    """

    def one(group: Group) -> tuple[Tensor, tuple[Tensor, ...]]:
        with torch.enable_grad():
            values = losses(group)
            return values.detach(), torch.autograd.grad(values[0], parameters)

    if share.size == 1:
        values, gradients = zip(*in_threads(one, groups), strict=True)
        # By `in_threads` as well: torch's own threads would go on spinning on their cores.
        added = in_threads(_added, zip(*gradients, strict=True))
        value = _added(values)
    else:

        def in_a_row(group: Group) -> Tensor:
            values, gradients = one(group)
            return torch.cat([values, *(gradient.flatten() for gradient in gradients)])

        sizes = [parameter.numel() for parameter in parameters]
        total = share.added(in_threads(in_a_row, groups), n_losses + sum(sizes))
        value, *added = torch.split(total, [n_losses, *sizes])
    for parameter, gradient in zip(parameters, added, strict=True):
        parameter.grad = gradient.view_as(parameter)
    return value


def _added(parts: Sequence[Tensor]) -> Tensor:
    """Return the sum in the order of the groups, in the memory of the first part."""
    total = parts[0]
    for part in parts[1:]:
        total += part
    return total
