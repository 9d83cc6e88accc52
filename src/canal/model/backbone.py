"""The pretrained backbone: a network, and the genes that it has embeddings of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from canal.core.errors import ModelError
from canal.core.files import new_folder, write_json
from canal.model.config import BackboneConfig
from canal.model.performer import Performer, empty_performer
from canal.model.storage import CONFIG, FORMAT, read_config, read_names, read_weights, write_weights

VOCABULARY = "vocabulary.json"


@dataclass(frozen=True, eq=False)
class Backbone:
    """A pretrained Performer over a vocabulary of genes.

    Attributes
    ----------
    network : Performer
        Its gene embedding has one row for each gene of ``vocabulary``, and the closing position.
    vocabulary : tuple of str
        Gene symbols.
    """

    network: Performer
    vocabulary: tuple[str, ...]

    @property
    def config(self) -> BackboneConfig:
        """The shape of the network."""
        return self.network.config

    def for_panel(self, genes: Sequence[str]) -> Performer:
        """Return a copy of the network that reads ``genes`` in that order.

        Raises
        ------
        ModelError
            If a gene is not in the vocabulary.
        """
        row = {gene: i for i, gene in enumerate(self.vocabulary)}
        if missing := [gene for gene in genes if gene not in row]:
            raise ModelError(
                f"{len(missing)} of {len(genes)} panel genes are not among the backbone's "
                f"{len(self.vocabulary)}, such as {missing[:5]}: pretrain the backbone for this panel"
            )
        return self._with_rows(torch.tensor([row[gene] for gene in genes], dtype=torch.long))

    def save(self, folder: Path) -> None:
        """Write weights, configuration and vocabulary to ``folder``, whole or not at all."""
        with new_folder(folder) as temporary:
            write_weights(self.network, temporary)
            write_json(temporary / CONFIG, {"format": FORMAT, "backbone": self.config.to_json()})
            write_json(temporary / VOCABULARY, list(self.vocabulary))

    @classmethod
    def load(cls, folder: Path) -> Backbone:
        """Read what `save` wrote; raises `ModelError` if anything is missing, damaged or does not fit."""
        config = BackboneConfig.from_json(read_config(folder).get("backbone"))
        vocabulary = read_names(folder, VOCABULARY)
        network = empty_performer(config, len(vocabulary))
        read_weights(network, folder)
        return cls(network.eval().requires_grad_(False), vocabulary)

    def _with_rows(self, rows: Tensor) -> Performer:
        """Return a copy with the gene embeddings at ``rows``, and the closing position."""
        values = {name: value.detach().clone() for name, value in self.network.state_dict().items()}
        genes = values["pos_emb.weight"]
        values["pos_emb.weight"] = torch.cat([genes[rows], genes[-1:]])
        network = empty_performer(self.config, len(rows))
        network.load_state_dict(values, assign=True)
        return network.requires_grad_(False)
