"""The trained part of a network: its head, and the rule by which a cell is called Unassigned."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from canal.core.errors import ModelError
from canal.memory.prediction import squeezed
from canal.model.backbone import Performer, empty_performer
from canal.model.centroids import PARTS, CentroidDistances
from canal.model.storage import MANIFOLD, REPRESENTATION

_FILTER_SPREAD = 0.5
_PROTOTYPE_SPREAD = 0.02
_SMALLEST = 1e-6
_NUMBERS = ("temperature", "energy_low", "energy_high", "threshold")
_BLEND = "blend"

_OLD = 4
"""How many of its numbers a blend has in models of the first format, without angles."""


class AnnotatorNetwork(nn.Module):
    """Backbone and head."""

    def __init__(self, backbone: Performer, head: Head) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, tokens: Tensor) -> Answer:
        """Return the answer for tokens ``(cells, n_genes)``."""
        return self.finish(self.backbone.encode_prefix(tokens))

    def finish(self, prefix: Tensor) -> Answer:
        """Return the answer for the outputs of ``backbone.encode_prefix``."""
        answer: Answer = self.head(self.backbone.encode_rest(prefix))
        return answer

    def trained(self) -> dict[str, nn.Parameter]:
        """Return the parameters that a stage trains, by name: all others never change."""
        return {name: value for name, value in self.named_parameters() if value.requires_grad}

    def freeze_backbone(self) -> None:
        """Leave the head, the last block but one and the final LayerNorm trainable, and nothing else."""
        self.backbone.freeze()
        self.head.requires_grad_(True)


class Answer(NamedTuple):
    """Outputs of the head for cells.

    ``manifold`` ``(cells, 128)``, ``representation`` h ``(cells, 64)``, ``logits`` ``(cells, n_types)``.
    """

    manifold: Tensor
    representation: Tensor
    logits: Tensor


class Head(nn.Module):
    """Filter d -> 1 shared by all positions, ReLU, Linear 128, ReLU, Linear 64, ReLU, prototypes.

    Row c of ``prototypes.weight`` is the prototype of type c. Made without values: see `new_head`.
    """

    def __init__(self, dim: int, positions: int, n_types: int) -> None:
        super().__init__()
        self.filter = nn.Linear(dim, 1)
        self.to_manifold = nn.Linear(positions, MANIFOLD)
        self.to_representation = nn.Linear(MANIFOLD, REPRESENTATION)
        self.prototypes = nn.Linear(REPRESENTATION, n_types)

    def gene_scores(self, hidden: Tensor) -> Tensor:
        """Return the filter's output after its ReLU, ``(cells, positions)``, for hidden states."""
        scores: Tensor = self.filter(hidden).squeeze(-1).relu()
        return scores

    def manifold(self, hidden: Tensor) -> Tensor:
        """Return ``(cells, 128)`` for hidden states ``(cells, positions, dim)``."""
        manifold: Tensor = self.to_manifold(self.gene_scores(hidden)).relu()
        return manifold

    def from_scores(self, scores: Tensor) -> Answer:
        """Return all that follows from gene scores ``(cells, positions)``."""
        return self.answer(self.to_manifold(scores).relu())

    def answer(self, manifold: Tensor) -> Answer:
        """Return all that follows from a manifold ``(cells, 128)``."""
        representation = self.to_representation(manifold).relu()
        return Answer(manifold, representation, self.prototypes(representation))

    def forward(self, hidden: Tensor) -> Answer:
        """Return the answer for hidden states ``(cells, positions, dim)``."""
        return self.from_scores(self.gene_scores(hidden))


def empty_head(dim: int, positions: int, n_types: int) -> Head:
    """Return a head of shapes only (device "meta"), to load values into with ``assign=True``."""
    with torch.device("meta"):
        return Head(dim, positions, n_types)


@torch.no_grad()
def new_head(hidden: Tensor, n_types: int, generator: torch.Generator) -> Head:
    """Return a head whose every layer is alive on ``hidden`` ``(cells, positions, dim)``.

    A randomly drawn filter may be below zero at every gene; its ReLU then passes neither values nor
    gradients. Or it may depend on the differences between genes alone, which carry no information about
    types. So the filter is the direction in which genes vary most over cells, towards its longer tail, where
    the rarer, expressed levels are; and each layer is scaled or shifted by its outputs for these cells: the
    filter to mean 0 and a standard deviation over cells of 0.5, each unit of the two layers to mean 0.
    (Scaling these units to one spread too makes much of noise: measured, it costs 2 to 3 points of accuracy
    on the embedded first stage.)
    """
    head = empty_head(hidden.shape[2], hidden.shape[1], n_types).to_empty(device="cpu")
    head.filter.weight.copy_(widest_direction(hidden))
    head.filter.bias.zero_()
    for layer in (head.to_manifold, head.to_representation):
        layer.weight.normal_(0.0, layer.in_features**-0.5, generator=generator)
        layer.bias.zero_()
    head.prototypes.weight.normal_(0.0, _PROTOTYPE_SPREAD, generator=generator)
    head.prototypes.bias.zero_()

    filtered = head.filter(hidden).squeeze(-1)
    # The spread of a gene over cells, not of genes within a cell: the latter says nothing about types.
    spread = filtered.std(dim=0, correction=0).mean()
    factor = _FILTER_SPREAD / spread if spread > _SMALLEST else torch.ones(())
    head.filter.weight *= factor
    head.filter.bias.copy_(-(filtered * factor).mean().reshape(1))
    centre(head.to_manifold, head.gene_scores(hidden))
    centre(head.to_representation, head.manifold(hidden))
    return head


