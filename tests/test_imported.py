"""An import is used only if it is the one that params.yaml names, whole, and fits preset and panel."""

import shutil

import pytest

from canal.app.beginning import adopt_backbone, import_folder, imported_vocabulary
from canal.app.project import Project
from canal.core.digests import file_digest, tree_digests
from canal.core.errors import ModelError, RegistryError
from canal.core.files import read_json
from canal.data.panel import ChosenPanel, write_panel
from canal.registry.manifest.version_folder import check_files, write_key
from tests.support.cells import gene_names
from tests.support.published import project_with_import, write_params


@pytest.fixture
def project(tmp_path):
    return project_with_import(tmp_path)


def wanted(project):
    return project.config.backbone.imported


def choose(project, genes):
    panel = ChosenPanel(tuple(genes), dict.fromkeys(genes, "variance"))
    write_panel(project.layout.panel, panel, project.config.panel, "0" * 64)


def test_the_vocabulary_is_the_imports_or_nobodys(project, tmp_path):
    assert imported_vocabulary(project) == frozenset(gene_names(20))
    write_params(tmp_path / "other")
    assert imported_vocabulary(Project.open(tmp_path / "other")) is None


def test_an_adopted_import_is_the_same_bytes_with_its_key_beside_them(project, tmp_path):
    choose(project, gene_names(20)[4:14])
    target = tmp_path / "model"
    target.mkdir()
    adopt_backbone(project, wanted(project), target)
    folder = project.layout.imported("x")
    check_files(target / "model", read_json(folder / "key.json")["files"])
    assert file_digest(target / "imported.json") == wanted(project).key
    assert read_json(target / "history.json")["epochs"] == []
    assert set(tree_digests(target)) == {
        "history.json",
        "imported.json",
        "model/config.json",
        "model/vocabulary.json",
        "model/weights.safetensors",
    }


def test_a_panel_chosen_without_the_import_is_refused(project, tmp_path):
    choose(project, [*gene_names(20)[:8], "UNHEARD", "UNSEEN"])
    with pytest.raises(ModelError, match=r"2 of 10 panel genes .* 20 of the imported.*'UNHEARD', 'UNSEEN'"):
        adopt_backbone(project, wanted(project), tmp_path)


def test_another_preset_is_refused(project, tmp_path):
    choose(project, gene_names(20)[:8])
    other = project_with_import(tmp_path / "other", preset="small")
    choose(other, gene_names(20)[:8])
    with pytest.raises(ModelError, match=r"set backbone\.preset: tiny"):
        adopt_backbone(other, wanted(other), tmp_path)


def test_a_lost_import_without_a_registry_says_what_to_do(project):
    shutil.rmtree(project.layout.root / "backbones")
    with pytest.raises(
        RegistryError, match=r"does not exist, .*run `canal backbone import` with the same files"
    ):
        import_folder(project, wanted(project))


def test_another_import_of_the_same_place_is_refused(project):
    write_key(project.layout.imported("x"), {"stage": "imported"}, parent=None)
    with pytest.raises(RegistryError, match=r"holds another import \(key .* than params\.yaml names"):
        imported_vocabulary(project)


def test_a_damaged_import_is_refused(project):
    path = project.layout.imported("x") / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(RegistryError, match=r"1 of 3 files"):
        imported_vocabulary(project)
