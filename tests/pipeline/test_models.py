"""Cells labelled with no project around: by a bundle's file or folder, by the shelf, by MLflow's address."""

import hashlib
import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
from anndata import read_h5ad, read_zarr
from typer.testing import CliRunner

import canal
from canal.app import models, shelf
from canal.cli import app
from canal.core.digests import file_digest
from canal.core.errors import AuditError, CanalError, RegistryError
from canal.registry.transfer.bundle import holds_cells
from canal.registry.transfer.exchange import import_bundle
from tests.support.bundle_files import members_naming, named_cells
from tests.support.labelled import call_novel

pytestmark = [pytest.mark.pipeline, pytest.mark.xdist_group("models")]


@pytest.fixture(scope="module")
def bundles(learned, tmp_path_factory):
    """Give the second version's bundle, one without cells, and the cells that both label."""
    line, _ = learned
    folder = tmp_path_factory.mktemp("bundles")
    line.canal("export", "2", "-o", str(folder / "whole.zip"))
    line.canal("export", "2", "-o", str(folder / "bare.zip"), "--without-cells")
    shutil.copyfile(line.root / "raw" / "third.h5ad", folder / "cells.h5ad")
    return folder


@pytest.fixture
def here(bundles, tmp_path, monkeypatch):
    """Be in an empty folder, with an empty shelf."""
    monkeypatch.setenv("CANAL_MODELS", str(tmp_path / "shelf"))
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    return tmp_path / "empty"


@pytest.fixture(scope="module")
def wanted(learned, bundles):
    """Give the labels in the project itself."""
    line, _ = learned
    line.canal("annotate", str(bundles / "cells.h5ad"), "-o", str(bundles / "in-project.csv"), "--model", "2")
    return pd.read_csv(bundles / "in-project.csv")


def run(*arguments, code=0):
    done = CliRunner().invoke(app, list(map(str, arguments)))
    if code:
        assert isinstance(done.exception, CanalError), (done.output, done.exception)
        return str(done.exception)
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


def labels(model, cells, here):
    target = here / "labels.csv"
    run("annotate", cells, "-o", target, "--model", model, "--overwrite")
    return pd.read_csv(target)


@pytest.mark.parametrize("name", ["whole", "bare"])
def test_a_file_labels_as_the_project_does(bundles, wanted, here, name):
    pd.testing.assert_frame_equal(labels(bundles / f"{name}.zip", bundles / "cells.h5ad", here), wanted)
    with zipfile.ZipFile(bundles / f"{name}.zip") as archive:
        archive.extractall(here / name)
    pd.testing.assert_frame_equal(labels(here / name, bundles / "cells.h5ad", here), wanted)


def test_python_labels_by_a_file_and_the_record_names_it(bundles, wanted, here, learned):
    adata = read_h5ad(bundles / "cells.h5ad")
    table = canal.annotate(adata, model=bundles / "whole.zip")
    assert table["canal_cell_type"].astype(str).tolist() == wanted["canal_cell_type"].tolist()
    model = table.attrs["canal"]["model"]
    assert model["bundle"] == file_digest(bundles / "whole.zip")
    version = learned[0].project().store.version("2")
    assert (model["model"], model["version"], model["key"]) == (version.model, 2, version.key)


def test_without_cells_is_without_cells(bundles, learned, here):
    line, _ = learned
    cells = named_cells(*(line.root / "splits" / f"{stage}.csv" for stage in ("first", "second")))
    assert members_naming(bundles / "bare.zip", cells) == {}
    assert set().union(*members_naming(bundles / "whole.zip", cells).values()) == cells
    with zipfile.ZipFile(bundles / "bare.zip") as bare:
        assert not [name for name in bare.namelist() if name.endswith((".h5ad", "cells.csv"))]
    told = run("models", "show", bundles / "whole.zip", "--json")
    holds = json.loads(told)["holds"]
    assert min(holds.values()) > 0
    assert json.loads(run("models", "show", bundles / "bare.zip", "--json"))["holds"] == dict.fromkeys(
        holds, 0
    )


