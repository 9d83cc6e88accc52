"""Valid inputs of every kind, the commands that a user hands them to, and how each kind is changed."""

from __future__ import annotations

import csv
import json
import shutil
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from canal.registry.ledger.ledger import Draft, Ledger, entry_hash
from canal.registry.transfer.bundle import Content
from tests.faults import mutations
from tests.faults.mutations import Mutate, Rng, drawn
from tests.support import formats
from tests.support.bundle_files import make_bundle, remade, with_listing
from tests.support.cells import gene_names, make_adata
from tests.support.registered import OVERRIDDEN, promoted
from tests.support.registry_made import two_stages

if TYPE_CHECKING:
    from anndata import AnnData

    from canal.model.annotator import Annotator

GENES = gene_names(20)
"""Those of the model; the files have twenty others, too."""

IN, OUT, PROJECT = "in", "out", "project"
Command = Sequence[str]


@dataclass(frozen=True)
class Kind:
    """Inputs of one kind.

    Attributes
    ----------
    name : str
        The row of the table.
    share : int
        How many of fifty inputs are of it.
    seeds : tuple of str
        Valid inputs: paths below the folder of a trial.
    mutate : Mutate
        Changes one, in its place.
    commands : tuple of Command
        What it is handed to; ``IN`` stands for its path.
    """

    name: str
    share: int
    seeds: tuple[str, ...]
    mutate: Mutate
    commands: tuple[Command, ...]


def make_all(folder: Path, annotator: Annotator) -> None:
    """Write every valid input, and a project that holds two versions, below ``folder``."""
    from ruamel.yaml import YAML

    made = two_stages(folder / PROJECT)
    params_file = folder / PROJECT / "params.yaml"
    YAML().dump(json.loads(params_file.read_text()), params_file)
    store = made.project.store
    versions = [*store.versions(made.project.config.registry.backbone), *store.versions()]
    ledger = Ledger(folder / PROJECT / "ledger.jsonl")
    for one in versions:
        moved = {alias: one.number for alias in one.aliases if alias == "champion"}
        kind = "promote" if moved else "register"
        ledger.append(ledger.next(Draft("register", one.model, one.number, one.key, one.record, "sync")))
        if moved:
            draft = Draft(
                kind, one.model, one.number, one.key, one.record, "A. Person", "reviewed", moved,
                promoted(one.number, rulings=OVERRIDDEN),
            )  # fmt: skip
            ledger.append(ledger.next(draft))
    champion = next(one for one in versions if "champion" in one.aliases)
    cells = folder / "cells"
    cells.mkdir()
    _write_cells(cells)
    _write_labelled(cells, annotator, {"model": champion.model, "version": 1, "key": champion.key})
    _write_tables(cells)
    (folder / "bundle").mkdir()
    make_bundle(folder / "bundle")
    shutil.rmtree(folder / "bundle" / "made")


def _cells() -> AnnData:
    cells = make_adata({"B": 35, "NK": 35}, n_genes=40, batches=("d1", "d2"))
    cells.var_names = [*GENES, *(f"OTHER{i}" for i in range(20))]
    return cells


def _write_cells(folder: Path) -> None:
    cells = _cells()
    for write in (*formats.WRITERS,):
        write(cells, folder)
    rich = cells.copy()
    rich.layers["counts"] = rich.X.copy()
    rich.raw = rich.copy()
    rich.obs["cell_type"] = rich.obs["cell_type"].astype("category")
    rich.obs["depth"] = np.asarray(rich.X.sum(axis=1)).ravel()
    rich.obs["passed"] = rich.obs["depth"] > 0
    rich.var["feature_types"] = "Gene Expression"
    rich.obsm["X_pca"] = np.zeros((rich.n_obs, 2))
    rich.uns["notes"] = {"a": {"b": np.arange(3)}, "colors": ["red", "blue"]}
    rich.write_h5ad(folder / "rich.h5ad")


