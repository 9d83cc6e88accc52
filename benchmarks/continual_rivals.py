"""The rivals of `benchmarks/continual.py` without epochs of training, and what all rivals have in common.

Each learns stage after stage and sees of a stage its training and validation cells, of earlier stages only
what it kept. Validation cells decide between its hyperparameters: those of the newest stage, and of older
ones the probe sets that canal keeps, too (`exact_streams.Drawn.known`). Genes that a file lacks count as not
expressed, but for the exact memory, which knows better.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from exact_learners import Answer, Exact, Logistic, RanPac, Scored, Slda, said, sums_of
from exact_streams import Drawn, StageCells, truth

from canal.continual.cells import LabelledCells
from canal.continual.evaluation import accuracy
from canal.continual.exact_learner import ExactLearner, LabelledLevels
from canal.memory.answer import ExactAnnotator
from canal.memory.stage_sums import StageSums


@dataclass(frozen=True)
class Kept:
    """What a rival keeps for the next stage, beside probe sets, which all keep alike.

    Attributes
    ----------
    n_bytes : int
        Of sums, weights and cells.
    n_cells : int
        Training cells whose expression, or a projection of it, is kept.
    """

    n_bytes: int
    n_cells: int


class Rival(Protocol):
    """A way to learn stage after stage; one is made for each drawn stream.

    Attributes
    ----------
    title : str
        Its row in tables.
    joint : bool
        Whether it learns all cells again with each stage: it then answers after the last one alone.
    costly : bool
        Whether studies and types are left out under the first seed alone.
    """

    title: str
    joint: bool
    costly: bool

    def __init__(self, drawn: Drawn) -> None: ...

    def learn(self, stage: str) -> None:
        """Learn one more stage."""

    def answer(self) -> Answer:
        """Return what it answers after the stages so far."""

    def kept(self) -> Kept:
        """Return what it keeps for the next stage."""

    @classmethod
    def asked(cls) -> Any:
        """Return what decides its figures beside the cells: a version of its code, and its settings."""


class _Solved:
    """An exact memory with its own rule of novelty, as `canal annotate` has it."""

    def __init__(self, annotator: ExactAnnotator) -> None:
        self.annotator, self.labels = annotator, annotator.labels

    def logits(self, cells: LabelledCells, missing: Collection[str]) -> np.ndarray:
        return self.annotator.without(missing).predict(cells.expression).logits

    def novelty(self, cells: LabelledCells, missing: Collection[str]) -> np.ndarray:
        """Return canal's own score of each cell."""
        return self.annotator.without(missing).predict(cells.expression).novelty


class CanalSums:
    """canal's exact memory as it is shipped: sums by type and stage, two answers, its own novelty score."""

    title, joint, costly = "canal, sums", False, False

    def __init__(self, drawn: Drawn) -> None:
        self.drawn = drawn
        self.learner = Exact(replace(drawn, stages={}))

    @property
    def sums(self) -> StageSums:
        """The sums so far."""
        return self.learner.sums

    def learn(self, stage: str) -> None:
        """Add the sums of a stage."""
        cells = self.drawn.stages[stage]
        added = sums_of(self.sums.basis, cells.train)
        self.learner.sums = self.sums.plus(stage, added, cells.missing)

    def answer(self) -> Answer:
        """Solve the sums; confidence and novelty are set on validation cells and probes."""
        known = LabelledLevels.of_cells(self.drawn.known(list(self.sums.stages)), self.sums)
        learner = ExactLearner(self.sums, self.drawn.config.memory, self.drawn.config.novelty)
        return _Solved(learner.annotator(self.sums.types, self.drawn.genes, known))

    def kept(self) -> Kept:
        """Return the size of the sums."""
        stages = self.sums.stages.values()
        return Kept(sum(one.counts.nbytes + one.totals.nbytes + one.products.nbytes for one in stages), 0)

    @classmethod
    def asked(cls) -> Any:
        """Return the version; canal's code and numbers are in `Exact.asked`."""
        return [2]


