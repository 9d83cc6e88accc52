"""A biologist with canal's wheel, no extra and no project labels cells by a file that a colleague sent."""

import json
import shutil

import pandas as pd
import pytest

from tests.pipeline.conftest import copied
from tests.support.methods import learned_by

pytestmark = [pytest.mark.pipeline, pytest.mark.xdist_group("exact")]


@pytest.fixture(scope="module")
def sent(tmp_path_factory):
    """Give a folder with the exported file, cells, and the labels that the project itself gives them."""
    folder = tmp_path_factory.mktemp("sent")
    line = copied(learned_by("exact", tmp_path_factory), folder / "project")
    line.canal("export", "2", "-o", str(folder / "blood.zip"), "--without-cells")
    line.canal(
        "annotate", str(line.root / "raw/query.h5ad"), "-o", str(folder / "wanted.csv"), "--model", "2"
    )
    shutil.copyfile(line.root / "raw" / "query.h5ad", folder / "cells.h5ad")
    return folder


def test_labels_are_those_of_the_project(installed, sent, tmp_path):
    done = installed.run(
        "annotate", sent / "cells.h5ad", "-o", "out.csv", "--model", sent / "blood.zip", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "out.csv"), pd.read_csv(sent / "wanted.csv"))


def test_python_labels_too(installed, sent, tmp_path):
    done = installed.evaluate(
        "import canal, json; from anndata import read_h5ad; "
        f"cells = read_h5ad({str(sent / 'cells.h5ad')!r}); "
        f"table = canal.annotate(cells, model={str(sent / 'blood.zip')!r}); "
        "print(json.dumps(table['canal_cell_type'].astype(str).tolist()))",
        tmp_path,
    )
    wanted = pd.read_csv(sent / "wanted.csv")["canal_cell_type"].tolist()
    assert json.loads(done.stdout.splitlines()[-1]) == wanted, done.stderr


@pytest.mark.parametrize(
    ("words", "extra"),
    [(("-o", "out.parquet"), "parquet"), (("-o", "out.h5ad", "--vote", "louvain"), "groups")],
)
def test_what_needs_an_extra_names_it_and_writes_nothing(installed, sent, tmp_path, words, extra):
    given = ("annotate", sent / "cells.h5ad", "--model", sent / "blood.zip")
    done = installed.run(*given, *words, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert f'pip install "canal-cells[{extra}]"' in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert list(tmp_path.glob("out*")) == []
