"""What a service answers: the columns of `canal annotate` for the cells of a request."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from canal.annotation.columns import columns_of, joined
from canal.annotation.request import read_request

if TYPE_CHECKING:
    import pandas as pd

    from canal.model.load import CellAnnotator


def answer(
    annotator: CellAnnotator,
    table: pd.DataFrame,
    turn: AbstractContextManager[object],
    probabilities: bool = False,
) -> pd.DataFrame:
    """Return the columns of `canal annotate` for each row of a table, in order; what is missing is None.

    Parameters
    ----------
    annotator
        Who labels.
    table
        See `canal.annotation.request.read_request`.
    turn
        Held, and let go, for every block of cells, such as a lock that all requests share: a large request
        neither fills the memory nor keeps small ones waiting for all of it.
    probabilities
        Whether the probability of every type is given, too.

    Raises
    ------
    DataError
        As `read_request`.
    """
    request = read_request(table, annotator.genes)
    asked, frames = annotator.without(request.missing), []
    for expression, empty in request.blocks():
        with turn:
            said = asked.predict(expression)
        frames.append(columns_of(said, empty, annotator.labels, probabilities))
    answers = joined(frames, annotator.ontology)
    for name in answers.select_dtypes("category"):
        names = answers[name].astype(object)
        answers[name] = names.where(names.notna(), None)  # in JSON null, where NaN would be no JSON
    return answers