@torch.no_grad()
def grow(head: Head, n_new: int, generator: torch.Generator) -> Head:
    """Return a copy of ``head`` with ``n_new`` more types; all old values are kept bit for bit."""
    old = head.prototypes
    grown = empty_head(head.filter.in_features, head.to_manifold.in_features, old.out_features + n_new)
    rows = torch.empty(n_new, REPRESENTATION).normal_(0.0, _PROTOTYPE_SPREAD, generator=generator)
    values = {name: value.detach().clone() for name, value in head.state_dict().items()}
    values["prototypes.weight"] = torch.cat([old.weight, rows.to(old.weight)])
    values["prototypes.bias"] = torch.cat([old.bias, old.bias.new_zeros(n_new)])
    grown.load_state_dict(values, assign=True)
    return grown.requires_grad_(True)


@torch.no_grad()
def centre(layer: nn.Linear, inputs: Tensor) -> None:
    """Shift each unit to mean 0 over ``inputs`` ``(cells, in)``, so that its ReLU passes some of them."""
    layer.bias.zero_()
    layer.bias.copy_(-layer(inputs).mean(dim=0))


def widest_direction(hidden: Tensor) -> Tensor:
    """Return the unit vector ``(dim,)`` along which positions vary most over cells, longer tail ahead."""
    centred = (hidden - hidden.mean(dim=0)).flatten(0, 1)
    direction: Tensor = torch.linalg.eigh((centred.T @ centred).double()).eigenvectors[:, -1].float()
    along = (centred @ direction).double()
    return direction if along.pow(3).sum() >= 0 else -direction


def wider_backbone(old: Performer, vectors: Tensor) -> Performer:
    """Return a copy that reads more genes, with vectors ``(n_new, dim)``; the closing position stays last."""
    values = _copied(old)
    values["pos_emb.weight"] = _before_last(values["pos_emb.weight"], vectors, dim=0)
    wider = empty_performer(old.config, old.n_genes + len(vectors))
    wider.load_state_dict(values, assign=True)
    return wider


def wider_head(old: Head, n_new: int) -> Head:
    """Return a copy for ``n_new`` more genes, whose columns are zero; the closing position stays last."""
    values = _copied(old)
    columns = values["to_manifold.weight"]
    values["to_manifold.weight"] = _before_last(columns, columns.new_zeros(len(columns), n_new), dim=1)
    layer = old.to_manifold
    wider = empty_head(old.filter.in_features, layer.in_features + n_new, old.prototypes.out_features)
    wider.load_state_dict(values, assign=True)
    return wider


def _copied(part: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in part.state_dict().items()}


def _before_last(old: Tensor, new: Tensor, dim: int) -> Tensor:
    """Return ``old`` with ``new`` before its last row (``dim`` 0) or column (1): the closing position."""
    last = old.shape[dim] - 1
    return torch.cat([old.narrow(dim, 0, last), new.to(old), old.narrow(dim, last, 1)], dim=dim)


# The novelty score, and the threshold above which a cell is Unassigned.


