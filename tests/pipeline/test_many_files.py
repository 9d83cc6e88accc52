"""`canal annotate` of many files, as job arrays and Dask run it: whoever is killed, each cell has one row."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pandas as pd
import psutil
import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

from canal.cli import app
from tests.support.cells import make_adata, write_adata
from tests.support.warm import REPOSITORY

pytestmark = pytest.mark.pipeline

CUT = ("--partition-cells", "20", "--chunk-cells", "10")


@pytest.fixture(scope="module")
def atlas(tmp_path_factory):
    """Three files of cells."""
    folder = tmp_path_factory.mktemp("atlas")
    sizes = ({"B": 40, "T": 30}, {"T": 25, "Mono": 30}, {"DC": 20, "NK": 31})
    return [
        write_adata(make_adata(types, seed=40 + n), folder / f"donor{n}.h5ad")
        for n, types in enumerate(sizes)
    ]


@pytest.fixture(scope="module")
def by_itself(learned, atlas, tmp_path_factory):
    """The labels of each file, labelled by itself."""
    line, _ = learned
    folder = tmp_path_factory.mktemp("alone")
    for path in atlas:
        line.canal("annotate", str(path), "-o", str(folder / f"{path.stem}.parquet"))
    return {path.stem: pd.read_parquet(folder / f"{path.stem}.parquet") for path in atlas}


def require_same(folder, by_itself):
    """Each cell of each file has one row, with the label that it has where its file is labelled by itself."""
    for name, alone in by_itself.items():
        parts = sorted((folder / name).glob("*.parquet"))
        table = pd.concat(pd.read_parquet(one) for one in parts)
        assert table.index.tolist() == alone.index.tolist()
        assert table["canal_cell_type"].astype(str).tolist() == alone["canal_cell_type"].astype(str).tolist()
    left = {one.name for one in folder.rglob("*") if one.is_file() and one.name.startswith(".")}
    assert left == set()


def variables(line, **more):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PATH": path, "PYTHONPATH": str(REPOSITORY / "src")} | more


def test_an_array_of_jobs_labels_and_is_put_together(line, atlas, by_itself, tmp_path):
    """As SLURM runs the example's script: each job a process, one of them killed and submitted again."""
    out = tmp_path / "labels"
    script = [str(REPOSITORY / "examples" / "slurm_annotate.sh"), str(line.root), str(out), *map(str, atlas)]

    def submit(task):
        about = {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_CPUS_PER_TASK": "1"}
        return subprocess.Popen(
            ["bash", *script, *CUT], env=variables(line, **about), stderr=subprocess.PIPE, text=True
        )

    def collect(*more):
        return CliRunner().invoke(app, ["collect", str(out), "--root", str(line.root), *more])

    one, other = submit(1), submit(2)
    while other.poll() is None and not list(out.glob("*/part-*.parquet")):
        time.sleep(0.02)
    other.kill()
    assert one.wait() == 0, one.stderr.read()
    early = collect()
    assert early.exit_code == 1
    assert "partitions are missing" in str(early.exception)
    assert submit(2).wait() == 0
    done = collect("--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert {name: one["n_cells"] for name, one in found["inputs"].items()} == {
        name: len(alone) for name, alone in by_itself.items()
    }
    require_same(out, by_itself)
    logged = [json.loads(one) for one in line.project().layout.annotations.read_text().splitlines()]
    records = json.loads((out / "_records.json").read_text())["records"]
    assert [one["id"] for one in logged][-len(atlas) :] == [one["id"] for one in records]
    assert {one["input"]["name"] for one in records} == {path.name for path in atlas}
    asked = CliRunner().invoke(
        app, ["who", str(next(out.glob("*/part-*.parquet"))), "--root", str(line.root)]
    )
    assert f"is a partition of {out}" in str(asked.exception)


def test_the_kubernetes_job_names_the_shares_of_its_index(line, atlas, tmp_path):
    job = YAML(typ="safe").load(REPOSITORY / "examples" / "kubernetes_annotate.yaml")
    container = job["spec"]["template"]["spec"]["containers"][0]
    assert job["spec"]["completions"] == 8
    (tmp_path / "atlas").mkdir()
    (tmp_path / "atlas" / "cells").symlink_to(atlas[0].parent)
    (tmp_path / "atlas" / "project").symlink_to(line.root)
    command = container["args"][0].replace("/atlas/", f"{tmp_path}/atlas/")
    assert command.count("/8 ") == 1
    done = subprocess.run(
        [*container["command"], f"{command} {' '.join(CUT)} --json"],
        env=variables(line, JOB_COMPLETION_INDEX="7"),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["partitions"], found["labelled"]) == (10, 1)  # the eighth of ten
    assert found["missing"] == 9


def kill_workers(times, stop, out):
    """Kill a worker of this process again and again, once they work; return how many were killed."""
    killed = 0
    while not stop.is_set() and not list(out.glob("*/part-*.parquet")):
        stop.wait(0.02)
    while killed < times and not stop.is_set():
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):  # it has ended by itself
                if "spawn_main" in " ".join(child.cmdline()):
                    child.kill()
                    killed += 1
                    break
        stop.wait(0.3)
    return killed


@pytest.mark.chaos
@pytest.mark.parametrize("kills", [2, 20])
def test_dask_labels_each_cell_once_whoever_is_killed(line, atlas, by_itself, tmp_path, kills):
    out, stop, killed = tmp_path / "labels", threading.Event(), []
    killer = threading.Thread(target=lambda: killed.append(kill_workers(kills, stop, out)))
    killer.start()
    try:
        said = line.canal(
            "annotate", *map(str, atlas), "-o", str(out), "--engine", "dask", "--workers", "2",
            "--partition-cells", "3" if kills > 2 else "20", "--json",
        )  # fmt: skip
    finally:
        stop.set()
        killer.join()
    assert json.loads(said)["missing"] == 0
    assert killed[0] > 0
    require_same(out, by_itself)


def test_what_cannot_be_done_is_said(line, atlas, tmp_path):
    def refused(*arguments):
        done = CliRunner().invoke(app, [*arguments, "--root", str(line.root)])
        assert done.exit_code == 1, done.output
        return str(done.exception or done.output)

    files = [str(one) for one in atlas]
    nowhere = ("--engine", "dask", "--scheduler", "tcp://127.0.0.1:9")
    assert "no Dask scheduler answers there" in refused(
        "annotate", *files, "-o", str(tmp_path / "a"), *nowhere
    )
    assert "holds no _plan.json" in refused("collect", str(tmp_path))
    assert "give a folder's, such as" in refused("annotate", *files, "-o", str(tmp_path / "all.csv"))
    broken = tmp_path / "broken.h5ad"
    broken.write_bytes(b"no cells")
    assert "broken.h5ad" in refused("annotate", files[0], str(broken), "-o", str(tmp_path / "b"))
    assert not (tmp_path / "b").exists()
