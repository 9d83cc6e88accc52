"""scANVI of scvi-tools on the same cells, with its default settings; see rival.py.

It wants counts, which not every source has: training and test cells are counts per 10,000, rounded. Its
encoder does not read the batch, so cells of a batch that it never saw are named without any more training.
"""

import warnings
from collections.abc import Sequence

import numpy as np
import rival
import scvi
from anndata import AnnData

warnings.simplefilter("ignore")
LABEL, BATCH, UNKNOWN = "cell_type", "stage", "unknown"


def learn(lesson: AnnData) -> rival.Namer:
    """Train scVI on the cells, then scANVI from it on their types."""
    scvi.settings.seed = 0
    scvi.model.SCVI.setup_anndata(lesson, batch_key=BATCH)
    first = scvi.model.SCVI(lesson)
    first.train()
    model = scvi.model.SCANVI.from_scvi_model(first, unlabeled_category=UNKNOWN, labels_key=LABEL)
    model.train(n_samples_per_label=100)
    stage = lesson.obs[BATCH].iloc[0]

    def named(cells: AnnData) -> Sequence[str]:
        known = cells[:, lesson.var_names.intersection(cells.var_names)].copy()
        known.obs = known.obs.assign(**{BATCH: stage, LABEL: UNKNOWN})
        scvi.model.SCANVI.prepare_query_anndata(known, model)
        return model.predict(known)

    return named


def of_logs(cells: AnnData) -> AnnData:
    """Return log1p of counts per 10,000 as counts per 10,000, rounded."""
    cells.X = cells.X.expm1().rint().astype(np.float32)
    return cells


if __name__ == "__main__":
    rival.answer(scvi.__version__, learn, of_logs=of_logs, of_counts=rival.as_is)
