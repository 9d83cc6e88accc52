"""Many files in partitions: each cell has one row, whoever labels it, and its label is that of one file."""

import json
import os
import threading
from dataclasses import replace

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from canal.annotation.annotate import label_h5ad
from canal.annotation.options import Options
from canal.annotation.output import RECORDS
from canal.annotation.partitions import INDEX, PLAN, Plan, collect, label_partitions, shared_plan
from canal.annotation.records import genuine
from canal.app.partitioning import Spread
from canal.core.errors import CanalError, DataError
from tests.support.cells import gene_names, make_adata, write_adata
from tests.support.formats import write_csc, write_csr, write_mtx, write_zarr3

OPTIONS = Options(chunk_cells=4)


def cells(n=25, seed=0):
    adata = make_adata({"B": n, "NK": n - 5}, n_genes=20, seed=seed)
    adata.var_names = gene_names(20)
    return adata


@pytest.fixture
def files(tmp_path):
    made = []
    for n, write in enumerate((write_csr, write_csc, write_zarr3, write_mtx)):
        folder = tmp_path / f"in{n}"
        folder.mkdir()
        made.append(write(cells(20 + n, seed=n), folder))
    return made


def planned(annotator, files, folder, size=7, options=OPTIONS):
    return shared_plan(annotator, files, folder, options, size, {"root": None})


def origins(plan):
    return {one["path"]: {"time": "2026-01-01T00:00:00.000+00:00"} for one in plan.document["inputs"]}


def test_the_labels_are_those_of_each_file_by_itself(annotator, files, tmp_path):
    """Rows, cell names and columns, whatever the format, and however its cells are cut."""
    plan = planned(annotator, files, tmp_path / "out")
    for one in reversed(plan.partitions):
        list(label_partitions(plan, [one], annotator, OPTIONS))
    records = collect(plan, annotator, OPTIONS, origins(plan))
    for entry, said in zip(plan.document["inputs"], records, strict=True):
        path = next(one for one in files if str(one.resolve()) == entry["path"])
        alone = label_h5ad(annotator, path, OPTIONS)
        parts = [one for one in plan.partitions if one.source == path.resolve()]
        table = pd.concat(pd.read_parquet(plan.folder / one.file) for one in parts)
        assert table.index.tolist() == alone.index.tolist()
        assert table["canal_cell_type"].astype(str).tolist() == alone["canal_cell_type"].astype(str).tolist()
        pd.testing.assert_series_equal(
            table["canal_confidence"], alone["canal_confidence"], check_names=False, check_index=False
        )
        assert said["record"]["n_cells"] == len(alone)
        assert said["record"]["cell_types"] == {
            name: n for name, n in alone["canal_cell_type"].value_counts().items() if n
        } | {name: 0 for name in said["record"]["cell_types"] if name not in set(alone["canal_cell_type"])}
        assert genuine(said["record"])
    index = pd.read_parquet(plan.folder / INDEX)
    assert (index["stop"] - index["start"]).sum() == plan.n_cells
    assert len(pd.read_parquet(plan.folder)) == plan.n_cells  # plan, records and index are passed over
    written = json.loads((plan.folder / RECORDS).read_text())
    assert [one["id"] for one in written["records"]] == [one["record"]["id"] for one in records]


@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=5), cut=st.integers(1, 70), of=st.integers(1, 9)
)
def test_every_cell_is_in_one_partition_and_every_partition_in_one_share(tmp_path_factory, sizes, cut, of):
    entries = [{"path": f"/{n}", "folder": str(n), "n_cells": size} for n, size in enumerate(sizes)]
    plan = Plan(tmp_path_factory.getbasetemp(), {"inputs": entries, "cells": cut})
    rows = [(one.source, row) for one in plan.partitions for row in range(one.start, one.stop)]
    assert len(rows) == len(set(rows)) == plan.n_cells
    shares = [Spread(shard=f"{i + 1}/{of}").share for i in range(of)]
    taken = [one.number for mine, all_of in shares for one in plan.partitions if one.number % all_of == mine]
    assert sorted(taken) == [one.number for one in plan.partitions]
    assert len({one.file for one in plan.partitions}) == len(plan.partitions)


