"""`canal backbone import` from the checkpoint to the lineage that begins with it."""

import difflib
import importlib.util
import json
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple
from unittest import mock

import numpy as np
import pytest
from typer.testing import CliRunner

from canal.app.beginning import PublishedFiles, import_published, read_gene_vectors
from canal.app.declaring import relearn
from canal.app.project import Project
from canal.cli import app
from canal.core.digests import file_digest, tree_digests
from canal.core.errors import ConfigError, DataError, ModelError, RegistryError
from canal.core.files import new_folder, read_json
from canal.data.prepare import PrepareSettings, prepare
from canal.data.split import split_stage, write_split
from canal.quality.verdict import Profile, Verdict
from canal.registry.manifest.stage_request import request_digest, stage_request
from canal.registry.manifest.version_folder import write_key
from canal.registry.store.store import Store
from canal.registry.store.tracking import stage_run
from canal.registry.versions.publish import Publication, publish, sync
from tests.support.cells import make_adata, source_of, write_adata
from tests.support.models import TINY, make_backbone
from tests.support.outputs import complaints
from tests.support.published import (
    VOCABULARY,
    published_state,
    read_here,
    save_checkpoint,
    write_params,
    write_published,
)

PIPELINES = Path(__file__).resolve().parents[1] / "pipelines"


