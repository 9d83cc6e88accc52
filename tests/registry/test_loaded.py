"""A version that MLflow has loaded from its own folder still holds; what is slipped in beside is found."""

import py_compile
from pathlib import Path

import pytest

from canal.registry.transfer.exchange import export_bundle
from tests.registry.test_moved import GONE, copied
from tests.support.registered import audited


@pytest.fixture
def loaded(registered, tmp_path):
    """Return a store, and the folder of its champion as MLflow and Python leave it when they load it."""
    from mlflow.artifacts import download_artifacts

    store = copied(registered, tmp_path / "project")
    _ = store.client
    folder = Path(download_artifacts("models:/canal-annotator@champion", tracking_uri=store.uri))
    assert (folder / "registered_model_meta").is_file()
    for source in (folder / "flavour.py", *folder.glob("code/canal_*/**/*.py")):
        assert py_compile.compile(str(source))
    return store, folder


def findings(store):
    return [str(one) for one in audited(store).findings if str(one) != GONE]


@pytest.mark.chaos
def test_loading_breaks_neither_audit_nor_export(loaded, tmp_path):
    store, _ = loaded
    assert findings(store) == []
    export_bundle(store, "champion", tmp_path / "champion.zip")


@pytest.mark.parametrize("text", ["model_name: other\nmodel_version: '3'\n", "x: 1\n", "[", "a" * 3000])
def test_a_note_of_something_else_is_found(loaded, text):
    store, folder = loaded
    (folder / "registered_model_meta").write_text(text)
    (found,) = findings(store)
    assert "registered_model_meta lies there" in found


@pytest.mark.parametrize("damage", ["other code", "no source", "no code", "made up", "link"])
def test_compiled_code_that_is_not_that_of_the_version_is_found(loaded, tmp_path, damage):
    store, folder = loaded
    compiled = next(folder.glob("code/canal_*/core/__pycache__/errors.*.pyc"))
    other = tmp_path / "other.py"
    other.write_text("print('something else')\n")
    if damage == "other code":
        py_compile.compile(str(other), cfile=str(compiled))
    elif damage == "no source":
        compiled.rename(compiled.with_name(compiled.name.replace("errors", "secret")))
    elif damage == "no code":
        compiled.write_bytes(compiled.read_bytes()[:30])
    elif damage == "made up":
        compiled.write_bytes(compiled.read_bytes()[:16] + b"[\xff\xff\xff\x7f" * 3)
    else:
        compiled.rename(tmp_path / "moved.pyc")
        compiled.symlink_to(tmp_path / "moved.pyc")
    (found,) = findings(store)
    assert "__pycache__" in found
    assert "neither key.json nor record.json knows it" in found
