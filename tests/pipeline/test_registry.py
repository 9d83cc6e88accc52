"""The registry after accidents: half-made versions, damaged files, names that are not there."""

import sys

import pytest

from canal.app.versions import registry_sync
from canal.core.digests import tree_digests
from canal.core.errors import RegistryError
from canal.registry.store.database import Database
from canal.registry.store.store import Store
from canal.registry.versions.history import restore_metrics, restore_model, verified

pytestmark = pytest.mark.pipeline


@pytest.fixture
def project(line):
    return line.project()


def ready(project):
    return [version for version in project.store.versions() if version.ready]


def flip(path):
    """Change one byte in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def test_a_version_without_its_ready_tag_does_not_exist_and_is_made_again(project):
    newest = ready(project)[-1]
    project.store.client.delete_model_version_tag(newest.model, str(newest.number), "status")
    with pytest.raises(RegistryError, match="is incomplete; run `canal registry sync`"):
        project.store.version(str(newest.number))
    synced = registry_sync(project)
    assert [version.stage for version in synced.made] == [newest.stage]
    again = ready(project)[-1]
    assert (again.key, again.aliases) == (newest.key, ("candidate",))
    assert again.number == newest.number + 1


def test_a_damaged_model_folder_is_not_registered(project):
    newest = ready(project)[-1]
    project.store.client.delete_model_version(newest.model, str(newest.number))
    flip(project.layout.model(newest.stage) / "bank" / "bank.h5ad")
    with pytest.raises(RegistryError, match=r"bank\.h5ad"):
        registry_sync(project)
    assert len(ready(project)) == 1


@pytest.mark.parametrize("name", ["model/weights.safetensors", "bank/bank.h5ad", "split/cells.csv"])
def test_a_damaged_artifact_is_named_and_never_restored(project, name, tmp_path):
    newest = ready(project)[-1]
    flip(project.store.artifacts(newest) / name)
    with pytest.raises(RegistryError, match=name):
        verified(project.store, newest)
    with pytest.raises(RegistryError, match=name):
        restore_model(project.store, newest, tmp_path / "restored")
    assert not (tmp_path / "restored").exists()


def test_a_changed_key_or_measure_is_noticed(project, tmp_path):
    newest = ready(project)[-1]
    folder = project.store.artifacts(newest)
    flip(folder / "metrics" / "evaluation.json")
    with pytest.raises(RegistryError, match=r"metrics/evaluation\.json"):
        restore_metrics(project.store, newest, tmp_path / "metrics")
    key = folder / "key.json"
    key.write_text(key.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(RegistryError, match=r"key\.json has sha256"):
        verified(project.store, newest)


def test_an_unknown_version_is_answered_with_those_there_are(project):
    with pytest.raises(RegistryError, match=r"no version '7'.*1 \(first\), 2 \(second, candidate\)"):
        project.store.version("7")


def test_two_stores_see_the_same_versions(project):
    other = Store(project.layout, project.config.registry)
    assert other.versions() == project.store.versions()


def test_the_database_read_directly_says_what_mlflow_says(project, monkeypatch):
    store = project.store
    for model in (store.names.model, store.names.backbone):
        read = store.versions(model)
        folders = [store.artifacts(version) for version in read]
        with monkeypatch.context() as without:
            without.setattr(Database, "known", False)
            assert store.versions(model) == read
            brought = [store.artifacts(version) for version in read]
            assert [tree_digests(one) for one in brought] == [tree_digests(one) for one in folders]
        assert read


def test_listing_versions_imports_no_mlflow(line):
    code = (
        "import sys\nfrom canal.app.project import Project\nfrom canal.app.versions import version_rows\n"
        "print(len(version_rows(Project.open())), 'mlflow' in sys.modules)"
    )
    assert line.run(sys.executable, "-c", code).strip() == "2 False"
