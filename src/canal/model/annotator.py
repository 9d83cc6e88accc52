"""The annotator by a network: weights, labels and genes, with which expression is turned into cell types."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from canal.core.digests import json_digest
from canal.core.errors import ModelError
from canal.core.files import new_folder, write_json
from canal.core.progress import advance
from canal.data.expression import tokenize
from canal.memory import NETWORK
from canal.memory.prediction import Prediction
from canal.model.backbone import MOST_CELLS, Backbone, empty_performer
from canal.model.centroids import CentroidDistances, TypeCentroids
from canal.model.compute import in_threads
from canal.model.head import (
    AnnotatorNetwork,
    Answer,
    NoveltyRule,
    empty_head,
    grow,
    is_number,
    new_head,
    wider_backbone,
    wider_head,
)
from canal.model.storage import (
    CONFIG,
    FORMAT,
    ONTOLOGY,
    BackboneConfig,
    read_config,
    read_names,
    read_ontology,
    read_weights,
    weights_digest,
    write_weights,
)

LABELS = "labels.json"
NETWORK_LABELS = "network_labels.json"
"""The labels of a network beside sums that know further types; without the file, they are those of both."""

GENES = "genes.json"
TEMPERATURE = "temperature"
_FIRST_CELLS = 256

Measure = Callable[[Tensor, Tensor], Sequence[Tensor]]
"""A function of gene scores ``(n_cells, n_genes + 1)`` and manifold ``(n_cells, 128)`` of cells."""


@dataclass(frozen=True, eq=False)
class Annotator:
    """A network with the labels and genes it was learned with.

    Attributes
    ----------
    network : AnnotatorNetwork
    labels : tuple of str
        Cell types in the order of the logits; later stages append, never reorder.
    genes : tuple of str
        The panel, in the order of the columns of ``expression``.
    novelty : NoveltyRule or None
        Without one, no cell is novel.
    temperature : float
        Logits are divided by it before they become probabilities. It changes no label; at 1, and in models
        from before canal fitted it, probabilities are as the network learned to state them.
    centroids : TypeCentroids or None
        Centroids of the learned types, for a rule with a blend.
    ontology : dict
        Cell Ontology ids of labels, such as ``{"B": "CL:0000236"}``; those of no label may be missing.
    """

    network: AnnotatorNetwork
    labels: tuple[str, ...]
    genes: tuple[str, ...]
    novelty: NoveltyRule | None = None
    centroids: TypeCentroids | None = None
    temperature: float = 1.0
    ontology: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def start(
        cls,
        backbone: Backbone,
        genes: Sequence[str],
        labels: Sequence[str],
        expression: np.ndarray,
        generator: torch.Generator,
    ) -> Annotator:
        """Return an untrained annotator, its head scaled to ``expression`` ``(n_cells, n_genes)``.

        The cells are the first stage's training cells; all random values come from ``generator``.
        """
        performer = backbone.for_panel(genes)
        _check_names(labels, "labels")
        rows = spread(len(expression), _FIRST_CELLS)
        with torch.no_grad():
            tokens = torch.from_numpy(tokenize(expression[rows]))
            hidden = torch.cat(in_threads(performer, torch.split(tokens, performer.cells_at_a_time)))
        network = AnnotatorNetwork(performer, new_head(hidden, len(labels), generator))
        network.freeze_backbone()
        return cls(network, tuple(labels), tuple(genes))

    def grown(self, labels: Sequence[str], generator: torch.Generator) -> Annotator:
        """Return a copy with ``labels`` appended, without novelty rule and temperature; old bits are kept."""
        _check_names((*self.labels, *labels), "labels")
        head = grow(self.network.head, len(labels), generator)
        network = AnnotatorNetwork(copy.deepcopy(self.network.backbone), head)
        network.freeze_backbone()
        return Annotator(network, (*self.labels, *labels), self.genes, ontology=self.ontology)

    def with_novelty(self, rule: NoveltyRule, centroids: TypeCentroids | None = None) -> Annotator:
        """Return this annotator with another novelty rule and its centroids; the network is shared.

        Raises
        ------
        ModelError
            If the rule needs centroids that are not given, or the other way round.
        """
        given = centroids.parts if centroids else ()
        if rule.parts != given:
            raise ModelError(
                f"the novelty rule needs {', '.join(rule.parts) or 'no component'} from the centroids of the "
                f"learned types, found {', '.join(given) or 'none'}; restore the model"
            )
        return replace(self, novelty=rule, centroids=centroids)

    def without(self, missing: Collection[str]) -> Annotator:
        """Return this annotator for cells of which some genes were never measured; the network is shared.

        The network reads them as not expressed, but distances to the centroids leave them out: cells that
        lack genes would seem novel for that alone. Missing genes are those of the data set, not of a cell, so
        a cell's result still does not depend on other cells.
        """
        if self.centroids is None or not missing:
            return self
        return replace(self, centroids=self.centroids.among(self.present(missing)))

    def present(self, missing: Collection[str]) -> np.ndarray:
        """Return which gene scores are of genes that are present, bool ``(n_genes + 1,)``."""
        gone = set(missing)
        return np.array([gene not in gone for gene in self.genes] + [True])  # the last closes the sequence

    def with_temperature(self, temperature: float) -> Annotator:
        """Return this annotator with another temperature; the network is shared."""
        return replace(self, temperature=temperature)

    def with_ontology(self, ids: Mapping[str, str]) -> Annotator:
        """Return this annotator with more Cell Ontology ids, but for those of no label of its own."""
        own = {name: ids[name] for name in self.labels if name in ids}
        return replace(self, ontology={**self.ontology, **own})

    def answers(self, expression: np.ndarray, batch_size: int = MOST_CELLS) -> Answer:
        """Return manifold, representation and logits, as CPU tensors, for expression ``(n_cells, n_genes)``.

        Cells go through the network at most ``batch_size`` at a time, fewer where that is faster. A cell's
        answer does not depend on other cells, but for the last bits of fp32.

        Raises
        ------
        ModelError
            If the number of columns is not the number of genes.
        """

        @torch.inference_mode()
        def one(part: np.ndarray) -> Answer:
            answer = self.network.head.from_scores(self._scores(part))
            return Answer(*(values.cpu() for values in answer))

        parts = in_threads(one, self._parts(expression, batch_size))
        return Answer(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def gene_scores(self, expression: np.ndarray, batch_size: int = MOST_CELLS) -> Tensor:
        """Return the output of the head's filter, ``(n_cells, n_genes + 1)``; see `answers`."""
        parts = in_threads(self._scores, self._parts(expression, batch_size))
        return torch.cat([part.cpu() for part in parts])

    def represent(self, expression: np.ndarray, batch_size: int = MOST_CELLS) -> np.ndarray:
        """Return the representation h of each cell, float32 ``(n_cells, 64)``."""
        result: np.ndarray = self.answers(expression, batch_size).representation.float().numpy()
        return result

    def predict(self, expression: np.ndarray, batch_size: int = MOST_CELLS) -> Prediction:
        """Return types, confidence and novelty of cells from expression ``(n_cells, n_genes)``."""
        return self.predict_beside(expression, lambda scores, manifold: (), batch_size)[0]

    def predict_beside(
        self, expression: np.ndarray, measure: Measure, batch_size: int = MOST_CELLS
    ) -> tuple[Prediction, list[Tensor]]:
        """Return the prediction, and the values of ``measure`` for the cells, ``(n_cells,)`` each."""
        parts = in_threads(partial(self._outputs, measure=measure), self._parts(expression, batch_size))
        logits, distance, angle, *beside = (torch.cat(column) for column in zip(*parts, strict=True))
        values, novelty = logits.float().numpy(), None
        if self.novelty is not None:
            score = self.novelty.score(values, CentroidDistances(distance, angle))
            novelty = score, self.novelty.is_novel(score)
        return Prediction.of(self.labels, values, self.probabilities(values), novelty), beside

    def predict_represented(self, expression: np.ndarray) -> tuple[Prediction, np.ndarray]:
        """Return the prediction and the manifold ``(n_cells, 128)`` of cells, float32, in one pass."""
        answer, (manifold,) = self.predict_beside(expression, lambda scores, manifold: (manifold,))
        return answer, manifold.float().numpy()

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Return softmax(logits / temperature), ``(n_cells, n_types)``."""
        shifted = np.exp((logits - logits.max(axis=1, keepdims=True)) / self.temperature)
        result: np.ndarray = shifted / shifted.sum(axis=1, keepdims=True)
        return result

    def on(self, device: str) -> Annotator:
        """Move the network to a device and return this annotator."""
        self.network.to(device)
        return self

    def about(self) -> dict[str, Any]:
        """Return the settings of a prediction, for an annotation's record."""
        rule = None if self.novelty is None else self.novelty.to_json()
        return {"novelty": rule, "temperature": self.temperature}

    def digest(self) -> str:
        """Return the SHA-256 of all numbers that decide an answer."""
        tensors = dict(self.network.state_dict())
        tensors |= (
            {} if self.centroids is None else {f"novelty.{k}": v for k, v in self.centroids.tensors().items()}
        )
        return json_digest([weights_digest(tensors), list(self.labels), list(self.genes), self.about()])

    def gene_weights(self) -> np.ndarray:
        """Return the weight of each gene for each type, at least 0, float64 ``(n_types, n_genes)``.

        The sum over all ways through the head of the product of absolute weights: an upper bound of a gene's
        influence.
        """
        head = self.network.head
        layers = (head.prototypes, head.to_representation, head.to_manifold)
        outer, inner, first = (layer.weight.detach().abs().double().cpu().numpy() for layer in layers)
        weights: np.ndarray = (outer @ inner @ first)[:, : len(self.genes)]  # the last closes the sequence
        return weights

    def gene_weights_by_side(self) -> dict[str, np.ndarray]:
        """Return `gene_weights`, as ``NETWORK``."""
        return {NETWORK: self.gene_weights()}

    def represented(self, expression: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return manifold ``(n_cells, 128)`` and logits ``(n_cells, n_types)`` of cells, float32."""
        answers = self.answers(expression)
        return answers.manifold.float().numpy(), answers.logits.float().numpy()

    def prototypes(self) -> np.ndarray:
        """Return the prototype of each label, float32 ``(n_types, 64)``."""
        result: np.ndarray = self.network.head.prototypes.weight.detach().cpu().numpy().copy()
        return result

    def save(self, folder: Path) -> None:
        """Write weights, configuration, labels and genes to ``folder``, whole or not at all."""
        rule = None if self.novelty is None else self.novelty.to_json()
        config = {"format": FORMAT, "backbone": self.network.backbone.config.to_json(), "novelty": rule}
        # Left out at 1, so that a teacher from before temperatures is the same file as its parent's model.
        config |= {} if self.temperature == 1.0 else {TEMPERATURE: self.temperature}
        with new_folder(folder) as temporary:
            write_weights(self.network, temporary)
            write_json(temporary / CONFIG, config)
            write_json(temporary / LABELS, list(self.labels))
            write_json(temporary / GENES, list(self.genes))
            if self.ontology:
                write_json(temporary / ONTOLOGY, dict(self.ontology))
            if self.centroids is not None:
                self.centroids.save(temporary)

    @classmethod
    def load(cls, folder: Path) -> Annotator:
        """Read what `save` wrote; raises `ModelError` if anything is missing, damaged or does not fit."""
        document = read_config(folder)
        config = BackboneConfig.from_json(document.get("backbone"))
        rule = document.get("novelty")
        own = NETWORK_LABELS if (folder / NETWORK_LABELS).is_file() else LABELS
        labels, genes = read_names(folder, own), read_names(folder, GENES)
        head = empty_head(config.dim, len(genes) + 1, len(labels))
        network = AnnotatorNetwork(empty_performer(config, len(genes)), head)
        read_weights(network, folder)
        network.eval().freeze_backbone()
        temperature = document.get(TEMPERATURE, 1.0)
        if not is_number(temperature) or temperature <= 0:
            raise ModelError(f"{CONFIG}: {TEMPERATURE} must be a number above 0, found {temperature!r}")
        loaded = cls(
            network,
            labels,
            genes,
            temperature=float(temperature),
            ontology=read_ontology(folder, labels),
        )
        if rule is None:
            return loaded
        return loaded.with_novelty(NoveltyRule.from_json(rule), TypeCentroids.load(folder, len(genes) + 1))

    def _parts(self, expression: np.ndarray, batch_size: int) -> list[np.ndarray]:
        """Return ``expression`` in pieces that go through the network at a time, at least one."""
        if expression.ndim != 2 or expression.shape[1] != len(self.genes):
            raise ModelError(
                f"expression must have one column for each of the {len(self.genes)} panel genes, "
                f"found shape {expression.shape}"
            )
        size = max(1, min(batch_size, self.network.backbone.cells_at_a_time))
        return [expression[start : start + size] for start in range(0, max(len(expression), 1), size)]

    @torch.inference_mode()
    def _scores(self, expression: np.ndarray) -> Tensor:
        """Return gene scores of one piece, on the network's device."""
        network = self.network
        tokens = torch.from_numpy(tokenize(expression)).to(network.head.filter.weight.device)
        scores = network.head.gene_scores(network.backbone(tokens))
        advance(len(expression))
        return scores

    @torch.inference_mode()
    def _outputs(self, expression: np.ndarray, measure: Measure) -> tuple[Tensor, ...]:
        """Return logits of one piece, its distances to the centroids, and the values of ``measure``."""
        scores = self._scores(expression)
        answer, none = self.network.head.from_scores(scores), torch.zeros(len(scores))
        distances = CentroidDistances(none, none) if self.centroids is None else self.centroids.of(scores)
        return answer.logits.cpu(), *distances, *measure(scores, answer.manifold)


def _check_names(names: Sequence[str], what: str) -> None:
    if not names or len(set(names)) < len(names):
        raise ModelError(f"{what} must be unique and at least one, found {list(names)[:20]}")


def spread(n: int, wanted: int) -> np.ndarray:
    """Return at most ``wanted`` positions, evenly spread over ``n``."""
    return np.unique(np.linspace(0, n - 1, min(n, wanted)).astype(np.int64))


def gene_vectors(annotator: Annotator) -> np.ndarray:
    """Return the vectors of an annotator's genes, float32 ``(n_genes, dim)``."""
    vectors: np.ndarray = annotator.network.backbone.pos_emb.weight[:-1].detach().cpu().numpy().copy()
    return vectors


def with_genes(annotator: Annotator, genes: Sequence[str], vectors: np.ndarray) -> Annotator:
    """Return a copy that reads ``genes`` behind its own, without novelty rule and temperature.

    The new genes' vectors ``(len(genes), dim)`` are inserted behind the old ones and before the closing
    position, which stays the last; likewise the columns of the head's first layer, which are zero: a new gene
    has no weight until it is trained. All old parameters keep their bits. Answers do not: attention is over
    all positions, whose number grows.

    Raises
    ------
    ModelError
        If a gene is known already or named twice, or there is not one finite vector of the backbone's width
        for each.
    """
    dim = annotator.network.backbone.config.dim
    if twice := sorted(set(genes) & set(annotator.genes)):
        raise ModelError(f"{len(twice)} new genes are in the panel already, such as {twice[:5]}")
    if len(set(genes)) < len(genes):
        raise ModelError(f"{len(genes)} new genes have {len(set(genes))} names: each must be another")
    if vectors.shape != (len(genes), dim) or not np.isfinite(vectors).all():
        raise ModelError(
            f"{len(genes)} new genes need one finite vector of {dim} values each, found {vectors.shape}"
        )
    rows = torch.from_numpy(vectors.astype(np.float32))
    backbone = wider_backbone(annotator.network.backbone, rows)
    network = AnnotatorNetwork(backbone, wider_head(annotator.network.head, len(genes)))
    network.freeze_backbone()
    panel = (*annotator.genes, *genes)
    return replace(annotator, network=network, genes=panel, novelty=None, centroids=None, temperature=1.0)
