"""Nothing in a file or folder of cells leads canal out of it, whoever reads and whatever is written."""

import os
import socket
from pathlib import Path

import anndata
import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

from canal.annotation.annotate import annotate_adata, annotate_h5ad, label_h5ad
from canal.annotation.labelled import open_labelled, read_back
from canal.annotation.naming import Naming
from canal.annotation.options import Options
from canal.app.declaring import declare
from canal.cli import app
from canal.config.sections import Gate
from canal.core.digests import file_digest
from canal.core.errors import DataError, SourceError
from canal.data.genes import read_gene_list
from canal.data.prepare import PrepareSettings, prepare
from canal.data.prepared import PreparedCells
from canal.quality.gate import judge_file
from canal.quality.verdict import Subject
from tests.support.cells import gene_names, make_adata, source_of, write_adata
from tests.support.formats import write_10x_v3, write_loom, write_mtx, write_zarr2, write_zarr3


@pytest.fixture(scope="module")
def labelled(annotator, adata, tmp_path_factory):
    """What annotation writes, so that every command reads it."""
    folder = tmp_path_factory.mktemp("labelled")
    options = Options(model_name={"model": "m", "version": 2, "key": "k" * 64})
    annotate_h5ad(annotator, write_adata(adata, folder / "in.h5ad"), folder / "out.h5ad", options)
    return folder / "out.h5ad"


@pytest.fixture
def given(labelled, tmp_path):
    path = tmp_path / "cells.h5ad"
    path.write_bytes(labelled.read_bytes())
    return path


def external_matrix(file, folder):
    with h5py.File(folder / "other.h5", "w") as other:
        file.copy("X", other)
    del file["X"]
    file["X"] = h5py.ExternalLink("other.h5", "/X")
    return "external link to '/X' in the file 'other.h5'"


def external_uns(file, folder):
    """To where annotation writes its record."""
    with h5py.File(folder / "other.h5", "w") as other:
        file.copy("uns", other)
    del file["uns"]
    file["uns"] = h5py.ExternalLink(str(folder / "other.h5"), "/uns")
    return "'/uns' is an external link"


def external_names(file, folder):
    (folder / "secret.txt").write_bytes(b"password01" * file["obs/_index"].shape[0])
    shape = file["obs/_index"].shape
    del file["obs/_index"]
    outside = [(str(folder / "secret.txt"), 0, 10 * shape[0])]
    file["obs"].create_dataset("_index", shape, dtype="S10", external=outside)
    return "'/obs/_index' is a dataset whose values are stored in the file '.*secret.txt'"


def external_pipe(file, folder):
    """Whoever reads it waits for ever."""
    os.mkfifo(folder / "pipe")
    del file["obs/batch"]
    file["obs"].create_dataset("batch", (3,), dtype="i4", external=[(str(folder / "pipe"), 0, 12)])
    return "values are stored in the file '.*pipe'"


def virtual(file, folder):
    with h5py.File(folder / "other.h5", "w") as other:
        file.copy("X/data", other)
    layout = h5py.VirtualLayout(file["X/data"].shape, "f4")
    layout[:] = h5py.VirtualSource("other.h5", "data", file["X/data"].shape)
    del file["X/data"]
    file.create_virtual_dataset("X/data", layout)
    return "virtual dataset made of 'data' in the file 'other.h5'"


def virtual_of_itself(file, folder):
    layout = h5py.VirtualLayout((5,), "f4")
    layout[:] = h5py.VirtualSource(".", "X/data", (5,))
    del file["X/data"]
    file.create_virtual_dataset("X/data", layout)
    return "virtual dataset"


def deep(file, folder):
    file.create_group("uns/a/b/c")["x"] = h5py.ExternalLink("/etc/passwd", "/")
    return "'/uns/a/b/c/x' is an external link to '/' in the file '/etc/passwd'"


def cycle(file, folder):
    file["uns/self"] = h5py.SoftLink("/")
    return "contain themselves"


def cycle_of_names(file, folder):
    file.create_group("uns/a")["up"] = file["uns"]
    return "contain themselves"


def nowhere(file, folder):
    file["layers/lost"] = h5py.SoftLink("/nothing")
    return "soft link '/layers/lost' points to '/nothing'"


HOSTILE = [
    external_matrix,
    external_uns,
    external_names,
    external_pipe,
    virtual,
    virtual_of_itself,
    deep,
    cycle,
    cycle_of_names,
    nowhere,
]