def _write_labelled(folder: Path, annotator: Annotator, model: dict[str, Any]) -> None:
    from canal.annotation.annotate import annotate_h5ad
    from canal.annotation.labelled import open_labelled
    from canal.annotation.novel import GroupingOptions, group_novel
    from canal.annotation.options import Options
    from canal.annotation.sheet import write_sheet
    from canal.core.digests import file_digest

    for source, target in (("csr.h5ad", "labelled.h5ad"), ("three.zarr", "labelled.zarr")):
        annotate_h5ad(annotator, folder / source, folder / target, Options(model_name=model))
    path, options = folder / "labelled.h5ad", GroupingOptions(min_cells=3, resolution=0.5)
    with open_labelled(path) as labelled:
        found = group_novel(annotator, labelled, options, lambda said: None)
        write_sheet(folder / "sheet.csv", labelled, file_digest(path), found, options)
    with (folder / "sheet.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    for number, row in enumerate(rows):
        row["cell_type"] = ("Mast", "Kupffer", "")[number % 3]
    with (folder / "sheet.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _write_tables(folder: Path) -> None:
    """Cells whose genes have other names, each beside the table that leads to the model's."""
    ids = {name: f"ENSG{i:011d}" for i, name in enumerate(GENES)}
    old = {name: f"OLD{i}" for i, name in enumerate(GENES)}
    mouse = {name: name.capitalize() for name in GENES}
    for table, names in (("ids.tsv", ids), ("old.tsv", old), ("mouse.csv", mouse)):
        cells = _cells()
        cells.var_names = [names.get(name, name) for name in cells.var_names]
        cells.write_h5ad(folder / f"{Path(table).stem}.h5ad")
        comma = "," if table.endswith(".csv") else "\t"
        (folder / table).write_text("".join(f"{new}{comma}{name}\n" for name, new in names.items()))


# --- how kinds are changed that no general mutation fits ------------------------------------------------


def sheet(path: Path, rng: Rng) -> None:
    """Change a sheet, or the cells beside it."""
    if rng.random() < 0.5:
        mutations.text_file(path, rng)
    else:
        mutations.json_file(path.with_suffix(".cells.json"), rng)


def params(path: Path, rng: Rng) -> None:
    """Change params.yaml as text, or one value of it."""
    from ruamel.yaml import YAML

    if rng.random() < 0.5:
        mutations.text_file(path, rng)
    else:
        document = json.loads(json.dumps(YAML(typ="safe").load(path)))
        path.write_text(json.dumps(mutations.json_value(document, rng), indent=1))


def ledger(path: Path, rng: Rng) -> None:
    """Change the ledger's text, or one value of an entry; whoever may write the file may hash it anew."""
    if rng.random() < 0.4:
        mutations.text_file(path, rng)
        return
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    place, previous = int(rng.integers(len(entries))), "0" * 64
    entries[place] = mutations.json_value(entries[place], rng)
    anew = rng.random() < 0.7
    for number, entry in enumerate(entries):
        if anew and number >= place and isinstance(entry, dict):
            entry["previous"] = previous
            try:
                entry["hash"] = entry_hash(entry)
            except ValueError:
                break
        previous = entry.get("hash", "") if isinstance(entry, dict) else ""
    path.write_text("".join(json.dumps(one, sort_keys=True, separators=(",", ":")) + "\n" for one in entries))


def bundle(path: Path, rng: Rng) -> None:
    """Change a bundle's bytes, or one of its documents with all digests that name it."""
    if rng.random() < 0.3:
        mutations.flip(path, rng)
        return
    changed = path.with_name("changed.zip")

    def change(members: Any) -> Any:
        texts = (".json", ".jsonl", ".csv")
        chosen = [number for number, (info, _) in enumerate(members) if info.filename.endswith(texts)]
        number = drawn(rng, chosen)
        info, content = members[number]
        try:
            content = json.dumps(mutations.json_value(json.loads(content), rng)).encode()
        except ValueError:
            content = mutations.text(content, rng)
        content = content[:100_000]
        members[number] = (zipfile.ZipInfo(info.filename, info.date_time), content)
        if number == 0:
            return members
        digest = sha256(content).hexdigest()
        return with_listing(
            members, lambda files: files.update({info.filename: Content(len(content), digest)})
        )

    remade(path, changed, change)
    changed.replace(path)


# --- kinds ----------------------------------------------------------------------------------------------


def _annotate(*more: str, target: str = "labels.csv") -> Command:
    return ("annotate", IN, "-o", f"{OUT}/{target}", "--threads", "1", *more)


_STAGE = ("stage", "add", "fresh", "--file", IN, "--values", "counts", "--batch", "batch", "--fixed")
_MAP = ("stage", "map", IN, "--values", "counts", "-o", f"{OUT}/map.csv")
_READ = (("who", IN), _annotate(), _annotate("--probabilities", target="out.parquet"))
_H5AD = (
    *(_annotate(), _annotate(target="out.h5ad"), _annotate("--vote", "cell_type", target="out.h5ad")),
    *(_annotate("--vote", "leiden"), _annotate("--values", "counts", "--force")),
    *(("validate", IN, "--stage", "second"), _STAGE, ("who", IN), _MAP),
)
_LABELLED = (
    *(("who", IN), ("novel", IN, "-o", f"{OUT}/novel.csv", "--min-cells", "3"), _annotate(target="out.h5ad")),
    ("explain", IN, "-o", f"{OUT}/genes.csv"),
)
_RICH = (
    *(
        _annotate("--layer", "counts", target="out.h5ad"),
        _annotate("--use-raw"),
        _annotate(target="out.h5ad"),
    ),
    *(_STAGE, (*_STAGE, "--layer", "counts"), ("validate", IN, "--stage", "second")),
)
_TABLE = {
    "ids": _annotate("--gene-map", "cells/ids.tsv"),
    "old": _annotate("--aliases", "cells/old.tsv"),
    "mouse": _annotate("--species", "mouse", "--orthologs", "cells/mouse.csv"),
}
_PROJECT = (
    ("versions",),
    ("show", "2"),
    ("lineage", "2"),
    ("stage", "relearn", "second"),
    ("impact", "first"),
)
_LEDGER = (
    *(("ledger",), ("audit",), ("lineage", "2"), ("versions",), ("show", "1")),
    ("rollback", "--by", "A", "--why", "b"),
)


def _cells_of(*names: str) -> tuple[str, ...]:
    return tuple(f"cells/{name}" for name in names)


def _table(name: str) -> Callable[[Path, Rng], None]:
    return lambda path, rng: mutations.text_file(path.parent / name, rng)


_zarr = mutations.in_folder(mutations.zarr_file)
_mtx = mutations.in_folder(mutations.mtx_file)
KINDS = (
    Kind("h5ad", 9, _cells_of("csr.h5ad", "csc.h5ad", "dense.h5ad"), mutations.hdf5, _H5AD),
    Kind("h5ad, labelled", 4, _cells_of("labelled.h5ad"), mutations.hdf5, _LABELLED),
    Kind("h5ad, raw and layers", 4, _cells_of("rich.h5ad"), mutations.hdf5, _RICH),
    Kind("zarr 2", 4, _cells_of("two.zarr"), _zarr, (*_READ, _annotate(target="out.zarr"))),
    Kind(
        "zarr 3", 4, _cells_of("three.zarr", "labelled.zarr"), _zarr, (*_READ, _annotate(target="out.zarr"))
    ),
    Kind(
        "10x .h5", 4, _cells_of("v3.h5", "v2.h5"), mutations.hdf5, (*_READ[1:], _annotate(target="out.h5ad"))
    ),
    Kind("10x folder", 6, _cells_of("mtx", "mtx_gz"), _mtx, (*_READ[1:], _annotate(target="out.h5ad"))),
    Kind("loom", 3, _cells_of("cells.loom"), mutations.hdf5, (*_READ[1:], _annotate(target="out.h5ad"))),
    Kind("label sheet", 3, _cells_of("sheet.csv"), sheet, (("stage", "add", "fresh", "--from-novel", IN),)),
    Kind("gene map", 1, _cells_of("ids.h5ad"), _table("ids.tsv"), (_TABLE["ids"],)),
    Kind("aliases", 1, _cells_of("old.h5ad"), _table("old.tsv"), (_TABLE["old"],)),
    Kind("orthologs", 1, _cells_of("mouse.h5ad"), _table("mouse.csv"), (_TABLE["mouse"],)),
    Kind("params.yaml", 3, (f"{PROJECT}/params.yaml",), params, _PROJECT),
    Kind("ledger.jsonl", 2, (f"{PROJECT}/ledger.jsonl",), ledger, _LEDGER),
    Kind("bundle", 1, ("bundle/bundle.zip",), bundle, (("import", IN),)),
)