def pipeline(name):
    spec = importlib.util.spec_from_file_location(name, PIPELINES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def canal(*arguments):
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, f"{done.output}{done.exception!r}"
    return done.output


def prepared_project(root):
    """Make a project whose first stage is prepared, divided and judged, as far as pre-training looks."""
    raw = write_adata(make_adata({"B": 30, "T": 30}), root / "raw" / "first.h5ad")
    source = source_of(raw)
    sources = {name: source.model_dump(exclude_unset=True) for name in ("first", "second")}
    write_params(root, sources=sources, panel={"rule": "variance"})
    project = Project.open(root)
    prepare(raw, "first", source, PrepareSettings(1, 64), project.layout.prepared("first"))
    split = split_stage(project.prepared("first").obs, project.config.split, 0, False, {})
    write_split(project.layout.split("first"), "first", split, project.config.split, {})
    sha, profile = "1" * 64, Profile("3" * 64, 9, 2.0, ((9, 0, 0, 0, 0, 0),))
    verdict = Verdict("first", "first", sha, project.prepared_digest("first"), sha, None, {}, (), profile)
    verdict.write(project.layout.verdict("first"))
    return project


def register_a_trained_backbone(project):
    """Have a version that was pretrained as params.yaml asks for now."""
    request = stage_request(project.config, "backbone")
    facts = {"stage": "backbone", "branch": 1, "request": request}
    with new_folder(project.layout.root / "trained") as folder:
        write_key(folder, facts | {"request_digest": request_digest(project.config, "backbone")}, None)
    run_id = stage_run(project.store, project.config, "backbone")
    publish(
        project.store, Publication("canal-backbone", project.layout.root / "trained", run_id, None, {}, False)
    )


def versions(project):
    return [(v.stage, v.ready, v.key, v.parent) for v in project.store.versions("canal-backbone")]


class Imports(NamedTuple):
    """A project in git with a backbone of its own, and published weights that the command brings in."""

    root: Path
    project: Project
    call: tuple[object, ...]
    before: str

    @property
    def folder(self) -> Path:
        """Where the import lies."""
        return self.root / "backbones" / "panglao-pretrain"

    @property
    def digest(self) -> str:
        """The SHA-256 of the import's key."""
        return file_digest(self.folder / "key.json")

    def git(self, *arguments: str) -> str:
        """Run git in the project."""
        command = ["git", "-C", str(self.root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def imports(tmp_path, monkeypatch):
    root = tmp_path / "project"
    project = prepared_project(root)
    register_a_trained_backbone(project)
    with mock.patch("torch.serialization.location_tag", return_value="cuda:0"):  # saved on a GPU
        checkpoint, genes = write_published(tmp_path)
    vectors = published_state(TINY, len(VOCABULARY))["pos_emb.emb.weight"][:-1].numpy()
    np.save(tmp_path / "gene2vec.npy", vectors)
    monkeypatch.chdir(root)
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "test")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "test@localhost")
    call = ("backbone", "import", checkpoint, "--genes", genes, "--gene2vec", tmp_path / "gene2vec.npy")
    found = Imports(root, project, call, (root / "params.yaml").read_text())
    found.git("init", "--quiet")
    found.git("add", "params.yaml")
    found.git("commit", "--quiet", "-m", "start")
    return found


def test_published_weights_become_a_folder_a_version_and_three_lines_of_params(imports, tmp_path):
    said = canal(*imports.call, "--dry-run")
    assert "fits: 60 genes, 2 blocks of width 16; it would be registered" in said
    assert not imports.folder.exists()
    assert (imports.root / "params.yaml").read_text() == imports.before
    said = canal(*imports.call, "--commit")
    assert "60 genes, 2 blocks of width 16; it is canal-backbone 2" in said
    assert "canal stage relearn backbone" in said  # this branch was learned otherwise
    key = read_json(imports.folder / "key.json")
    assert key["parent"] is None
    assert key["request"] == {
        "stage": "imported",
        "checkpoint": file_digest(imports.call[2]),
        "genes": file_digest(imports.call[4]),
        "gene_vectors": file_digest(tmp_path / "gene2vec.npy"),
    }
    assert set(key["files"]) == {"weights.safetensors", "config.json", "vocabulary.json"}
    lines = difflib.ndiff(
        imports.before.splitlines(), (imports.root / "params.yaml").read_text().splitlines()
    )
    added = ["+   imported:", "+     path: backbones/panglao-pretrain", f"+     key: {imports.digest}"]
    assert [line for line in lines if line[0] in "+-"] == added
    assert imports.git("log", "--format=%s", "-1") == "Import backbone panglao-pretrain\n"
    assert versions(imports.project)[1:] == [("imported", True, imports.digest, "")]


@pytest.mark.chaos
def test_the_same_files_a_second_time_change_nothing(imports, monkeypatch):
    canal(*imports.call, "--commit")
    read_here(monkeypatch)
    tree, text = tree_digests(imports.root / "backbones"), (imports.root / "params.yaml").read_text()
    printed = canal(*imports.call, "--json")
    again = json.loads(printed[printed.index("{") :])
    assert complaints("backbone import", again) == []
    assert (tree_digests(imports.root / "backbones"), (imports.root / "params.yaml").read_text()) == (
        tree,
        text,
    )
    assert len(versions(imports.project)) == 2


@pytest.fixture
def adopted(imports):
    """A project whose new branch has adopted the import, which lay in the registry alone."""
    canal(*imports.call, "--commit")
    relearn("backbone", commit=False, root=imports.root)
    pipeline("panel").main()
    shutil.rmtree(imports.root / "backbones")
    project = Project.open(imports.root)
    logged = SimpleNamespace(params=lambda values: None, dataset=lambda *a: None, artifacts=lambda *a: None)
    pipeline("pretrain").learn(project, logged)
    return project


@pytest.mark.chaos
def test_on_a_new_branch_the_import_is_adopted_and_the_panel_chosen_from_its_genes(imports, adopted):
    assert set(adopted.panel) <= set(VOCABULARY)
    key = read_json(imports.root / "models" / "backbone" / "key.json")
    assert (key["parent"], key["branch"]) == (imports.digest, 2)
    assert key["request"]["backbone"] == {"preset": "tiny", "imported": imports.digest}
    assert set(tree_digests(imports.folder)) == {"key.json", *read_json(imports.folder / "key.json")["files"]}


def test_sync_links_backbone_and_import_also_in_a_registry_that_knows_neither(imports, adopted, tmp_path):
    def synced(store):
        found = sync(store, adopted.layout, adopted.config, lambda stage: tmp_path / "no figures")
        return [(version.stage, version.parent, version.key) for version in found.made]

    own, digest = file_digest(imports.root / "models" / "backbone" / "key.json"), imports.digest
    assert synced(adopted.store) == [("backbone", "2", own)]
    assert adopted.learned("backbone").number == 3
    assert synced(adopted.store) == []
    shutil.rmtree(imports.root / "backbones")
    empty = Store(adopted.layout, adopted.config.registry.model_copy(update={"backbone": "rebuilt"}))
    assert synced(empty) == [("imported", "", digest), ("backbone", "1", own)]


@pytest.fixture
def wish(tmp_path, monkeypatch):
    """Return a function that imports into a fresh project, read in this process, expecting to be refused."""
    read_here(monkeypatch)

    def refused(error, match, files=None, **params):
        root = tmp_path / "project"
        if not root.exists():
            write_params(root, **params)
        before = tree_digests(root)
        with pytest.raises(error, match=match):
            import_published(Project.open(root), files or PublishedFiles(*write_published(tmp_path)))
        assert tree_digests(root) == before

    return refused


def test_another_preset_is_refused_with_the_one_to_set(wish):
    wish(ModelError, r"set backbone\.preset: tiny", backbone={"preset": "small"})


def test_settings_of_a_pretraining_that_will_not_be_are_refused(wish):
    wish(ConfigError, r"backbone\.imported: .* remove extra_stages", backbone={"extra_stages": ["second"]})


def test_genes_that_are_not_the_checkpoints_are_refused(wish, tmp_path):
    checkpoint, _ = write_published(tmp_path)
    genes = tmp_path / "other.csv"
    genes.write_text("\n".join(["gene", *VOCABULARY]))
    wish(ModelError, r"60 genes and the closing one, but the list has 61", PublishedFiles(checkpoint, genes))
    genes.write_text("\n".join([*VOCABULARY[:-1], VOCABULARY[0]]))
    wish(DataError, r"1 gene symbol\(s\) occur more than once", PublishedFiles(checkpoint, genes))


def test_vectors_by_symbol_show_that_genes_are_in_another_order(wish, tmp_path):
    checkpoint, genes = write_published(tmp_path)
    rows = published_state(TINY, len(VOCABULARY))["pos_emb.emb.weight"].numpy()
    table = zip(reversed(VOCABULARY), rows[-2::-1], strict=True)
    (tmp_path / "v.csv").write_text(
        "".join(f"{name},{','.join(map(repr, map(float, row)))}\n" for name, row in table)
    )
    genes.write_text("\n".join([*VOCABULARY[1:], VOCABULARY[0]]))
    files = PublishedFiles(checkpoint, genes, tmp_path / "v.csv")
    wish(ModelError, r"vectors of 60 of 60 genes are not those of the checkpoint", files)


def test_another_checkpoint_of_the_same_name_does_not_replace_an_import(wish, tmp_path):
    project = tmp_path / "project"
    write_params(project)
    folder = project / "backbones" / "panglao-pretrain"
    make_backbone().save(folder)
    write_key(folder, {"stage": "imported"}, parent=None)
    wish(RegistryError, r"panglao-pretrain holds another import .* rename the checkpoint")


def test_gene_vectors_are_numbers_of_every_gene(tmp_path):
    backbone = make_backbone(n_genes=12)
    np.save(tmp_path / "pickled.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "text.npy", np.array(["a"]))
    (tmp_path / "v.tsv").write_text("CD3D\t" + "\t".join(["0.5"] * 16) + "\n")
    for name, message in (
        ("pickled.npy", "no matrix of numbers"),
        ("text.npy", "holds no numbers"),
        ("none.npy", "no matrix of numbers"),
        ("v.tsv", "lacks 11 of the 12 genes"),
        ("none.txt", "expected an existing .csv or .tsv"),
    ):
        with pytest.raises(DataError, match=message):
            read_gene_vectors(tmp_path / name, backbone)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("panglao_pretrain.pth", "panglao_pretrain"),
        ("My Weights (v2).pth", "my-weights-v2"),
        ("...pth", "published"),
        ("../up/é.ckpt", "published"),
    ],
)
def test_the_folder_bears_the_checkpoints_name_made_safe(file, name):
    assert PublishedFiles(Path(file), Path("g")).name == name


def test_half_precision_weights_are_imported_as_float32(tmp_path, monkeypatch):
    from canal.app.beginning import read_backbone

    read_here(monkeypatch)
    _, genes = write_published(tmp_path)
    state = {n: v.half() if v.is_floating_point() else v for n, v in published_state(TINY, 60).items()}
    files = PublishedFiles(save_checkpoint(tmp_path / "half.pth", state), genes)
    assert read_backbone(files, "tiny").network.norm.weight.dtype.itemsize == 4