@dataclass(frozen=True)
class Blend:
    """Means and standard deviations of the components of a novelty score over validation cells.

    Attributes
    ----------
    score_mean, score_spread : float
        Mean and standard deviation of the published score.
    distance_mean, distance_spread : float
        Likewise of `canal.model.centroids.TypeDistance`.
    angle_mean, angle_spread : float or None
        Likewise of `canal.model.centroids.TypeAngle`; None in models of the first format.
    """

    score_mean: float
    score_spread: float
    distance_mean: float
    distance_spread: float
    angle_mean: float | None = None
    angle_spread: float | None = None

    def __post_init__(self) -> None:
        found = self.to_json()
        spreads = [value for name, value in found.items() if name.endswith("_spread")]
        if len(found) % 2 or not all(is_number(value) for value in found.values()) or min(spreads) <= 0:
            raise ModelError(f"a novelty rule's blend needs finite numbers and spreads > 0, found {found}")

    @property
    def parts(self) -> tuple[str, ...]:
        """The components that come from `canal.model.centroids.TypeCentroids`."""
        return PARTS[:1] if self.angle_mean is None else PARTS

    def of(self, score: np.ndarray, distance: np.ndarray, angle: np.ndarray) -> np.ndarray:
        """Return all parts, each in standard deviations above its mean and summed, squeezed into 0...1."""
        total = (score - self.score_mean) / self.score_spread
        total = total + (distance - self.distance_mean) / self.distance_spread
        if self.angle_mean is not None and self.angle_spread is not None:
            total = total + (angle - self.angle_mean) / self.angle_spread
        return squeezed(total)

    def to_json(self) -> dict[str, float]:
        """Return the numbers by name, without those that are None."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class NoveltyRule:
    """Energy and confidence in one score (bbae047), with bounds fixed when the stage was learned.

    Attributes
    ----------
    temperature : float
        T of the energy E(x) = -T log sum_c exp(logit_c / T).
    energy_low, energy_high : float
        Energies that are scaled to 0 and 1. They are stored, so a cell's score does not depend on the other
        cells of a query.
    threshold : float
        A score above it is novel.
    blend : Blend or None
        How distances to the centroids are added; None in models of the first format.
    """

    temperature: float
    energy_low: float
    energy_high: float
    threshold: float
    blend: Blend | None = None

    def __post_init__(self) -> None:
        wrong = [name for name in _NUMBERS if not is_number(getattr(self, name))]
        if wrong or not self.temperature > 0 or not self.energy_high > self.energy_low:
            raise ModelError(
                "a novelty rule needs finite numbers, temperature > 0 and energy_high > energy_low, "
                f"found {asdict(self)}"
            )

    @property
    def parts(self) -> tuple[str, ...]:
        """The components that come from `canal.model.centroids.TypeCentroids`: none without a blend."""
        return () if self.blend is None else self.blend.parts

    def energy(self, logits: np.ndarray) -> np.ndarray:
        """Return the energy of each cell, scaled to 0...1 and clipped, ``(n_cells,)``."""
        scaled = np.asarray(logits, dtype=np.float64) / self.temperature
        raw = -self.temperature * np.logaddexp.reduce(scaled, axis=1)
        spread = self.energy_high - self.energy_low
        result: np.ndarray = np.clip((raw - self.energy_low) / spread, 0.0, 1.0)
        return result

    def published_score(self, logits: np.ndarray) -> np.ndarray:
        """Return (E + 1 - p) / 2 in 0...1 for logits ``(n_cells, n_types)``.

        p is the largest probability as the network states it, without the annotator's temperature.
        """
        values = np.asarray(logits, dtype=np.float64)
        highest = values.max(axis=1)
        confidence = np.exp(highest - np.logaddexp.reduce(values, axis=1))
        result: np.ndarray = (self.energy(values) + 1.0 - confidence) / 2.0
        return result

    def score(self, logits: np.ndarray, distances: CentroidDistances | None = None) -> np.ndarray:
        """Return the novelty of each cell in 0...1.

        Parameters
        ----------
        logits
            ``(n_cells, n_types)``.
        distances
            To the centroids, ``(n_cells,)`` each; not needed without a blend.

        Raises
        ------
        ModelError
            If distances are needed and not given.
        """
        published = self.published_score(logits)
        if self.blend is None:
            return published
        if distances is None:
            raise ModelError("this novelty rule needs the distances of cells to the centroids of the types")
        return self.blend.of(published, *(part.double().numpy() for part in distances))

    def is_novel(self, score: np.ndarray) -> np.ndarray:
        """Return for each score whether it is above the threshold."""
        result: np.ndarray = np.asarray(score) > self.threshold
        return result

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a JSON document; without a blend, none is named."""
        blend = {} if self.blend is None else {_BLEND: self.blend.to_json()}
        return {name: getattr(self, name) for name in _NUMBERS} | blend

    @classmethod
    def from_json(cls, document: Any) -> NoveltyRule:
        """Return the rule that `to_json` wrote; raises `ModelError` on other keys or values."""
        blend = document.get(_BLEND) if isinstance(document, dict) else None
        wanted = sorted([*_NUMBERS, _BLEND] if blend is not None else _NUMBERS)
        if not isinstance(document, dict) or sorted(document) != wanted:
            raise ModelError(f"a novelty rule has the keys {wanted}, found {document!r:.200}")
        if blend is None:
            return cls(**document)
        names = [field.name for field in fields(Blend)]
        if not isinstance(blend, dict) or sorted(blend) not in (sorted(names), sorted(names[:_OLD])):
            raise ModelError(f"a novelty rule's blend has the keys {names}, found {blend!r:.200}")
        return cls(**(document | {_BLEND: Blend(**blend)}))


def is_number(value: object) -> bool:
    """Return whether a JSON value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
