"""A version of the published method has no sums for a fast prediction, and says so."""

import pytest
from typer.testing import CliRunner

from canal.cli import app
from canal.core.errors import ModelError
from tests.support.cells import make_adata, write_adata

pytestmark = pytest.mark.pipeline


@pytest.mark.parametrize("target", ["out.csv", "out.h5ad"])
def test_a_fast_answer_is_refused_and_nothing_is_written(learned, tmp_path, target):
    line, _ = learned
    source = write_adata(make_adata({"B": 20, "T": 20}, seed=5), tmp_path / "in.h5ad")
    asked = ["annotate", str(source), "-o", str(tmp_path / target), "--root", str(line.root)]
    done = CliRunner().invoke(app, [*asked, "--effort", "fast"])
    assert isinstance(done.exception, ModelError)
    said = str(done.exception)
    assert "learned by the published method and has no sums for --effort fast" in said
    assert "leave --effort out, or add sums with `canal sums backfill`" in said
    assert [path.name for path in tmp_path.iterdir()] == ["in.h5ad"]


def test_another_effort_is_named(learned):
    line, _ = learned
    done = CliRunner().invoke(
        app, ["annotate", "in.h5ad", "-o", "out.csv", "--effort", "slow", "--root", str(line.root)]
    )
    assert done.exit_code == 2
    assert "'slow' is not one of 'full'" in " ".join(done.output.split())
