"""What `benchmarks/exact.py` compares: the exact memory, and others that learn from the same cells."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from exact_streams import Drawn
from scipy.linalg import cho_factor, cho_solve

import canal.memory
from canal.config.params import Config
from canal.continual.cells import LabelledCells
from canal.continual.evaluation import accuracy
from canal.continual.exact_learner import uncalibrated
from canal.core.digests import file_digest, json_digest
from canal.memory.answer import ExactAnnotator
from canal.memory.levels import Basis
from canal.memory.stage_sums import StageSums
from canal.memory.sums import Adder, Sums, total

CHUNK_CELLS = 2000


class Answer(Protocol):
    """A learner that has learned some stages."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The types that it can answer."""

    def logits(self, cells: LabelledCells, missing: Collection[str]) -> np.ndarray:
        """Return scores ``(n_cells, n_types)`` of cells whose file lacks some genes of the panel."""


class Learner(Protocol):
    """A way to learn; one is made for each drawn stream."""

    name: str
    step_by_step: bool
    """Whether it learns a stage after the other; else all cells at once."""

    def __init__(self, drawn: Drawn) -> None: ...

    def learned(self, stages: Sequence[str]) -> Answer:
        """Return what it answers after these stages and no others."""

    @staticmethod
    def asked(config: Config) -> Any:
        """Return what decides its figures beside the cells."""


class Exact:
    """canal's exact memory as it is shipped."""

    name = "exact memory"
    step_by_step = True

    def __init__(self, drawn: Drawn, basis: Basis | None = None) -> None:
        self.drawn = drawn
        self.sums = StageSums(basis or Basis(drawn.genes, {}))
        for name, cells in drawn.stages.items():
            self.sums = self.sums.plus(name, sums_of(self.sums.basis, cells.train), cells.missing)

    def learned(self, stages: Sequence[str]) -> Answer:
        """Solve the sums of some stages."""
        return _Asked(solved(self.drawn, self.only(stages)))

    def only(self, stages: Collection[str]) -> StageSums:
        """Return the sums of some stages."""
        kept = {name: one for name, one in self.sums.stages.items() if name in stages}
        return StageSums(self.sums.basis, kept, {name: self.sums.missing[name] for name in kept})

    @staticmethod
    def asked(config: Config) -> Any:
        """Return the code that adds up and solves, and by what numbers."""
        return [_code(Path(canal.memory.__file__).parent), config.memory.numbers()]


class Slda:
    """Streaming linear discriminant analysis with one centroid a type, from the same sums.

    The covariance within types is drawn to its diagonal by the share that names most validation cells of the
    learned stages rightly.
    """

    name = "SLDA"
    step_by_step = True
    shares = (1e-4, 0.1, 0.4)

    def __init__(self, drawn: Drawn) -> None:
        self.drawn, self.exact = drawn, Exact(drawn)

    def learned(self, stages: Sequence[str]) -> Answer:
        """Solve the sums of some stages."""
        sums = total(self.exact.only(stages).stages.values(), self.exact.sums.basis)
        answers = [self._solved(sums, share) for share in self.shares]
        return best(answers, self.drawn, stages)

    def _solved(self, sums: Sums, share: float) -> Answer:
        n = sums.counts.astype(np.float64)
        means = sums.totals / n[:, None]
        scatter = sum(sums.scatter(row) - n[row] * np.outer(means[row], means[row]) for row in range(len(n)))
        covariance = (1 - share) * scatter / max(n.sum() - len(n), 1.0)
        np.fill_diagonal(covariance, np.maximum(np.diag(covariance) / (1 - share), 1e-3))
        weights = cho_solve(cho_factor(covariance, lower=True), means.T).T
        bias = -0.5 * np.einsum("cd,cd->c", means, weights)
        levels = self.exact.sums.basis.levels
        return Scored(sums.types, lambda expression: levels(expression) @ weights.T + bias)

    @staticmethod
    def asked(config: Config) -> Any:
        """Return canal's code, of which levels and sums are, and the shares."""
        return [_code(Path(canal.memory.__file__).parent), Slda.shares]