class CanalSlda(CanalSums):
    """Streaming linear discriminant analysis (Hayes and Kanan 2020): a centroid a type, one covariance."""

    title = "SLDA"

    def __init__(self, drawn: Drawn) -> None:
        super().__init__(drawn)
        self.slda = Slda(replace(drawn, stages={}))
        self.slda.drawn = drawn

    def answer(self) -> Answer:
        """Solve the sums of all stages together; validation cells choose the shrinkage."""
        self.slda.exact.sums = self.sums
        return self.slda.learned(list(self.sums.stages))

    def kept(self) -> Kept:
        """Return the size of a mean and a count a type and one matrix."""
        size, n_types = len(self.drawn.genes), len(self.sums.types)
        return Kept(8 * (n_types * (size + 1) + size * (size + 1) // 2), 0)


class Projections:
    """Random projections with second-order statistics (RanPAC, McDonnell et al. 2023)."""

    title, joint, costly = "RanPAC", False, False

    def __init__(self, drawn: Drawn) -> None:
        self.learner = RanPac(replace(drawn, stages={}))
        self.learner.drawn = drawn

    def learn(self, stage: str) -> None:
        """Add the sums of a stage's features."""
        self.learner.add(stage)

    def answer(self) -> Answer:
        """Solve; validation cells choose the ridge."""
        return self.learner.learned(list(self.learner.sums))

    def kept(self) -> Kept:
        """Return the size of one matrix and a vector a type: sums by stage are not needed."""
        types = {name for _, targets in self.learner.sums.values() for name in targets}
        return Kept(8 * (RanPac.size * (RanPac.size + 1) // 2 + len(types) * RanPac.size), 0)

    @classmethod
    def asked(cls) -> Any:
        """Return the form of features and the ridges."""
        return [1, RanPac.size, RanPac.ridges]


class _OfCells:
    """A rival that keeps every training cell, and learns all of them again."""

    joint, costly = True, False

    def __init__(self, drawn: Drawn) -> None:
        self.drawn = drawn
        self.stages: list[str] = []

    def learn(self, stage: str) -> None:
        """Keep the stage's cells."""
        self.stages.append(stage)

    def train(self) -> LabelledCells:
        """Return the training cells of all stages so far."""
        return LabelledCells.concatenate([self.drawn.stages[name].train for name in self.stages])

    def kept(self) -> Kept:
        """Return the size of all cells, as float32."""
        n_cells = sum(len(self.drawn.stages[name].train) for name in self.stages)
        return Kept(4 * n_cells * len(self.drawn.genes), n_cells)


class JointLogistic(_OfCells):
    """Logistic regression on all training cells of all stages at once; validation cells choose C."""

    title = "logistic regression, all cells"

    def answer(self) -> Answer:
        """Fit with four strengths and return the best."""
        learner = Logistic(self.drawn)
        return learner.learned(self.stages)

    @classmethod
    def asked(cls) -> Any:
        """Return the strengths."""
        return [1, Logistic.strengths]


class NewestLogistic(JointLogistic):
    """Logistic regression on the newest stage alone: what is known after a model is simply trained anew."""

    title, joint = "logistic regression, newest stage alone", False

    def learn(self, stage: str) -> None:
        """Forget all other stages."""
        self.stages = [stage]

    def answer(self) -> Answer:
        """Fit, or name the one type that the stage has."""
        types = self.train().types
        if len(types) > 1:
            return super().answer()
        return Scored(types, lambda expression: np.zeros((len(expression), 1)))

    def kept(self) -> Kept:
        """Return that nothing is kept."""
        return Kept(0, 0)


class NearestCells(_OfCells):
    """k nearest neighbours among all training cells, on principal components of the first stage's cells."""

    title, joint = "kNN on PCA", False
    components, neighbours = 50, (5, 15, 30)

    def __init__(self, drawn: Drawn) -> None:
        super().__init__(drawn)
        self.places: list[np.ndarray] = []
        self.types: list[str] = []

    def learn(self, stage: str) -> None:
        """Keep where the stage's cells lie."""
        from sklearn.decomposition import PCA

        cells = self.drawn.stages[stage].train
        if not self.stages:
            n = min(self.components, len(cells) - 1, cells.n_genes)
            self.pca = PCA(n, random_state=0, svd_solver="randomized").fit(cells.expression)
        super().learn(stage)
        self.places.append(self.pca.transform(cells.expression))
        self.types += cells.cell_types

    def answer(self) -> Answer:
        """Return the shares of types among neighbours; validation cells choose k."""
        from sklearn.neighbors import KNeighborsClassifier

        places = np.concatenate(self.places)
        answers = []
        for k in self.neighbours:
            model = KNeighborsClassifier(min(k, len(places)), weights="distance").fit(places, self.types)
            labels = tuple(map(str, model.classes_))
            answers.append(Scored(labels, self._log_shares(model)))
        return best_known(answers, self.drawn, self.stages)

    def _log_shares(self, model: Any) -> Callable[[np.ndarray], np.ndarray]:
        """Return a function from expression to log shares, with a little for every type."""
        return lambda x: np.log(np.maximum(model.predict_proba(self.pca.transform(x)), 1e-3))

    def kept(self) -> Kept:
        """Return the size of all cells' places: each is still a cell."""
        return Kept(sum(one.nbytes for one in self.places), len(self.types))

    @classmethod
    def asked(cls) -> Any:
        """Return components and neighbours."""
        return [1, cls.components, cls.neighbours]


def best_known(answers: Sequence[Answer], drawn: Drawn, stages: Sequence[str]) -> Answer:
    """Return the answer with the highest mean accuracy on validation cells and probes."""
    return max(answers, key=lambda answer: known_accuracy(answer, drawn, stages))


def known_accuracy(answer: Answer, drawn: Drawn, stages: Sequence[str]) -> float:
    """Return the mean over stages of the accuracy on newest validation cells and older probe sets."""
    known = drawn.known(list(stages))
    parts = [known.of_stage(name) for name in known.stage_names]
    missing = {name: drawn.stages[name].missing for name in known.stage_names}
    found = [
        accuracy(part.cell_types, said(answer, part, missing[name]))
        for part, name in zip(parts, known.stage_names, strict=True)
    ]
    return float(np.mean(found))


def without_type(drawn: Drawn, cell_type: str) -> Drawn:
    """Return the stream with neither training nor validation cells of a type; its test cells stay."""

    def others(cells: LabelledCells) -> LabelledCells:
        return cells.take([row for row, name in enumerate(cells.cell_types) if name != cell_type])

    stages = {
        name: StageCells(others(one.train), others(one.validation), one.test, one.missing)
        for name, one in drawn.stages.items()
    }
    return replace(drawn, stages={name: one for name, one in stages.items() if len(one.train)})


class KnownAnswer:
    """The likeliest type by the Gaussians that the cells of `Synthetic` were drawn from: none does better."""

    title, joint, costly = "known answer (best possible)", True, False

    def __init__(self, drawn: Drawn) -> None:
        self.labels = tuple(f"T{number}" for number in range(len(truth()[0])))

    def learn(self, stage: str) -> None:
        """Do nothing."""

    def answer(self) -> Answer:
        """Return itself."""
        return self

    def logits(self, cells: LabelledCells, missing: Sequence[str]) -> np.ndarray:
        """Return log densities."""
        means, shifts, covariance = truth()
        found = np.zeros((len(cells), len(means)))
        for stage in cells.stage_names:
            rows = [row for row, name in enumerate(cells.stages) if name == stage]
            apart = cells.expression[rows][:, None, :] - (means + shifts[stage])[None]
            found[rows] = -0.5 * np.einsum("ctd,de,cte->ct", apart, np.linalg.inv(covariance), apart)
        return found

    def kept(self) -> Kept:
        """Return nothing."""
        return Kept(0, 0)

    @classmethod
    def asked(cls) -> int:
        """Return the version."""
        return 1


RIVALS: dict[str, type[Rival]] = {
    "sums": CanalSums,
    "slda": CanalSlda,
    "ranpac": Projections,
    "logistic": JointLogistic,
    "newest": NewestLogistic,
    "knn": NearestCells,
    "known": KnownAnswer,
}
