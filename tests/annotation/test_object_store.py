"""Cells and labels in an object store: what is labelled there is what is labelled from files, row by row.

moto, from PyPI, is the store: it checks signatures and policies, in a process of its own.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from secrets import token_hex

import boto3
import h5py
import numpy as np
import pandas as pd
import pyarrow.parquet as parquet
import pytest
from typer.testing import CliRunner

from canal.annotation.options import Options
from canal.annotation.partitions import INDEX, PLAN, label_partitions, shared_plan
from canal.app import annotating, partitioning
from canal.app.models import FoundModel
from canal.cli import app
from canal.core import packages
from canal.core.errors import CanalError
from canal.io.addresses import Address, address_of
from canal.io.formats import open_cells
from tests.support.cells import gene_names, make_adata
from tests.support.formats import write_10x_v3, write_csc, write_csr, write_loom, write_mtx, write_zarr3
from tests.support.models import make_annotator
from tests.support.servers import answering_expired, shared
from tests.support.warm import REPOSITORY

pytestmark = pytest.mark.xdist_group("backends")

CUT = ("--partition-cells", "15", "--chunk-cells", "8")
SECRET = "hunter2-secret"


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    base = tmp_path_factory.getbasetemp()
    base = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "servers"
    found = shared("s3", base, base)
    found.wait()
    return found


@pytest.fixture
def store(server, monkeypatch, tmp_path):
    """Give a client of the store, by the account that may write."""
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    return boto3.client("s3")


@pytest.fixture
def bucket(store):
    name = f"b{token_hex(8)}"
    store.create_bucket(Bucket=name)
    return name


@pytest.fixture(autouse=True)
def model(monkeypatch):
    """Have the commands label by a small model, as by one of a registry."""

    def find_model(*_):
        about = {"key": "0" * 64, "model": "canal-annotator", "record": "1" * 64, "stage": "x", "version": 1}
        return FoundModel(about, make_annotator)

    monkeypatch.setattr(annotating, "find_model", find_model)
    monkeypatch.setattr(partitioning, "find_model", find_model)
    monkeypatch.setattr(partitioning, "find_model_of", find_model)


def cells(n=20, seed=0):
    adata = make_adata({"B": n, "NK": n - 5}, n_genes=20, seed=seed)
    adata.var_names = gene_names(20)
    return adata


def put(store, bucket, path, key):
    for one in [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]:
        below = "" if one == path else f"/{one.relative_to(path).as_posix()}"
        store.put_object(Bucket=bucket, Key=f"{key}{below}", Body=one.read_bytes())


@pytest.fixture
def atlas(store, bucket, tmp_path):
    """Give files of several formats, which lie in the store, too, below ``atlas/``."""
    made = []
    for n, write in enumerate((write_csr, write_csc, write_zarr3, write_mtx)):
        (folder := tmp_path / f"in{n}").mkdir()
        path = write(cells(20 + n, seed=n), folder)
        made.append(path)
        put(store, bucket, path, f"atlas/{path.name}")
    return made


def canal(*arguments, expect=0):
    done = CliRunner().invoke(app, [str(one) for one in arguments])
    assert done.exit_code == expect, f"{done.output}\n{done.exception!r}"
    if expect:
        assert isinstance(done.exception, CanalError | SystemExit), repr(done.exception)
        return str(done.exception)
    return done.stdout if "--json" in arguments else done.output


def keys(store, bucket, prefix=""):
    found = store.list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", [])
    return [one["Key"] for one in found]


def body(store, bucket, key):
    return store.get_object(Bucket=bucket, Key=key)["Body"].read()


def tables(folder):
    """Return the rows of each partition, by its file, as bytes of CSV."""
    return {
        path.relative_to(folder).as_posix(): pd.read_parquet(path).to_csv().encode()
        for path in sorted(folder.glob("*/part-*.parquet"))
    }


def fetched(store, bucket, prefix, into):
    for key in keys(store, bucket, prefix):
        path = into / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body(store, bucket, key))
    return into / prefix


def digests(folder):
    records = json.loads((folder / "_records.json").read_text())["records"]
    return {one["input"]["name"]: one["input"]["sha256"] for one in records}


def test_labels_from_addresses_are_those_from_files(store, bucket, atlas, tmp_path):
    """A wildcard, a zarr store and a 10x folder, into a folder of the store: rows, index and records."""
    local, out = tmp_path / "local", f"s3://{bucket}/labels"
    canal("annotate", *atlas, "-o", local, *CUT)
    places = (f"s3://{bucket}/atlas/*.h5ad", f"s3://{bucket}/atlas/three.zarr", f"s3://{bucket}/atlas/mtx")
    said = json.loads(canal("annotate", *places, "-o", out, *CUT, "--json"))
    assert said["missing"] == 0
    there = fetched(store, bucket, "labels", tmp_path / "fetched")
    assert tables(there) == tables(local)
    assert digests(there) == digests(local)
    assert len(digests(there)) == len(atlas)
    ours, theirs = (pd.read_parquet(one / INDEX) for one in (local, there))
    assert set(theirs["input"]) == {f"s3://{bucket}/atlas/{one.name}" for one in atlas}
    assert sorted(ours["file"]) == sorted(theirs["file"])
    again = json.loads(canal("annotate", *places, "-o", out, *CUT, "--json"))
    assert again["labelled"] == 0
    # and of addresses into a folder of this machine
    printed = canal("annotate", places[0], "-o", tmp_path / "here", *CUT)
    assert tables(tmp_path / "here").items() <= tables(local).items()
    assert len(tables(tmp_path / "here")) == 6
    # and the account stands in nothing that was written
    secrets = [os.environ["AWS_SECRET_ACCESS_KEY"], os.environ["AWS_ACCESS_KEY_ID"]]
    files = [one for place in (there, tmp_path / "here") for one in place.rglob("*") if one.is_file()]
    assert len(files) > 20
    assert not [one for one in files if any(secret.encode() in one.read_bytes() for secret in secrets)]
    assert not [one for one in secrets if one in printed]


@pytest.mark.parametrize("write", [write_10x_v3, write_loom])
def test_other_hdf5_files_are_read_in_place(store, bucket, tmp_path, write):
    path = write(cells(), tmp_path)
    put(store, bucket, path, path.name)
    with open_cells(path) as ours, open_cells(Address(f"s3://{bucket}/{path.name}")) as theirs:
        assert ours.obs_names() == theirs.obs_names()
        assert ours.var_names("X") == theirs.var_names("X")
        assert (ours.matrix("X").rows(3, 11) != theirs.matrix("X").rows(3, 11)).nnz == 0


def test_a_partition_of_a_large_file_fetches_part_of_it(store, bucket, tmp_path, monkeypatch):
    from s3fs import core

    adata = cells()
    adata.obsm["X_large"] = np.random.default_rng(0).normal(size=(adata.n_obs, 60_000))
    path = tmp_path / "large.h5ad"
    adata.write_h5ad(path)
    put(store, bucket, path, "large.h5ad")
    fetched = []
    real = core._fetch_range

    def fetch(*arguments, **options):
        fetched.append(arguments[5] - arguments[4])
        return real(*arguments, **options)

    monkeypatch.setattr(core, "_fetch_range", fetch)
    with open_cells(Address(f"s3://{bucket}/large.h5ad")) as file:
        file.matrix("X").rows(10, 20)
    size = path.stat().st_size
    assert size > 3 << 22
    assert 0 < sum(fetched) < size / 1.5


def test_a_table_in_text_and_a_single_file(store, bucket, tmp_path):
    adata = cells()
    frame = pd.DataFrame(adata.X.toarray(), index=adata.obs_names, columns=adata.var_names)
    path = tmp_path / "cells.csv"
    frame.to_csv(path)
    put(store, bucket, path, "in/cells.csv")
    h5ad = write_csr(adata, tmp_path)
    put(store, bucket, h5ad, "in/one.h5ad")
    canal("annotate", path, "-o", tmp_path / "local.csv")
    canal("annotate", f"s3://{bucket}/in/cells.csv", "-o", f"s3://{bucket}/out.csv")
    assert body(store, bucket, "out.csv") == (tmp_path / "local.csv").read_bytes()
    canal("annotate", f"s3://{bucket}/in/one.h5ad", "-o", tmp_path / "copy.h5ad")
    canal("annotate", h5ad, "-o", f"s3://{bucket}/copy.parquet")
    fetched(store, bucket, "copy.parquet", tmp_path)
    assert len(parquet.read_table(tmp_path / "copy.parquet")) == adata.n_obs
    with h5py.File(tmp_path / "copy.h5ad") as file:
        assert "canal_cell_type" in file["obs"]
    address = f"s3://{bucket}/copy.parquet"
    assert f"{address} exists already" in canal("annotate", h5ad, "-o", address, expect=1)
    canal("annotate", h5ad, "-o", address, "--overwrite")
    by_python = annotating.annotate(f"s3://{bucket}/in/one.h5ad")
    assert by_python.index.tolist() == adata.obs_names.tolist()
    assert "one object is written at once" in canal("annotate", h5ad, "-o", f"s3://{bucket}/x.zarr", expect=1)
    assert "--resume goes on" in canal("annotate", h5ad, "-o", f"{address}.csv", "--resume", expect=1)


def test_shards_are_collected(store, bucket, atlas, tmp_path):
    out, source = f"s3://{bucket}/labels", f"s3://{bucket}/atlas/*.h5ad"
    canal("annotate", source, "-o", out, *CUT, "--shard", "1/2")
    assert "partitions are missing" in canal("collect", out, expect=1)
    partitioning._label(out, 1, None)  # as a worker of Dask does
    second = json.loads(canal("annotate", source, "-o", out, *CUT, "--shard", "2/2", "--json"))
    assert (second["labelled"], second["missing"]) == (2, 0)
    assert json.loads(canal("collect", out, "--json"))["missing"] == 0
    canal("annotate", *atlas[:2], "-o", tmp_path / "local", *CUT)
    assert tables(fetched(store, bucket, "labels", tmp_path / "f")) == tables(tmp_path / "local")
    other = canal("annotate", source, "-o", out, "--partition-cells", "9", "--shard", "1/2", expect=1)
    assert "holds labels under another plan (it differs in cells" in other
    store.put_object(Bucket=bucket, Key="mine/notes.txt", Body=b"my own")
    mine = canal("annotate", source, "-o", f"s3://{bucket}/mine", *CUT, expect=1)
    assert "is there, and not made by canal" in mine
    assert "holds no _plan.json" in canal("collect", f"s3://{bucket}/mine", expect=1)


def test_of_two_first_writers_one_wins(store, bucket, atlas, monkeypatch):
    """Both saw no plan; the one whose plan is another is refused, and the first plan stays."""
    annotator, folder = make_annotator(), Address(f"s3://{bucket}/labels")
    files = [Address(f"s3://{bucket}/atlas/{one.name}") for one in atlas[:2]]
    options = Options(chunk_cells=4)
    first = shared_plan(annotator, files, folder, options, 7, {})
    before = body(store, bucket, f"labels/{PLAN}")
    monkeypatch.setattr(Address, "is_file", lambda self: False)
    monkeypatch.setattr(Address, "names", lambda self: [])
    assert shared_plan(annotator, files[::-1], folder, options, 7, {}).digest == first.digest
    with pytest.raises(CanalError, match="another plan"):
        shared_plan(annotator, files, folder, options, 8, {})
    assert body(store, bucket, f"labels/{PLAN}") == before


LABEL = """
import sys
from canal.annotation.options import Options
from canal.annotation.partitions import label_partitions, shared_plan
from canal.io.addresses import Address
from tests.support.models import make_annotator