class RanPac:
    """Ridge regression on random features of the levels, in whole numbers, as RanPAC has it.

    McDonnell et al. (NeurIPS 2023): sums of products and of products with the types, by stage; the ridge is
    the one that names most validation cells of the learned stages rightly.
    """

    name = "RanPAC-like"
    step_by_step = True
    size, highest, shift = 2000, 4095, 6
    ridges = (0.01, 0.1, 1.0, 10.0)

    def __init__(self, drawn: Drawn) -> None:
        self.drawn = drawn
        self._levels = Basis(drawn.genes, {}).levels
        random, n_genes = np.random.default_rng(0), len(drawn.genes)
        self._weights = np.round(random.standard_normal((n_genes, self.size)) * 16)
        self._bias = np.round(random.standard_normal(self.size) * 64 * np.sqrt(n_genes))
        self.sums: dict[str, tuple[np.ndarray, dict[str, np.ndarray]]] = {}
        for name in drawn.stages:
            self.add(name)

    def add(self, stage: str) -> None:
        """Add up the training cells of a stage."""
        self.sums[stage] = self._sum(self.drawn.stages[stage].train)

    def learned(self, stages: Sequence[str]) -> Answer:
        """Solve the sums of some stages."""
        labels = tuple(sorted({name for stage in stages for name in self.sums[stage][1]}))
        products = np.sum([self.sums[stage][0] for stage in stages], axis=0)
        targets = np.zeros((self.size, len(labels)))
        for stage in stages:
            for name, summed in self.sums[stage][1].items():
                targets[:, labels.index(name)] += summed
        scale = float(np.trace(products)) / self.size
        answers = [self._solved(labels, products, targets, ridge * scale) for ridge in self.ridges]
        return best(answers, self.drawn, stages)

    def features(self, expression: np.ndarray) -> np.ndarray:
        """Return whole numbers of 0...4095, float64 ``(n_cells, size)``."""
        made = np.maximum(self._levels(expression) @ self._weights + self._bias, 0)
        clipped: np.ndarray = np.minimum(np.floor(made / 2**self.shift), self.highest)
        return clipped

    def _sum(self, cells: LabelledCells) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        features, types = self.features(cells.expression), np.array(cells.cell_types, dtype=object)
        return features.T @ features, {name: features[types == name].sum(axis=0) for name in cells.types}

    def _solved(
        self, labels: tuple[str, ...], products: np.ndarray, targets: np.ndarray, ridge: float
    ) -> Answer:
        firm = products.copy()
        firm[np.diag_indices(self.size)] += ridge
        weights = cho_solve(cho_factor(firm, lower=True, overwrite_a=True), targets)
        return Scored(labels, lambda expression: self.features(expression) @ weights)

    @staticmethod
    def asked(config: Config) -> Any:
        """Return the form of the features and the ridges."""
        return [1, RanPac.size, RanPac.highest, RanPac.shift, RanPac.ridges]


class Logistic:
    """Logistic regression on the expression of all training cells at once: it needs every cell.

    Of four strengths C the one that names most validation cells of all stages rightly; to leave a study out,
    the same C is taken, so it has seen that study's validation cells, which is to its advantage.
    """

    name = "logistic regression"
    step_by_step = False
    strengths = (0.003, 0.01, 0.03, 0.1)

    def __init__(self, drawn: Drawn) -> None:
        self.drawn = drawn
        self._strength: float | None = None

    def learned(self, stages: Sequence[str]) -> Answer:
        """Fit all training cells of some stages; all stages must come first."""
        if self._strength is not None:
            return self._fitted(stages, self._strength)
        answers = [self._fitted(stages, one) for one in self.strengths]
        found = best(answers, self.drawn, stages)
        self._strength = self.strengths[answers.index(found)]
        return found

    def _fitted(self, stages: Sequence[str], strength: float) -> Answer:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        cells = LabelledCells.concatenate([self.drawn.stages[name].train for name in stages])
        regression = LogisticRegression(C=strength, max_iter=300, tol=1e-3)
        model = make_pipeline(StandardScaler(), regression).fit(cells.expression, cells.cell_types)
        return Scored(tuple(map(str, model.classes_)), model.predict_log_proba)

    @staticmethod
    def asked(config: Config) -> Any:
        """Return the strengths that are tried."""
        return [1, Logistic.strengths]


class Scored:
    """An answer by a function of expression; missing genes count as not expressed."""

    def __init__(self, labels: tuple[str, ...], scores: Any) -> None:
        self.labels, self._scores = labels, scores

    def logits(self, cells: LabelledCells, missing: Collection[str]) -> np.ndarray:
        """Return the scores."""
        result: np.ndarray = np.asarray(self._scores(cells.expression), dtype=np.float64)
        return result


class _Asked:
    def __init__(self, annotator: ExactAnnotator) -> None:
        self.annotator, self.labels = annotator, annotator.labels

    def logits(self, cells: LabelledCells, missing: Collection[str]) -> np.ndarray:
        """Return what `canal annotate` would have of cells without these genes."""
        return self.annotator.without(missing).predict(cells.expression).logits


LEARNERS: dict[str, type[Learner]] = {"exact": Exact, "slda": Slda, "ranpac": RanPac, "logistic": Logistic}


def sums_of(basis: Basis, cells: LabelledCells) -> Sums:
    """Return the sums of cells, a chunk at a time."""
    adder = Adder(basis)
    for start in range(0, len(cells), CHUNK_CELLS):
        rows = slice(start, start + CHUNK_CELLS)
        adder.add(cells.expression[rows], cells.cell_types[rows])
    return adder.sums()


def solved(drawn: Drawn, sums: StageSums) -> ExactAnnotator:
    """Return the annotator that sums make by the parameters."""
    return uncalibrated(sums, sums.types, drawn.genes, drawn.config.memory)


def said(answer: Answer, cells: LabelledCells, missing: Collection[str]) -> list[str]:
    """Return the likeliest type of each cell."""
    return [answer.labels[place] for place in answer.logits(cells, missing).argmax(axis=1)]


def best(answers: Sequence[Answer], drawn: Drawn, stages: Sequence[str]) -> Answer:
    """Return the answer with the highest mean accuracy on validation cells, the first of equals."""

    def right(answer: Answer) -> float:
        parts = [drawn.stages[name] for name in stages if len(drawn.stages[name].validation)]
        found = [
            accuracy(one.validation.cell_types, said(answer, one.validation, one.missing)) for one in parts
        ]
        return float(np.mean(found))

    return max(answers, key=right)


def _code(folder: Path) -> str:
    """Return one digest of a package's modules."""
    return json_digest({path.name: file_digest(path) for path in sorted(folder.glob("*.py"))})
