"""The pyfunc of a version, logged as code: MLflow runs this file to load ``model/`` (safetensors + JSON).

It needs canal's model room and what reads a request, nothing of its training code; a copy of both travels
with every version.
"""

import threading
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd  # MLflow resolves the annotations of `predict`
from mlflow.pyfunc.model import PythonModel


class AnnotatorModel(PythonModel):
    """Labels cells given as a table, one row a cell, one column a gene symbol of the panel.

    Values are log1p(counts per 10,000 of the whole transcriptome), or raw counts with a column
    ``canal_total_counts``; a gene without a column counts as zero.
    """

    def load_context(self, context: Any) -> None:
        """Read the annotator from the version's ``model/`` folder, onto a GPU where there is one."""
        from canal.model.load import load_model, runs_network

        self.folder, self._device = Path(context.artifacts["model"]), "cpu"
        if runs_network(self.folder):
            from canal.model.compute import find_device

            self._device = find_device("auto")
        self.annotators = {"full": load_model(self.folder).on(self._device)}
        self._turn = threading.Lock()

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> pd.DataFrame:
        """Return the columns of `canal annotate` for each row, in order.

        Parameters
        ----------
        context
            Not used: all was read by `load_context`.
        model_input
            See `canal.annotation.service.read_request`.
        params
            ``probabilities``: whether the probability of every type is given, too. ``effort``: full, or fast,
            where the sums answer and the network is asked only about cells of which they are unsure.

        Raises
        ------
        MlflowException
            With ``INVALID_PARAMETER_VALUE``, which is HTTP 400, if the cells cannot be labelled; it says why.
        """
        from mlflow.exceptions import MlflowException

        from canal.annotation.service import answer
        from canal.core.errors import DataError, ModelError

        probabilities = bool((params or {}).get("probabilities", False))
        try:
            annotator = self._annotator(str((params or {}).get("effort", "full")))
            return answer(annotator, model_input, self._turn, probabilities)
        except (DataError, ModelError) as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error

    def _annotator(self, effort: str) -> Any:
        """Return the annotator of an effort, which is read when it is first asked for."""
        from canal.core.errors import ModelError
        from canal.model.load import load_model

        if effort not in ("full", "fast"):
            raise ModelError(f"effort is full or fast, found {effort[:40]!r}")
        with self._turn:
            if effort not in self.annotators:
                self.annotators[effort] = load_model(self.folder, "fast").on(self._device)
            return self.annotators[effort]


mlflow.models.set_model(AnnotatorModel())