def test_nothing_is_learned_on_a_bundle_without_cells(bundles, line):
    before = (line.root / "ledger.jsonl").read_bytes()
    with pytest.raises(AuditError, match="nothing can be learned on it"):
        import_bundle(line.project().store, bundles / "bare.zip")
    assert (line.root / "ledger.jsonl").read_bytes() == before


def test_what_was_changed_labels_nothing(bundles, here):
    content = (bundles / "whole.zip").read_bytes()
    at = content.index(b"PK\x01\x02") // 2
    (here / "changed.zip").write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    said = run("annotate", bundles / "cells.h5ad", "-o", "o.h5ad", "--model", "./changed.zip", code=1)
    assert "changed; ask for it again" in said
    assert not (here / "o.h5ad").exists()
    with zipfile.ZipFile(bundles / "whole.zip") as archive:
        archive.extractall(here / "folder")
    (here / "folder" / "version" / "model" / "more.json").write_text("{}")
    with pytest.raises(AuditError, match="does not name: version/model/more.json"):
        models.find_model(here / "folder", None, "full", print)
    (here / "folder" / "version" / "model" / "more.json").unlink()
    (here / "folder" / "version" / "key.json").write_text("{}")
    with pytest.raises(AuditError, match="changed are version/key.json"):
        models.find_model(here / "folder", None, "full", print)


def test_a_model_is_kept_on_the_shelf_and_labels_by_its_name(bundles, wanted, here):
    kept = json.loads(run("models", "add", bundles / "bare.zip", "--name", "lab", "--json"))
    assert [one["type"] for one in kept["types"]] == ["B", "NK", "T", "Mono"]
    assert {one["type"]: one["cells"] for one in kept["types"]}["Mono"] == 24
    assert kept["genes"] == 32
    assert [one["name"] for one in json.loads(run("models", "list", "--json"))] == ["lab"]
    assert "Mono" in run("models", "show", "lab")
    pd.testing.assert_frame_equal(labels("lab", bundles / "cells.h5ad", here), wanted)
    run("annotate", bundles / "cells.h5ad", "-o", "only.csv")  # the only one there is
    pd.testing.assert_frame_equal(pd.read_csv(here / "only.csv"), wanted)
    assert "is on the shelf" in run("models", "add", bundles / "whole.zip", "--name", "lab", code=1)
    run("models", "add", bundles / "whole.zip")
    assert "the shelf holds 2 models" in run("annotate", bundles / "cells.h5ad", "-o", "o.csv", code=1)
    run("models", "remove", "lab")
    assert shelf.shelf_names() == ["whole"]
    assert "there are whole" in run("models", "remove", "lab", code=1)
    assert {one.name for one in shelf.shelf_folder().iterdir()} == {"whole", ".lock"}


@pytest.mark.parametrize("name", ["3", "../up", "a b", "", "x" * 65, "-o"])
def test_a_name_that_is_none_is_refused(bundles, here, name):
    if name:
        with pytest.raises(CanalError, match="is no name for a model"):
            shelf.add_model(str(bundles / "bare.zip"), name)
    with pytest.raises(RegistryError, match="holds none yet"):
        shelf.shelved(name)
    assert not shelf.shelf_folder().exists()


def test_a_model_that_was_changed_on_the_shelf_labels_nothing(bundles, here):
    shelf.add_model(str(bundles / "bare.zip"), "lab")
    path = shelf.shelf_folder() / "lab" / "bundle" / "version" / "model" / "labels.json"
    before = path.read_text()
    path.write_text(before.replace("Mono", "Macrophage"))
    with pytest.raises(AuditError, match="changed are version/model/labels.json"):
        models.find_model("lab", None, "full", print)
    manifest = shelf.shelf_folder() / "lab" / "bundle" / "manifest.json"
    document = json.loads(manifest.read_text())
    document["files"]["version/model/labels.json"] = {
        "size": path.stat().st_size,
        "sha256": file_digest(path),
    }
    manifest.write_text(json.dumps(document))
    with pytest.raises(RegistryError, match="was changed since lab was proven"):
        models.find_model("lab", None, "full", print)
    (shelf.shelf_folder() / "lab" / "shelf.json").write_text("[]")
    with pytest.raises(RegistryError, match="is damaged"):
        models.find_model("lab", None, "full", print)


