"""The pyfunc of a version, logged as code: MLflow runs this file to load ``model/`` (safetensors + JSON).

It needs canal's model room and nothing of its training code; a copy of that room travels with every version.
"""

from typing import Any

import mlflow
import pandas as pd  # MLflow resolves the annotations of `predict`
from mlflow.pyfunc.model import PythonModel


class AnnotatorModel(PythonModel):
    """Labels cells given as a table of expression values, one column a gene symbol of the panel.

    Values are log2(1 + counts per 10,000 of the whole transcriptome); a gene without a column counts as zero.
    """

    def load_context(self, context: Any) -> None:
        """Read the annotator from the version's ``model/`` folder."""
        from pathlib import Path

        from canal.model.annotator import Annotator

        self.annotator = Annotator.load(Path(context.artifacts["model"]))

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> pd.DataFrame:
        """Return cell_type, best_type, confidence and novelty for each row, in order.

        Raises
        ------
        CanalError
            If no column is a gene of the panel, or a value is negative or not finite.
        """
        import numpy as np

        from canal.errors import DataError

        genes = list(self.annotator.genes)
        shared = [gene for gene in genes if gene in model_input.columns]
        if not shared:
            found = ", ".join(map(str, model_input.columns[:5])) or "none"
            raise DataError(
                f"no column is one of the {len(genes)} panel genes ({', '.join(genes[:5])}, ...); "
                f"found {found}"
            )
        table = (
            model_input.reindex(columns=genes).astype("float32").fillna(0.0)
            if len(shared) < len(genes)
            else model_input[genes].astype("float32")
        )
        expression = np.ascontiguousarray(table.to_numpy())
        if not np.isfinite(expression).all() or (expression < 0).any():
            raise DataError("expression must be log2(1 + counts per 10,000): finite and not negative")
        answer = self.annotator.predict(expression)
        labels = [
            "Unassigned" if new else label for label, new in zip(answer.labels, answer.is_novel, strict=True)
        ]
        return pd.DataFrame(
            {
                "cell_type": labels,
                "best_type": list(answer.labels),
                "confidence": answer.confidence.astype("float64"),
                "novelty": answer.novelty.astype("float64"),
            }
        )


mlflow.models.set_model(AnnotatorModel())
