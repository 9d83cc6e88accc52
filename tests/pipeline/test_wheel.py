"""A biologist with canal's wheel, no extra and no project labels cells by a file that a colleague sent."""

import json
import shutil

import pandas as pd
import pytest
from anndata import read_h5ad

from tests.pipeline.conftest import copied
from tests.support.methods import learned_by
from tests.support.warm import REPOSITORY

pytestmark = [pytest.mark.pipeline, pytest.mark.xdist_group("exact")]

EXAMPLES = REPOSITORY / "examples"


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


def test_a_model_on_the_shelf_labels_by_its_name(installed, sent, tmp_path):
    env = {"CANAL_MODELS": str(tmp_path / "shelf")}

    def run(*words):
        done = installed.run(*words, cwd=tmp_path, env=env)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "it holds no cell and no cell id" in run("models", "add", sent / "blood.zip")
    assert [one["name"] for one in json.loads(run("models", "list", "--json"))] == ["blood"]
    assert run("models", "show", "blood") == run("models", "show", "blood")
    run("annotate", sent / "cells.h5ad", "-o", "out.csv", "--model", "blood")
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "out.csv"), pd.read_csv(sent / "wanted.csv"))
    run("models", "remove", "blood")
    assert json.loads(run("models", "list", "--json")) == []


def test_labels_beside_each_other_with_an_embedding_are_written_without_torch(installed, sent, tmp_path):
    given = (
        "annotate",
        sent / "cells.h5ad",
        "--model",
        sent / "blood.zip",
        "--key-added",
        "atlas",
        "--latent",
    )
    done = installed.run(*given, "-o", "out.h5ad", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    labelled = read_h5ad(tmp_path / "out.h5ad")
    assert (
        labelled.obs["atlas_cell_type"].tolist()
        == pd.read_csv(sent / "wanted.csv")["canal_cell_type"].tolist()
    )
    assert labelled.obsm["X_atlas"].shape[0] == labelled.n_obs
    assert {"atlas", "atlas_cell_type_colors"} <= set(labelled.uns)


def test_what_carries_each_type_is_told(installed, sent, tmp_path):
    done = installed.run("markers", sent / "blood.zip", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["cell_types"]
    assert found
    assert all(one["genes"] and one["side"] == "sums" for one in found)


def test_a_table_in_text_is_labelled_by_limits_of_ones_own(installed, sent, tmp_path):
    cells = read_h5ad(sent / "cells.h5ad")
    values = cells.X.toarray() if hasattr(cells.X, "toarray") else cells.X
    pd.DataFrame(values, cells.obs_names, cells.var_names).T.to_csv(tmp_path / "genes.csv.gz")
    given = ("annotate", "genes.csv.gz", "--model", sent / "blood.zip", "-o", "out.h5ad")
    done = installed.run(*given, "--min-confidence", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    labelled, wanted = read_h5ad(tmp_path / "out.h5ad").obs, pd.read_csv(sent / "wanted.csv")
    assert labelled["canal_best_type"].tolist() == wanted["canal_best_type"].tolist()
    assert set(labelled.loc[labelled["canal_confidence"] < 1, "canal_cell_type"]) == {"Unassigned"}


@pytest.mark.chaos
def test_every_figure_is_drawn_and_types_and_novel_cells_are_told_without_torch(drawing, sent, tmp_path):
    code = (
        f"import canal; from anndata import read_h5ad; cells = read_h5ad({str(sent / 'cells.h5ad')!r}); "
        "options = canal.Options(latent=True, vote='louvain'); "
        f"canal.annotate(cells, {str(sent / 'blood.zip')!r}, write=True, options=options); "
        "cells.obsm['X_umap'] = canal.pl.layout(cells); "
        "print(canal.__file__, cells.obsm['X_umap'].shape); "
        "canal.pl.umap(cells, save='umap.png'); "
        "canal.pl.umap(cells, ['cell_type', 'novelty'], save='two.svg'); "
        "canal.pl.dotplot(cells, 'cell_type', save='dotplot.png'); "
        "cells.write_h5ad('labelled.h5ad')"
    )
    done = drawing.evaluate(code, tmp_path)
    assert done.stdout.strip() == f"{drawing.packages / 'canal' / '__init__.py'} (30, 2)", done.stderr
    for name in ("umap.png", "dotplot.png"):
        assert (tmp_path / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert b"<svg" in (tmp_path / "two.svg").read_bytes()
    words = ("novel", "labelled.h5ad", "--model", sent / "blood.zip", "--min-cells", "1", "--json")
    done = drawing.run(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    n_novel = int(read_h5ad(tmp_path / "labelled.h5ad").obs["canal_is_novel"].sum())
    assert json.loads(done.stdout)["n_novel"] == n_novel > 0
    done = drawing.run("explain", "labelled.h5ad", "--model", sent / "blood.zip", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert all(one["genes"] for one in json.loads(done.stdout))


def test_mouse_cells_are_labelled_by_the_table_that_the_wheel_holds(installed, sent, tmp_path):
    cells = read_h5ad(sent / "cells.h5ad")
    real = [name for name in cells.var_names if not name.startswith("GENE")]
    cells.var_names = [name.capitalize() if name in real else name for name in cells.var_names]
    cells.write_h5ad(tmp_path / "mice.h5ad")
    given = ("annotate", "mice.h5ad", "--model", sent / "blood.zip", "-o", "out.h5ad", "--species", "mouse")
    done = installed.run(*given, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    labelled, wanted = read_h5ad(tmp_path / "out.h5ad"), pd.read_csv(sent / "wanted.csv")
    assert labelled.obs["canal_cell_type"].tolist() == wanted["canal_cell_type"].tolist()
    renamed = json.loads(labelled.uns["canal"])["genes"]["renamed"]
    assert renamed["orthologs"] >= 3
    assert renamed["mouse_table"]["name"] == "mouse_orthologs.tsv.gz"


@pytest.mark.chaos
def test_the_examples_run(drawing, sent, tmp_path):
    """One as the lab that got the file; the other hands a version over, from the project's own folder."""
    words = ("--model", sent / "blood.zip", "--own-labels", "cell_type", "--out", "figures")
    done = drawing.script(EXAMPLES / "label_and_plot.py", sent / "cells.h5ad", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {"labelled.h5ad", "umap.png", "dotplot.png"} == {
        one.name for one in (tmp_path / "figures").iterdir()
    }
    handed = ("2", "--project", sent / "project", "--cells", sent / "cells.h5ad", "--elsewhere", "lab")
    done = drawing.script(EXAMPLES / "hand_over.py", *handed, "--without-cells", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = read_h5ad(tmp_path / "lab" / "labelled.h5ad").obs["canal_cell_type"].tolist()
    assert found == read_h5ad(tmp_path / "figures" / "labelled.h5ad").obs["canal_cell_type"].tolist()


def test_figures_name_the_extra_that_draws_them(installed, sent, tmp_path):
    code = (
        "import canal; from anndata import read_h5ad; "
        f"cells = read_h5ad({str(sent / 'cells.h5ad')!r}); "
        f"canal.annotate(cells, model={str(sent / 'blood.zip')!r}, write=True); "
        "cells.obsm['X_umap'] = cells.X[:, :2]; canal.pl.umap(cells)"
    )
    assert 'pip install "canal-cells[report]"' in installed.evaluate(code, tmp_path).stderr.splitlines()[-1]


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
