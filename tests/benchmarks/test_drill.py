"""A consent is withdrawn, from the labelled file to the erased version: `make drill` in small."""

import drill
import pytest

from tests.pipeline.conftest import copied
from tests.support.methods import learned_by
from tests.support.warm import warmly

pytestmark = [pytest.mark.pipeline, pytest.mark.chaos]


def test_all_that_is_said_of_cells_that_left_is_true(tmp_path_factory, tmp_path, capsys):
    line = copied(learned_by("combined", tmp_path_factory), tmp_path / "project")
    query = tmp_path / "query.h5ad"
    query.write_bytes((line.root / "raw" / "query.h5ad").read_bytes())
    run = drill.Drill(line.root, ("canal",), warmly(line.root))
    drill.drill(run, "second", None, 3, query)
    assert drill.report(run) == 0, capsys.readouterr().out
    assert len(run.checks) == 16
