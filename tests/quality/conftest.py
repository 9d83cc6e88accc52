"""The earlier stage that the gate's tests compare with."""

import pytest

from canal.quality.verdict import EarlierStage
from tests.support.cases import NO_SPLIT, TYPES, StageCase
from tests.support.cells import make_adata


@pytest.fixture(scope="session")
def earlier(tmp_path_factory):
    """Return the stage ``first``: other cells of the same types, judged."""
    verdict = StageCase(adata=make_adata(TYPES, seed=2)).judged(tmp_path_factory.mktemp("first"))
    return {"first": EarlierStage(NO_SPLIT, verdict.profile)}