annotator, options = make_annotator(), Options(chunk_cells=4)
plan = shared_plan(annotator, [Address(sys.argv[1])], Address(sys.argv[2]), options, 1, {})
for one in label_partitions(plan, plan.missing(), annotator, options):
    pass
"""


def test_who_is_killed_in_the_middle_is_followed_by_one_that_labels_the_rest(store, bucket, atlas, tmp_path):
    source, out = f"s3://{bucket}/atlas/{atlas[0].name}", f"s3://{bucket}/labels"
    path = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "src")])
    process = subprocess.Popen(
        [sys.executable, "-c", LABEL, source, out],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None and len(keys(store, bucket, "labels")) < 4:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    annotator, options = make_annotator(), Options(chunk_cells=4)
    plan = shared_plan(annotator, [Address(source)], Address(out), options, 1, {})
    left = plan.missing()
    assert 0 < len(left) < len(plan.partitions)
    stamps = {one: store.head_object(Bucket=bucket, Key=one)["ETag"] for one in keys(store, bucket, "labels")}
    assert sum(label_partitions(plan, left, annotator, options)) == len(left)
    assert plan.missing() == []
    there = fetched(store, bucket, "labels", tmp_path / "f")
    table = pd.concat(pd.read_parquet(one) for one in sorted(there.glob("*/part-*.parquet")))
    with open_cells(atlas[0]) as file:
        assert table.index.tolist() == file.obs_names()
    now = {one: store.head_object(Bucket=bucket, Key=one)["ETag"] for one in stamps}
    assert now == stamps  # what was done is left as it was


def test_an_object_that_changes_is_refused(store, bucket, atlas, tmp_path):
    annotator, options = make_annotator(), Options(chunk_cells=4)
    source, out = Address(f"s3://{bucket}/atlas/{atlas[0].name}"), Address(f"s3://{bucket}/labels")
    plan = shared_plan(annotator, [source], out, options, 7, {})
    labelling = label_partitions(plan, plan.partitions, annotator, options)
    next(labelling)
    body_before = body(store, bucket, f"atlas/{atlas[0].name}")
    (tmp_path / "other").mkdir()
    put(store, bucket, write_csr(cells(20, seed=9), tmp_path / "other"), f"atlas/{atlas[0].name}")
    with pytest.raises(CanalError, match="has changed since it was planned|changed while it was read"):
        next(labelling)
    assert len(plan.missing()) == len(plan.partitions) - 1
    with pytest.raises(CanalError, match="has changed since it was planned"):
        list(label_partitions(plan, plan.missing(), annotator, options))
    assert body(store, bucket, f"atlas/{atlas[0].name}") != body_before


def refused(source, out, secrets=()):
    text = canal("annotate", source, "-o", out, *CUT, expect=1)
    assert len(text.splitlines()) == 1
    assert not [one for one in (SECRET, *secrets) if one in text]
    return text


def test_what_the_store_refuses_is_one_sentence(server, store, bucket, atlas, tmp_path, monkeypatch):
    source, out = f"s3://{bucket}/atlas/*.h5ad", f"s3://{bucket}/labels"
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        with monkeypatch.context() as patch:
            patch.setenv(name, SECRET)
            assert "does not know the account, or its secret is wrong" in refused(source, out)
            one = f"s3://{bucket}/atlas/{atlas[0].name}"
            assert "does not know the account, or its secret is wrong" in refused(one, out)
    with monkeypatch.context() as patch:
        for name, value in server.other.items():
            patch.setenv(name, value)
        text = refused(source, out, server.other.values())
        assert f"{out}/{PLAN}: the account of the object store may not write there (AccessDenied" in text
    with monkeypatch.context() as patch:
        patch.delenv("AWS_ACCESS_KEY_ID")
        patch.delenv("AWS_SECRET_ACCESS_KEY")
        assert "wants an account, and none is set: set AWS_ACCESS_KEY_ID" in refused(source, out)
        patch.setenv("AWS_PROFILE", "nobody")
        assert "there is no such profile" in refused(source, out)
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        assert "does not answer: is it running, and is AWS_ENDPOINT_URL right" in refused(source, out)
        patch.setenv("AWS_ENDPOINT_URL", "nonsense")
        assert "is no address such as https://" in refused(source, out)
    with monkeypatch.context() as patch, answering_expired() as endpoint:
        patch.setenv("AWS_ENDPOINT_URL", endpoint)
        patch.setenv("AWS_SESSION_TOKEN", SECRET)
        assert "has expired (ExpiredToken): log in again, or renew" in refused(source, out)
    assert "has no such bucket: make it, or name another" in refused("s3://nowhere-at-all/*.h5ad", out)
    assert "has no such bucket" in refused(source, "s3://nowhere-at-all/labels")
    assert "no object has such an address" in refused(f"s3://{bucket}/*.zip", out)
    assert "no such object, and none lies below it" in refused(f"s3://{bucket}/none.h5ad", out)
    put(store, bucket, atlas[3] / "matrix.mtx", "odd.h5ad")
    assert f"s3://{bucket}/odd.h5ad is the matrix of a 10x folder" in refused(f"s3://{bucket}/odd.h5ad", out)
    assert "neither a zarr store nor a 10x folder" in refused(f"s3://{bucket}/atlas", out)
    assert keys(store, bucket, "labels") == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"s3://key:{SECRET}@bucket/x.h5ad", "so they hold no account"),
        ("s3://", "expected an address such as s3://bucket/cells.h5ad"),
        ("s3:///x.h5ad", "expected an address such as s3://bucket/cells.h5ad"),
        ("ftp://host/x.h5ad", "canal reads and writes s3://"),
        ("file:///tmp/x.h5ad", "and paths"),
    ],
)
def test_what_is_no_address_is_refused(text, said):
    with pytest.raises(CanalError, match=said) as told:
        address_of(text)
    assert SECRET not in str(told.value)


def test_paths_are_no_addresses():
    for text in ("cells.h5ad", "/data/a:b/x.h5ad", "C:/x", "s3:/bucket/x", "./s3://x"):
        assert address_of(text) is None
    assert address_of("S3://Bucket/x/") == Address("s3://Bucket/x")


def test_without_the_extra_its_name_is_told(monkeypatch, tmp_path):
    from canal.io import addresses

    addresses._store_of.cache_clear()

    def lacking(name):
        return None if name in ("s3fs", "gcsfs") else find_spec(name)

    monkeypatch.setattr(packages, "find_spec", lacking)
    monkeypatch.setattr(addresses, "find_spec", lacking)
    monkeypatch.delitem(sys.modules, "s3fs", raising=False)
    text = canal("annotate", "s3://bucket/*.h5ad", "-o", tmp_path / "out", expect=1)
    assert 'pip install "canal-cells[s3]"' in text
    text = canal("annotate", "gs://bucket/*.h5ad", "-o", tmp_path / "out", expect=1)
    assert "pip install gcsfs" in text


def test_local_files_are_labelled_without_fsspec(tmp_path):
    path = write_csr(cells(), tmp_path)
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from canal.app.partitioning import matching\n"
        "from canal.io.formats import Fingerprint, open_cells\n"
        "from canal.io.locations import bytes_at, new_at, read_footers\n"
        "[path] = matching([Path(sys.argv[1])])\n"
        "with open_cells(path) as file, new_at(Path(sys.argv[2]) / 'a') as out:\n"
        "    out.write_text(str(file.n_cells) + str(Fingerprint.of(path).files))\n"
        "bytes_at(path), list(read_footers(Path(sys.argv[2]), ['a', 'b']))\n"
        "assert not {'fsspec', 's3fs', 'boto3', 'aiohttp'} & {*sys.modules}\n"
    )
    paths = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "src")])
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), str(tmp_path / "out")],
        env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "a").read_text().startswith("35")
