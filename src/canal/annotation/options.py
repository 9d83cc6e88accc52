"""The options and callbacks of annotation: how cells are read, what is written, and progress messages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any, get_args

from canal.annotation.coarse import LEAST_BOUND
from canal.annotation.columns import KEY, check_choice, check_key
from canal.annotation.naming import Naming
from canal.annotation.query_units import UNITS_OPTIONS
from canal.core.errors import DataError
from canal.core.progress import OnCells
from canal.model import DEVICES, Precision
from canal.model.load import Effort

_CHOICES = {
    "values": UNITS_OPTIONS,
    "device": DEVICES,
    "dtype": get_args(Precision),
    "effort": get_args(Effort),
}
"""The options that have a few values."""


def _share(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and 0 <= float(value) <= 1


_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "str": (lambda value: isinstance(value, str), "a text"),
    "str | None": (lambda value: value is None or isinstance(value, str), "a text or None"),
    "bool": (lambda value: value is True or value is False, "True or False"),
    "int": (lambda value: isinstance(value, Integral) and int(value) >= 1, "a whole number, 1 or more"),
    "float": (_share, "a number from 0 to 1"),
    "float | None": (lambda value: value is None or _share(value), "a number from 0 to 1"),
    "Naming": (lambda value: isinstance(value, Naming), "canal.Naming(...)"),
}
"""A field's type, as it is written below -> whether a value fits, and what is expected in words."""


@dataclass(frozen=True)
class Options:
    """How a query is read and what is written beside the labels.

    Raises
    ------
    DataError
        If a value is none of an option's choices or of another type, a limit is not in 0...1, a key is no
        plain name, ``min_share`` is given without ``vote``, or ``coarse`` is not above 0.5.

    Attributes
    ----------
    layer : str
        X, raw or the name of a layer.
    values : str
        auto, counts, log1p_10k or log2p_10k.
    gene_column : str or None
        Column of var with gene symbols; None: the index.
    chunk_cells : int
        Cells held in memory at a time.
    min_coverage : float
        Share of the model's genes below which cells are not labelled.
    force : bool
        Whether cells are labelled below that share, with a warning.
    naming : Naming
        The options about gene names.
    overwrite : bool
        Whether an existing output may be replaced.
    only_obs : bool
        Whether only a table of labels is written; implied by a suffix .csv or .parquet.
    probabilities : bool
        Whether the probability of every type is also written: 4 bytes a cell and type.
    latent : bool
        Whether the model's embedding of the cells is also written, to obsm ``X_canal``, for
        ``scanpy.pp.neighbors(use_rep="X_canal")``: of a network 128 numbers or 512 bytes a cell, twelve times
        what labels take, so it is written on request; of sums one number a centroid. It costs hardly any time
        but with ``effort="fast"``, where the network must then look at every cell.
    key_added : str
        What the names of columns, matrices and the record begin with, instead of ``canal``: labels under
        other keys are left alone, those under the same one replaced.
    max_novelty, min_confidence : float or None
        A cell above this novelty, or below this confidence, 0...1, is "Unassigned", too: they add to the
        version's own rule and never replace it.
    coarse : float or None
        The probability that a coarse type must have, above 0.5, such as 0.9: columns with the closest kind of
        cell that is so sure are written, too; see `canal.annotation.coarse`.
    vote : str or None
        Clusters whose majority is written beside each cell's own label: a column of obs, ``louvain`` or
        ``leiden``; see `canal.annotation.clusters`.
    min_share : float or None
        Share of a cluster's cells, 0...1, that its majority must have: else the vote is "Mixed".
    resume : bool
        Whether to continue an interrupted run for the same output.
    device : str
        auto, cpu or cuda.
    dtype : str
        float32, or bfloat16: less precise, and faster where the machine has instructions for it.
    effort : str
        full, or fast: how the annotator was loaded; see `canal.model.load.load_model`.
    model_name : dict
        Provenance of the model, JSON values; written into the record.
    origin : dict
        Time and input file, JSON values; written into the record.
    """

    layer: str = "X"
    values: str = "auto"
    gene_column: str | None = None
    chunk_cells: int = 2000
    min_coverage: float = 0.4
    force: bool = False
    naming: Naming = field(default_factory=Naming)
    overwrite: bool = False
    only_obs: bool = False
    probabilities: bool = False
    latent: bool = False
    key_added: str = KEY
    max_novelty: float | None = None
    min_confidence: float | None = None
    coarse: float | None = None
    vote: str | None = None
    min_share: float | None = None
    resume: bool = False
    device: str = "auto"
    dtype: Precision = "float32"
    effort: Effort = "full"
    model_name: Mapping[str, Any] = field(default_factory=dict)
    origin: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_key(self.key_added)
        for name, choices in _CHOICES.items():
            check_choice(name, getattr(self, name), choices)
        for one in fields(self):
            fits, words = _KINDS.get(str(one.type), (lambda _: True, ""))
            if not fits(value := getattr(self, one.name)):
                raise DataError(f"--{one.name.replace('_', '-')}: expected {words}, found {value!r}")
        if self.coarse is not None and not self.coarse > LEAST_BOUND:
            raise DataError(
                f"--coarse: expected a probability above {LEAST_BOUND:g}, such as 0.9, found "
                f"{self.coarse!r}: a lower one is reached by types that exclude each other"
            )
        if self.min_share is not None and self.vote is None:
            raise DataError("--min-share is a share of a cluster: name the clusters with --vote, too")

    @property
    def has_limits(self) -> bool:
        """Whether cells are cut by novelty or confidence."""
        return self.max_novelty is not None or self.min_confidence is not None


@dataclass(frozen=True)
class Callbacks:
    """Functions that are called while a file is labelled.

    Attributes
    ----------
    notice : callable
        Receives messages for the user; without ``on_cells`` also progress, in cells.
    on_cells : callable, optional
        Called with (cells done, cells in all) after every block.
    on_record : callable, optional
        Receives the record when the output is complete, just before it is renamed into place.
    """

    notice: Callable[[str], None] = lambda message: None
    on_cells: OnCells | None = None
    on_record: Callable[[str], None] | None = None
