"""`canal.annotate`: there when asked for, and nothing heavy before."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import canal
import canal.app.models
from canal.annotation.options import Options
from canal.core.errors import in_python
from tests.support.cells import make_adata, make_document
from tests.support.models import make_annotator


class Known:
    """A version as the registry gives it."""

    model, number, key, record, stage, aliases = "canal-annotator", 3, "k", "r", "first", ("champion",)


@pytest.fixture
def served(tmp_path, monkeypatch):
    from ruamel.yaml import YAML

    YAML().dump(make_document(), tmp_path / "params.yaml")
    monkeypatch.setattr(canal.app.models, "serving_version", lambda project, model: Known())
    monkeypatch.setattr(
        canal.app.models, "load_annotator", lambda project, version, effort="full": make_annotator()
    )
    return tmp_path


def test_importing_canal_imports_nothing_heavy():
    code = (
        "import sys, canal; canal.__version__\n"
        "assert not {'torch', 'mlflow', 'pandas', 'numpy', 'pydantic'} & set(sys.modules)\n"
        "assert callable(canal.annotate)\n"
        "assert not {'torch', 'mlflow', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_version_of_the_project_is_found_without_the_audit():
    code = (
        "import sys, canal.app.annotating\n"
        "rooms = ('canal.registry.audit', 'canal.registry.transfer')\n"
        "loaded = {name for name in sys.modules if name.startswith(rooms)}\n"
        "assert loaded <= {'canal.registry.transfer', 'canal.registry.transfer.bundle'}, loaded\n"
        "assert callable(canal.app.models.shelf.proven_bundle)\n"
        "assert 'canal.registry.audit.chain' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_is_there_and_is_what_the_modules_below_call_it():
    from canal.annotation.options import Options
    from canal.core.errors import CanalError

    assert all(getattr(canal, name) is not None for name in canal.__all__)
    assert (canal.Options, canal.CanalError) == (Options, CanalError)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", "b", "a", "a"], r"each cell's name once in its index, found 2 names again, such as 'a'"),
        (["a", "", None, "b"], r"a name for each cell in its index, found 2 without, such as at '1', '2'"),
    ],
)
def test_a_table_whose_cells_have_no_names_of_their_own_is_refused(served, names, message):
    table = make_adata({"B": 4}, n_genes=20).to_df()
    table.index = pd.Index(names, dtype=object)
    with pytest.raises(canal.CanalError, match=message):
        canal.annotate(table, root=served)


@pytest.mark.parametrize(
    ("command", "python"),
    [
        ("var has no column 'x': name it with --gene-column", "name it with gene_column"),
        ("name the units with --values counts", "name the units with values='counts'"),
        ("give --species mouse --orthologs FILE, a table", "give species='mouse' orthologs=FILE, a table"),
        ("(canal stage add: --map CSV)", "(label_map=CSV)"),
        ("`canal stage add NAME --label X` learns it", "`canal stage add NAME --label X` learns it"),
        ("three -- or four -- cells", "three -- or four -- cells"),
    ],
)
def test_a_refusal_in_python_speaks_of_arguments(command, python):
    assert python in in_python(command)


def test_every_public_function_speaks_of_arguments(served):
    cells = make_adata({"B": 3}, n_genes=120)
    with pytest.raises(canal.CanalError) as refused:
        canal.annotate(cells, root=served, options=Options(vote="nothing"))
    assert "obs has no column 'nothing' (vote); it has 'cell_type', 'batch'; vote='louvain' computes" in str(
        refused.value
    )


def test_what_is_not_there_is_named():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        canal.nonsense  # noqa: B018


def test_an_adata_is_changed_only_when_asked(served):
    adata = make_adata({"B": 10}, n_genes=20)
    before = adata.copy()
    table = canal.annotate(adata, model="champion", root=served)
    assert list(adata.obs) == list(before.obs)
    assert not adata.uns
    assert table.attrs["canal"]["model"]["version"] == 3
    written = canal.annotate(adata, model="champion", root=served, write=True)
    pd.testing.assert_frame_equal(adata.obs[list(written)], written)
    assert "canal" in adata.uns
    np.testing.assert_array_equal(adata.X.toarray(), before.X.toarray())
    pd.testing.assert_frame_equal(adata.var, before.var)
    assert list(adata.obs_names) == list(before.obs_names)


def test_a_layer_can_be_asked(served):
    adata = make_adata({"B": 10}, n_genes=20)
    wanted = canal.annotate(adata, root=served)
    adata.layers["counts"] = adata.X.copy()
    adata.X = adata.X.toarray() - 1
    pd.testing.assert_frame_equal(canal.annotate(adata, root=served, options=Options(layer="counts")), wanted)


def test_a_path_a_table_and_mudata_are_answered(served, tmp_path):
    adata = make_adata({"B": 6, "NK": 5}, n_genes=20)
    wanted = canal.annotate(adata, root=served)
    adata.write_h5ad(tmp_path / "in.h5ad")
    mudata = SimpleNamespace(mod={"prot": None, "rna": adata.copy()})
    for given in (adata.to_df(), mudata, tmp_path / "in.h5ad", str(tmp_path / "in.h5ad")):
        pd.testing.assert_frame_equal(canal.annotate(given, root=served), wanted, rtol=1e-5, atol=1e-6)
    of_file = canal.annotate(tmp_path / "in.h5ad", root=served).attrs["canal"]
    assert of_file["input"]["name"] == "in.h5ad"
    canal.annotate(mudata, root=served, write=True)
    assert "canal_cell_type" in mudata.mod["rna"].obs
    for given, kind in ((adata.to_df(), "DataFrame"), (tmp_path / "in.h5ad", "PosixPath")):
        with pytest.raises(canal.CanalError, match=f"into an AnnData, found .*{kind}"):
            canal.annotate(given, root=served, write=True)


def test_a_record_is_a_dict_that_says_whether_it_holds(served, tmp_path):
    adata = make_adata({"B": 10}, n_genes=20)
    with pytest.raises(canal.CanalError, match="the AnnData: uns holds no annotation record"):
        canal.record(adata)
    table = canal.annotate(adata, root=served, write=True)
    found = canal.record(adata)
    assert {name: found[name] for name in table.attrs["canal"]} == table.attrs["canal"]
    assert (found["genuine"], found["as_written"]) == (True, True)
    assert canal.record(adata[:3].copy())["as_written"] is False
    adata.write_h5ad(tmp_path / "out.h5ad")
    assert canal.record(tmp_path / "out.h5ad") == canal.record(str(tmp_path / "out.h5ad")) == found
    adata.uns["canal"] = adata.uns["canal"].replace('"version":3', '"version":4')
    assert canal.record(adata)["genuine"] is False
    canal.annotate(adata, root=served, write=True, options=Options(key_added="other"))
    assert canal.record(adata, "other")["model"]["version"] == 3
    adata.obs["mine_cell_type"] = "B"
    with pytest.raises(canal.CanalError, match="would replace 'obs mine_cell_type'"):
        canal.annotate(adata, root=served, write=True, options=Options(key_added="mine"))