@pytest.mark.parametrize("change", HOSTILE)
def test_labelling_follows_nothing_and_writes_nowhere_else(annotator, given, tmp_path, change):
    with h5py.File(given, "r+") as file:
        message = change(file, tmp_path)
    before = {path: file_digest(path) for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(DataError, match=message):
        annotate_h5ad(annotator, given, tmp_path / "out.h5ad")
    assert {path: file_digest(path) for path in tmp_path.iterdir() if path.is_file()} == before


def _prepare(path, folder):
    prepare(path, "a", source_of(path), PrepareSettings(1, 10), folder / "prepared")


def _judge(path, folder):
    subject = Subject("second", "second", source_of(path), path, gene_names(20), earlier={})
    judge_file(subject, PrepareSettings(1, 10), Gate())


def _label(path):
    with open_labelled(path):
        pass


READERS = {
    "prepare": _prepare,
    "validate": _judge,
    "novel": lambda path, folder: _label(path),
    "who": lambda path, folder: read_back(path),
    "backbone import": lambda path, folder: read_gene_list(path),
    "training": lambda path, folder: PreparedCells(path).obs,
}


@pytest.mark.parametrize("command", READERS)
@pytest.mark.parametrize("change", [external_matrix, external_pipe, virtual_of_itself])
def test_every_reader_refuses(given, tmp_path, command, change):
    with h5py.File(given, "r+") as file:
        message = change(file, tmp_path)
    with pytest.raises(DataError, match=message):
        READERS[command](given, tmp_path)


def test_a_link_is_told_without_a_traceback(given, tmp_path):
    with h5py.File(given, "r+") as file:
        external_matrix(file, tmp_path)
    said = CliRunner().invoke(app, ["who", str(given), "--root", str(tmp_path)], env={"COLUMNS": "300"})
    assert said.exit_code != 0
    assert isinstance(said.exception, SystemExit | DataError)


@pytest.mark.parametrize("write", [write_10x_v3, write_loom])
def test_other_hdf5_files_are_looked_at_likewise(annotator, adata, tmp_path, write):
    path = write(adata, tmp_path)
    with h5py.File(path, "r+") as file:
        file["elsewhere"] = h5py.ExternalLink("other.h5", "/")
    with pytest.raises(DataError, match="'/elsewhere' is an external link"):
        label_h5ad(annotator, path)


def test_soft_links_in_a_file_are_followed_and_become_plain_in_its_copy(annotator, adata, given, tmp_path):
    wanted = label_h5ad(annotator, given)
    with h5py.File(given, "r+") as file:
        file.move("X", "layers/counts")
        file["X"] = h5py.SoftLink("/layers/counts")
        file["obsm/twin"] = h5py.SoftLink("/X")
    annotate_h5ad(annotator, given, tmp_path / "out.h5ad")
    found = anndata.read_h5ad(tmp_path / "out.h5ad")
    assert found.obs["canal_cell_type"].tolist() == wanted["canal_cell_type"].tolist()
    np.testing.assert_array_equal(found.X.toarray(), adata.X.toarray())
    with h5py.File(tmp_path / "out.h5ad") as file:
        kinds = {type(file.get(name, getlink=True)) for name in (*file, "obsm/twin")}
    assert kinds == {h5py.HardLink}


def test_a_path_that_is_a_link_is_resolved(annotator, adata, given, tmp_path):
    """As DVC links its cache, and clusters their folders."""
    wanted = label_h5ad(annotator, given)["canal_cell_type"].tolist()
    for target in (given, write_zarr3(adata, tmp_path), write_mtx(adata, tmp_path)):
        link = tmp_path / f"link{target.suffix}"
        link.symlink_to(target)
        assert label_h5ad(annotator, link)["canal_cell_type"].tolist() == wanted


@pytest.mark.parametrize("write", [write_zarr2, write_zarr3])
@pytest.mark.parametrize("what", ["file", "folder", "pipe", "socket"])
def test_what_leaves_a_zarr_store_is_refused(annotator, adata, tmp_path, write, what):
    store, outside = write(adata, tmp_path), tmp_path / "outside"
    target = store / "obs" / "batch"
    if what == "file":
        chunk = next(path for path in (store / "X" / "data").rglob("*") if path.name == "0")
        chunk.rename(outside)
        chunk.symlink_to(outside)
        message = "is a link to '.*outside', which lies outside"
    elif what == "folder":
        target.rename(outside)
        target.symlink_to(outside)
        message = "obs/batch is a link to '.*outside', which lies outside"
    elif what == "pipe":
        os.mkfifo(target / "pipe")
        message = "obs/batch/pipe is a named pipe"
    else:
        where = Path.cwd()
        os.chdir(target)  # the name of a socket is short
        try:
            with socket.socket(socket.AF_UNIX) as one:
                one.bind("s")
        finally:
            os.chdir(where)
        message = "obs/batch/s is a socket"
    for command in (lambda: label_h5ad(annotator, store), lambda: _label(store)):
        with pytest.raises(DataError, match=message):
            command()
    with pytest.raises(DataError, match=message):
        annotate_h5ad(annotator, store, tmp_path / "out.zarr")
    assert not (tmp_path / "out.zarr").exists()


def test_links_within_a_zarr_store_become_files_in_its_copy(annotator, adata, tmp_path):
    store = write_zarr3(adata, tmp_path)
    chunk = next(path for path in (store / "X" / "data").rglob("*") if path.name == "0")
    chunk.rename(store / "moved")
    chunk.symlink_to(store / "moved")
    annotate_h5ad(annotator, store, tmp_path / "out.zarr")
    assert not [path for path in (tmp_path / "out.zarr").rglob("*") if path.is_symlink()]
    np.testing.assert_array_equal(anndata.read_zarr(tmp_path / "out.zarr").X.toarray(), adata.X.toarray())


def test_the_copy_of_a_store_that_may_only_be_read_can_be_written(annotator, adata, tmp_path):
    store = write_zarr3(adata, tmp_path)
    inside = [store, *store.rglob("*")]
    for path in inside:
        path.chmod(path.stat().st_mode & ~0o222)
    try:
        annotate_h5ad(annotator, store, tmp_path / "out.zarr")
    finally:
        for path in inside:
            path.chmod(path.stat().st_mode | 0o200)
    assert all(path.stat().st_mode & 0o200 for path in (tmp_path / "out.zarr").rglob("*"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.zarr", "three.zarr"]


def test_a_name_in_a_zarr_store_does_not_lead_out_of_it(annotator, adata, tmp_path):
    import zarr

    store = write_zarr3(adata, tmp_path)
    (tmp_path / "other").mkdir()
    write_zarr3(adata, tmp_path / "other")
    group = zarr.open_group(store, mode="r+", use_consolidated=False)
    group["obs"].attrs["_index"] = "../../other/three.zarr/obs/_index"
    with pytest.raises(DataError, match="three.zarr"):
        label_h5ad(annotator, store)


def test_pickled_objects_in_a_zarr_store_are_never_opened(annotator, adata, tmp_path):
    store = write_zarr2(adata, tmp_path)
    described = store / "obs" / "batch" / "codes" / ".zarray"
    described.write_text(described.read_text().replace('"filters": null', '"filters": [{"id": "pickle"}]'))
    assert "pickle" in described.read_text()
    with pytest.raises(DataError, match="pickled Python objects"):
        label_h5ad(annotator, store)


def test_a_link_out_of_a_10x_folder_is_refused(annotator, adata, tmp_path):
    folder = write_mtx(adata, tmp_path)
    (folder / "barcodes.tsv").rename(tmp_path / "secret")
    (folder / "barcodes.tsv").symlink_to(tmp_path / "secret")
    with pytest.raises(DataError, match=r"barcodes.tsv is a link to '.*secret', which lies outside"):
        label_h5ad(annotator, folder)


@pytest.mark.parametrize("name", ["barcodes.tsv", "genes.tsv", "matrix.mtx"])
def test_a_pipe_in_a_10x_folder_is_refused(annotator, adata, tmp_path, name):
    folder = write_mtx(adata, tmp_path)
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(DataError, match=f"{name} is a named pipe|neither a zarr store nor a 10x folder"):
        label_h5ad(annotator, folder)


def test_a_pipe_or_device_is_no_file(annotator, tmp_path):
    os.mkfifo(tmp_path / "pipe.h5ad")
    for path, what in ((tmp_path / "pipe.h5ad", "named pipe"), (Path("/dev/zero"), "device")):
        for read in (lambda path: label_h5ad(annotator, path), read_back, _label):
            with pytest.raises(DataError, match=what):
                read(path)


def test_a_pipe_is_no_source(tmp_path):
    """Neither for `canal validate` nor for `canal stage add`."""
    os.mkfifo(tmp_path / "pipe.h5ad")
    source = source_of(write_adata(make_adata({"B": 3}, n_genes=20), tmp_path / "a.h5ad"))
    subject = Subject("second", "second", source, tmp_path / "pipe.h5ad", gene_names(20), earlier={})
    with pytest.raises(DataError, match="is a named pipe"):
        judge_file(subject, PrepareSettings(1, 10), Gate())
    with pytest.raises(SourceError, match="is no file; give the path of an h5ad file"):
        declare(tmp_path / "pipe.h5ad", {}, None, tmp_path)


@pytest.mark.parametrize("option", ["gene_map", "orthologs", "aliases"])
def test_a_pipe_is_no_table_of_names(annotator, adata, tmp_path, option):
    os.mkfifo(tmp_path / "pipe.tsv")
    with pytest.raises(DataError, match="is a named pipe"):
        annotate_adata(annotator, adata, Options(naming=Naming(**{option: tmp_path / "pipe.tsv"})))


def test_a_backed_adata_is_looked_at_likewise(annotator, given, tmp_path):
    with h5py.File(given, "r+") as file:
        external_matrix(file, tmp_path)
    backed = anndata.read_h5ad(given, backed="r")
    with pytest.raises(DataError, match="external link"):
        annotate_adata(annotator, backed)
    backed.file.close()
    with pytest.raises(DataError, match="external link"):
        annotate_adata(annotator, backed)


def test_files_are_opened_in_one_place():
    """Whoever opens one elsewhere follows what leads out of it."""
    source = Path(__file__).parents[2] / "src" / "canal"
    found = {
        (str(path.relative_to(source)), line.strip())
        for path in source.rglob("*.py")
        for line in path.read_text().splitlines()
        if any(call in line for call in ("h5py.File(", "zarr.open", "read_h5ad(", "read_zarr("))
        and 'f"' not in line
        and '"w"' not in line
        and ".read_h5ad, " not in line
    }
    # heaps.py tries a doubtful file in a child process, whose time is limited.
    allowed = {"io/hdf5.py", "io/heaps.py", "io/zarr_store.py", "annotation/output.py"}
    assert {name for name, _ in found} <= allowed, found