def test_processes_that_start_together_share_one_plan(annotator, files, tmp_path):
    plans, failures = [], []

    def start(order):
        try:
            plans.append(planned(annotator, order, tmp_path / "out"))
        except Exception as error:  # told below
            failures.append(error)

    threads = [threading.Thread(target=start, args=(files[n % 4 :] + files[: n % 4],)) for n in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert failures == []
    assert len({one.digest for one in plans}) == 1
    assert {path.name for path in (tmp_path / "out").iterdir()} == {PLAN}


def test_what_is_missing_damaged_or_of_another_plan_is_labelled_again(annotator, files, tmp_path):
    plan = planned(annotator, files, tmp_path / "out")
    with pytest.raises(DataError, match=r"partitions are missing \(0, 1"):
        collect(plan, annotator, OPTIONS, origins(plan))
    for one in plan.partitions:
        list(label_partitions(plan, [one], annotator, OPTIONS))
    cut, other, gone = plan.partitions[0], plan.partitions[1], plan.partitions[2]
    whole = (plan.folder / cut.file).read_bytes()
    (plan.folder / cut.file).write_bytes(whole[: len(whole) // 2])
    (plan.folder / other.file).write_bytes(whole)  # of other cells
    (plan.folder / gone.file).unlink()
    assert plan.missing() == [cut, other, gone]
    assert not (plan.folder / INDEX).exists()
    for one in plan.missing():
        list(label_partitions(plan, [one], annotator, OPTIONS))
    assert len(collect(plan, annotator, OPTIONS, origins(plan))) == len(files)


def test_a_folder_of_other_labels_is_refused_and_keeps_them(annotator, files, tmp_path):
    plan = planned(annotator, files, tmp_path / "out")
    list(label_partitions(plan, [plan.partitions[0]], annotator, OPTIONS))
    for wanted in ({"size": 8}, {"files": files[1:]}, {"options": replace(OPTIONS, min_confidence=0.5)}):
        with pytest.raises(DataError, match="another plan .it differs in (cells|inputs|options)"):
            planned(annotator, **{"files": files, "folder": tmp_path / "out", **wanted})
    assert plan.is_done(plan.partitions[0])
    again = planned(annotator, files, tmp_path / "out", 8, replace(OPTIONS, overwrite=True))
    assert again.missing() == list(again.partitions)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("my own")
    with pytest.raises(DataError, match="not made by canal"):
        planned(annotator, files, tmp_path / "mine")
    with pytest.raises(DataError, match="is named twice"):
        planned(annotator, [files[0], files[0]], tmp_path / "new")
    with pytest.raises(DataError, match="--vote needs all cells"):
        planned(annotator, files, tmp_path / "new", options=Options(vote="louvain"))
    assert not (tmp_path / "new").exists()


def test_a_file_that_changes_meanwhile_is_refused(annotator, tmp_path):
    path = write_adata(cells(), tmp_path / "cells.h5ad")
    plan = planned(annotator, [path], tmp_path / "out")
    write_adata(cells(seed=9), path)
    os.utime(path, ns=(1, 1))
    with pytest.raises(DataError, match="has changed since it was planned"):
        list(label_partitions(plan, [plan.partitions[0]], annotator, OPTIONS))
    assert plan.missing() == list(plan.partitions)


def test_files_of_one_name_have_folders_of_their_own(annotator, tmp_path):
    paths = []
    for folder in ("a", "b", "c"):
        (tmp_path / folder).mkdir()
        name = "cells-2.h5ad" if folder == "c" else "cells.h5ad"
        paths.append(write_adata(cells(), tmp_path / folder / name))
    plan = planned(annotator, paths, tmp_path / "out")
    assert [one["folder"] for one in plan.document["inputs"]] == ["cells", "cells-2", "cells-2-2"]


@pytest.mark.parametrize("shard", ["0/3", "4/3", "1/0", "3", "a/b", "1/3/5", "-1/3", ""])
def test_a_share_is_one_of_so_many(shard):
    with pytest.raises(CanalError, match="expected i/n with i from 1 to n"):
        Spread(shard=shard)


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"workers": 2}, "give --engine dask"),
        ({"scheduler": "tcp://x"}, "give --engine dask"),
        ({"engine": "dask", "shard": "1/2"}, "leave it out with --engine dask"),
        ({"engine": "dask", "scheduler": "tcp://x", "workers": 2}, "leave one out"),
    ],
)
def test_options_that_do_not_go_together_are_refused(wanted, said):
    with pytest.raises(CanalError, match=said):
        Spread(**wanted)