@pytest.fixture
def address(bundles):
    """Give the address of a server of the bundles."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(bundles))

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/bare.zip"
        server.shutdown()


def test_an_address_needs_the_digest_of_its_file(bundles, here, address):
    with pytest.raises(CanalError, match="--sha256 is needed"):
        shelf.add_model(address)
    with pytest.raises(CanalError, match="expected sha256 0000"):
        shelf.add_model(address, sha256="0" * 64)
    with pytest.raises(CanalError, match="64 hexadecimal digits"):
        shelf.add_model(address, sha256="short")
    assert not shelf.shelf_names()
    digest = file_digest(bundles / "bare.zip")
    assert shelf.add_model(address, sha256=digest)["source"] == address
    assert [shelf.shelved(name).sha256 for name in shelf.shelf_names()] == [digest]


class Faulty(http.server.BaseHTTPRequestHandler):
    """Answers as servers do on a bad day: what is asked for names the fault."""

    def do_GET(self):
        fault, content = self.path.strip("/").removesuffix(".zip"), b"half of a file"
        if fault == "elsewhere":
            self.send_response(302)
            self.send_header("Location", "file:///etc/hostname")
            self.end_headers()
            return
        if fault == "round":
            self.send_response(302)
            self.send_header("Location", self.path)
            self.end_headers()
            return
        if fault != "cut":
            self.send_error(int(fault))
            return
        self.send_response(200)
        self.send_header("Content-Length", str(2 * len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("404", "the server answered 404 Not Found; check the address"),
        ("503", r"attempts failed, the last with: the server answered 503 .*0 bytes came"),
        ("cut", r"attempts failed, .*14 bytes read, 14 more expected.*\? 0 bytes came$"),
        ("elsewhere", "only http and https addresses are followed"),
        ("round", "Exceeded 30 redirects.; only http and https"),
    ],
)
def test_a_server_on_a_bad_day_leaves_nothing(here, monkeypatch, fault, message):
    monkeypatch.setattr("canal.data.sources.ATTEMPTS", 2)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Faulty) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(CanalError, match=message):
            shelf.add_model(f"http://127.0.0.1:{server.server_port}/{fault}.zip", "lab", "0" * 64)
        server.shutdown()
    assert shelf.shelf_names() == []
    assert not shelf.shelf_folder().exists()


def test_a_file_comes_from_a_bucket(bundles, here, address, monkeypatch):
    """By boto3 itself, which asks a server here that knows two requests of S3: HEAD and GET."""
    endpoint, _, name = address.rpartition("/")
    (bundles / "atlas").mkdir(exist_ok=True)
    shutil.copyfile(bundles / name, bundles / "atlas" / name)
    for variable, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "none",
        "AWS_SECRET_ACCESS_KEY": "none",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(variable, value)
    digest = file_digest(bundles / name)
    assert shelf.add_model(f"s3://atlas/{name}", sha256=digest)["sha256"] == digest
    with pytest.raises(CanalError, match="s3://atlas/gone.zip: .*404"):
        shelf.add_model("s3://atlas/gone.zip", sha256=digest)
    with pytest.raises(CanalError, match="--sha256 is needed"):
        shelf.add_model(f"s3://atlas/{name}", "other")
    with pytest.raises(CanalError, match="expected sha256 0000.*, found"):
        shelf.add_model(f"s3://atlas/{name}", "other", "0" * 64)
    assert len(shelf.shelf_names()) == 1


def test_mlflow_names_a_version_from_outside_of_the_project(bundles, wanted, here, line, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{line.root / 'mlflow.db'}")
    for address in ("models:/canal-annotator/2", "models:/canal-annotator@candidate"):
        pd.testing.assert_frame_equal(labels(address, bundles / "cells.h5ad", here), wanted)
    for address, why in {
        "models:/canal-annotator/9": "not found",
        "models:/canal-annotator": "expected models:/NAME/VERSION",
        "models:/canal-backbone/1": "labels no cells",
    }.items():
        with pytest.raises(RegistryError, match=why):
            models.find_model(address, None, "full", print)


def test_in_a_project_its_versions_come_before_the_shelf(bundles, here, line, monkeypatch):
    monkeypatch.chdir(line.root)
    shelf.add_model(str(bundles / "bare.zip"), "lab")
    assert models.find_model("lab", None, "full", print).project is None
    assert models.find_model("candidate", None, "full", print).project is not None
    with pytest.raises(RegistryError, match="no version 'nothing' of canal-annotator"):
        models.find_model("nothing", None, "full", print)
    told = []
    folder = models.find_model(line.root / "models" / "second", None, "full", told.append)
    assert "nothing proves how it was made" in told[0]
    whole = models.find_model("2", None, "full", print)
    assert folder.load().digest() == whole.load().digest()
    with pytest.raises(RegistryError, match="holds no model"):
        models.find_model(line.root / "raw", None, "full", print)
    with pytest.raises(CanalError, match="no such file"):
        models.find_model("gone.zip", None, "full", print)


def test_a_model_of_the_shelf_used_in_a_project_is_on_its_record(bundles, here, line, monkeypatch):
    shelf.add_model(str(bundles / "bare.zip"), "lab")
    monkeypatch.chdir(line.root)
    log = line.project().layout.annotations
    before = len(log.read_text().splitlines()) if log.exists() else 0
    for name, model in {"shelf": "lab", "file": bundles / "bare.zip"}.items():
        said = run("annotate", bundles / "cells.h5ad", "-o", f"{name}.csv", "--model", model)
        assert "cannot hold its record" not in said
        assert json.loads(run("who", f"{name}.csv", "--json"))["genuine"] is True
    records = [json.loads(one) for one in log.read_text().splitlines()[before:]]
    assert [one["model"]["bundle"] for one in records] == [file_digest(bundles / "bare.zip")] * 2
    (line.root / "params.yaml").write_text("no: [")
    said = run("annotate", bundles / "cells.h5ad", "-o", "more.csv", "--model", bundles / "bare.zip")
    assert "no project's log takes the record" in said


def test_an_absurd_number_is_no_version(here, line, monkeypatch):
    number = "9" * 20
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{line.root / 'mlflow.db'}")
    for address in (f"models:/canal-annotator/{number}", f"models:/other/{number}"):
        with pytest.raises(RegistryError, match="no registry numbers versions that high"):
            models.find_model(address, None, "full", print)
    for address in (
        "models:/canal-annotator/\u0663",
        "models:/canal-annotator/-1",
        "models:/canal-annotator/1e3",
    ):
        with pytest.raises(RegistryError, match="models:/canal-annotator/"):
            models.find_model(address, None, "full", print)
    monkeypatch.chdir(line.root)
    for wanted in (number, f"models:/canal-annotator/{number}"):
        with pytest.raises(RegistryError, match="no version|no registry"):
            models.find_model(wanted, None, "full", print)


def test_a_shell_completes_versions_and_names(bundles, here, line, monkeypatch):
    shelf.add_model(str(bundles / "bare.zip"), "lab")

    def completed(*words):
        found = CliRunner().invoke(
            app,
            prog_name="canal",
            env={
                "_CANAL_COMPLETE": "complete_bash",
                "COMP_WORDS": " ".join(("canal", *words)),
                "COMP_CWORD": str(len(words)),
            },
        )
        return found.stdout.split()

    assert completed("annotate", "x.h5ad", "--model", "") == ["lab"]
    assert completed("models", "remove", "") == ["lab"]
    assert completed("models", "show", "x") == []
    monkeypatch.chdir(line.root)
    for words in (["annotate", "x.h5ad", "--model"], ["novel", "x.h5ad", "--model"], ["markers"]):
        assert completed(*words, "") == ["1", "2", "candidate", "lab"]
    (line.root / "params.yaml").write_text("no: [")
    assert completed("annotate", "x.h5ad", "--model", "") == []


def test_what_is_written_without_a_suffix_is_told_and_export_tells_what_it_does(bundles, here, line):
    said = run("annotate", bundles / "cells.h5ad", "-o", "out", "--model", bundles / "bare.zip")
    assert "out has no suffix: a labelled h5ad file is written" in said
    said = line.canal("export", "2", "-o", str(here / "again.zip"))
    assert [line.split()[0] for line in said.splitlines()][:3] == ["checking", "writing", "proving"]


def test_a_shelf_of_two_hundred_models_is_listed_at_once(bundles, here):
    shelf.add_model(str(bundles / "bare.zip"), "lab")
    place = shelf.shelf_folder()
    for number in range(199):
        (place / f"model-{number:03}").symlink_to(place / "lab")
    began = time.perf_counter()
    found = json.loads(run("models", "list", "--json"))
    assert time.perf_counter() - began < 5
    assert [one["name"] for one in found] == ["lab", *(f"model-{number:03}" for number in range(199))]
    assert {tuple(one["type"] for one in document["types"]) for document in found} == {
        ("B", "NK", "T", "Mono")
    }
    assert run("models", "list").count("model-") == 199
    assert "the shelf holds 200 models" in run("annotate", bundles / "cells.h5ad", "-o", "o.csv", code=1)
    key = found[0]["key"]
    assert shelf.shelf_name_of(key) == "lab"
    assert shelf.shelf_name_of("f" * 64) is None


def test_a_bundle_labels_a_zarr_store_into_another(bundles, wanted, here):
    cells = read_h5ad(bundles / "cells.h5ad")
    cells.write_zarr(here / "cells.zarr")
    model = bundles / "bare.zip"
    run("annotate", "cells.zarr", "-o", "out.zarr", "--model", model, "--latent", "--key-added", "atlas")
    labelled = read_zarr(here / "out.zarr")
    assert labelled.obs["atlas_cell_type"].astype(str).tolist() == wanted["canal_cell_type"].tolist()
    assert labelled.obsm["X_atlas"].shape[0] == labelled.n_obs
    assert canal.record(labelled, "atlas")["model"]["bundle"] == file_digest(model)
    assert document("who", "out.zarr", "--key-added", "atlas")["genuine"] is True
    assert document("explain", "out.zarr", "--key-added", "atlas", "--model", model)
    assert "must be OUT.zarr" in run("annotate", "cells.zarr", "-o", "out", "--model", model, code=1)
    assert not (here / "out").exists()


@pytest.mark.chaos
def test_a_kill_while_a_model_is_removed_leaves_it_whole_or_gone(bundles, here):
    """The process is killed at each file that it deletes, and before the first: by SIGKILL, as by kill -9."""
    code = (
        "import os, signal, sys, shutil\n"
        "left, real = [int(sys.argv[1])], os.unlink\n"
        "def unlink(*given, **more):\n"
        "    left[0] -= 1\n"
        "    if left[0] < 0: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    real(*given, **more)\n"
        "os.unlink = unlink\n"
        "from canal.app.shelf import remove_model\n"
        "remove_model('lab')\n"
    )
    shelf.add_model(str(bundles / "bare.zip"), "lab")
    for after in (0, 3, 130):
        done = subprocess.run([sys.executable, "-c", code, str(after)], check=False)
        assert done.returncode == -signal.SIGKILL
        assert any(one.name not in ("lab", ".lock") for one in shelf.shelf_folder().iterdir())
        assert shelf.shelf_names() == (
            [] if after != 3 else ["lab"]
        )  # killed while it swept the first leftovers
        if after != 3:
            shelf.add_model(str(bundles / "bare.zip"), "lab")
        assert shelf.show_model("lab")["name"] == "lab"  # every file is compared
    subprocess.run([sys.executable, "-c", code, "1000000"], check=True)  # sweeps what was left
    assert {one.name for one in shelf.shelf_folder().iterdir()} == {".lock"}


def test_where_nothing_is_named_it_says_what_can_be(here, bundles):
    with pytest.raises(RegistryError, match="There is no project here .* the shelf holds no model"):
        canal.annotate(read_h5ad(bundles / "cells.h5ad"))
    assert "puts one there" in run("models", "list")
    assert np.array_equal([], shelf.list_models())


def test_labels_stand_beside_each_other_whatever_they_are_read_from(bundles, wanted, here):
    model = bundles / "whole.zip"
    cells = read_h5ad(bundles / "cells.h5ad")
    cells.to_df().T.to_csv(here / "genes_in_rows.csv.gz")
    run("annotate", here / "genes_in_rows.csv.gz", "-o", here / "one.h5ad", "--model", model)
    told = run(
        *("annotate", here / "one.h5ad", "-o", here / "two.h5ad", "--model", model, "--latent"),
        *("--key-added", "strict", "--max-novelty", "0.5", "--min-confidence", "0.9"),
        *("--vote", "canal_cell_type", "--min-share", "0.8"),
    )
    assert "above --max-novelty" in told
    both = read_h5ad(here / "two.h5ad")
    assert both.obs["canal_cell_type"].astype(str).tolist() == wanted["canal_cell_type"].tolist()
    cut = (both.obs["strict_novelty"] > 0.5) | (both.obs["strict_confidence"] < 0.9)
    assert (both.obs.loc[cut, "strict_cell_type"] == "Unassigned").all()
    assert both.obsm["X_strict"].shape[0] == both.n_obs
    assert set(both.obs["strict_vote"]) <= {*both.obs["strict_cell_type"], "Mixed"}
    assert canal.record(both, "strict")["options"]["min_confidence"] == 0.9
    assert "under canal (--key-added)" in run("who", here / "two.h5ad", "--key-added", "strict")
    table = canal.annotate(cells.to_df(), model=model)
    assert table["canal_cell_type"].astype(str).tolist() == wanted["canal_cell_type"].tolist()


def test_a_shelf_with_leftovers_and_damage_still_lists_the_rest(bundles, here):
    shelf.add_model(str(bundles / "bare.zip"), "lab")
    place = shelf.shelf_folder()
    for name in (".lab.canal-1234-5678-9abc", "lung atlas"):  # what a kill, or a person's copy, left
        shutil.copytree(place / "lab", place / name)
    shutil.copytree(place / "lab", place / "broken")
    (place / "broken" / "shelf.json").write_text('{"added": "\\u001b[31m"}')
    found = {one["name"]: one for one in shelf.list_models()}
    assert set(found) == {"lab", "broken"}
    assert "is damaged" in found["broken"]["damaged"]
    assert "warning: broken" in run("models", "list")
    assert "there are broken, lab" in run(
        "annotate", bundles / "cells.h5ad", "-o", "o.csv", "--model", "no", code=1
    )
    (place / "empty").mkdir()
    assert "'empty' is on the shelf" in run("models", "add", bundles / "bare.zip", "--name", "empty", code=1)
    for name in ("broken", "empty"):
        run("models", "remove", name)
    assert shelf.shelf_names() == ["lab"]
    assert (place / "lung atlas").is_dir()


def test_of_two_who_add_one_name_at_once_one_is_refused(bundles, here):
    def add():
        try:
            shelf.add_model(str(bundles / "bare.zip"), "lab")
        except RegistryError as error:
            return str(error)
        return "kept"

    with ThreadPoolExecutor(2) as pool:
        said = sorted(one.result() for one in [pool.submit(add), pool.submit(add)])
    assert said[1] == "kept"
    assert "is on the shelf" in said[0]


@pytest.mark.parametrize("name", sorted(shelf.ALIASES))
def test_no_model_on_the_shelf_passes_for_a_version(bundles, here, name):
    with pytest.raises(CanalError, match="is an alias of a project's versions"):
        shelf.add_model(str(bundles / "bare.zip"), name)


def forged(bundles, here, change, **more):
    """Return the whole bundle with a changed manifest, and further members that it lists."""
    with zipfile.ZipFile(bundles / "whole.zip") as archive:
        members = {name: archive.read(name) for name in archive.namelist()} | more
    manifest = json.loads(members.pop("manifest.json"))
    for name, content in more.items():
        manifest["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    change(manifest, members)
    with zipfile.ZipFile(here / "forged.zip", "w") as archive:
        archive.writestr("manifest.json", json.dumps(manifest))
        for name, content in members.items():
            archive.writestr(name, content)
    return here / "forged.zip"


def test_cells_are_withheld_all_or_none(bundles, here):
    def one(manifest, members):
        del members["version/split/cells.csv"], manifest["files"]["version/split/cells.csv"]
        manifest["withheld"] = ["version/split/cells.csv"]

    with pytest.raises(AuditError, match="it withholds"):
        shelf.add_model(str(forged(bundles, here, one)))

    def more(manifest, members):
        for name in [name for name in members if holds_cells(name)]:
            del members[name], manifest["files"][name]
        manifest["withheld"] = ["version/batches/of-nobody.safetensors"]

    with pytest.raises(AuditError, match="it withholds what no version names|findings"):
        shelf.add_model(str(forged(bundles, here, more)))
    assert shelf.shelf_names() == []


@pytest.mark.parametrize(
    "content", [b"not json", b"[1]", b'{"a": 1}', b'{"a": {"licence": 3, "citation": ""}}']
)
def test_licences_that_cannot_be_read_are_refused(bundles, here, content):
    with pytest.raises(AuditError, match="no licence and citation"):
        shelf.add_model(str(forged(bundles, here, lambda *_: None, **{"sources.json": content})))
    assert shelf.shelf_names() == []


def test_a_file_beside_the_models_own_is_refused(line, here):
    folder = line.root / "models" / "second"
    (folder / "model" / "ontology.json").write_text('{"B": "CL:0000236"}')
    with pytest.raises(RegistryError, match="does not name: ontology.json"):
        models.find_model(folder, None, "full", print)


def test_a_named_pipe_is_refused_at_once(bundles, here):
    os.mkfifo(here / "pipe.csv")
    with pytest.raises(CanalError, match="is a named pipe"):
        canal.annotate(here / "pipe.csv", model=bundles / "bare.zip")


def test_a_full_disk_is_told(bundles, here, monkeypatch):
    def full(*_):
        raise shutil.Error([("a", "b", "[Errno 28] No space left on device")])

    monkeypatch.setattr(shutil, "copytree", full)
    with pytest.raises(RegistryError, match="cannot be written: .*No space left"):
        shelf.add_model(str(bundles / "bare.zip"), "lab")
    assert shelf.shelf_names() == []


def test_novel_and_explain_take_the_model_that_labelled_the_file(bundles, learned, here):
    line, _ = learned
    line.canal("annotate", str(bundles / "cells.h5ad"), "-o", str(here / "labelled.h5ad"), "--model", "2")
    labelled = call_novel(here / "labelled.h5ad", "DC")
    with zipfile.ZipFile(bundles / "bare.zip") as archive:
        archive.extractall(here / "bare")
    for command in ("novel", "explain"):
        said = run(command, labelled, code=1)
        assert "no project here, and no model on the shelf has this key: name its file with --model" in said
        wanted = document(command, labelled, "--root", line.root)
        assert wanted == document(command, labelled, "--model", bundles / "bare.zip")
        assert wanted == document(command, labelled, "--model", here / "bare")
    shelf.add_model(str(bundles / "bare.zip"), "lab")
    assert wanted == document("explain", labelled, "--model", "lab")
    assert wanted == document("explain", labelled)  # the shelf holds the key on record
    sheet = run("novel", labelled, "-o", "sheet.csv")
    assert "in a project that holds the version (`canal import`)" in sheet
    assert pd.read_csv(here / "sheet.csv")["n_cells"].min() >= 10


def document(*words):
    done = CliRunner().invoke(app, [*map(str, words), "--json"])
    assert done.exit_code == 0, (done.output, done.exception)
    return json.loads(done.stdout)


def test_another_model_than_the_one_that_labelled_the_file_is_refused(bundles, learned, here):
    line, _ = learned
    line.canal("annotate", str(bundles / "cells.h5ad"), "-o", str(here / "first.h5ad"), "--model", "1")
    for command in ("novel", "explain"):
        said = run(command, here / "first.h5ad", "--model", bundles / "bare.zip", code=1)
        assert "labelled by canal-annotator version 1 (key" in said
        assert "is canal-annotator version 2 (key" in said
    assert not list(here.glob("*.csv"))
