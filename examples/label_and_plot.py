"""Label the cells of an h5ad file with a model's file, and draw what came of it. No project is needed.

    python examples/label_and_plot.py cells.h5ad --model atlas.zip --out figures
    python examples/label_and_plot.py cells.h5ad --model atlas.zip --own-labels leiden --out figures

Writes into the folder --out: labelled.h5ad (the cells with canal's columns), umap.png and, with --own-labels,
dotplot.png: your own labels against canal's.
"""

import argparse
import sys
from pathlib import Path

import anndata

import canal


def label_and_plot(cells: Path, model: str, out: Path, own_labels: str | None, effort: str) -> None:
    """Label the cells of a file and draw them into a folder."""
    labelled = out / "labelled.h5ad"
    if labelled.exists():
        raise FileExistsError(f"{labelled} exists already: name another folder with --out")
    adata = anndata.read_h5ad(cells)
    if own_labels is not None and own_labels not in adata.obs:
        raise KeyError(f"obs has no column {own_labels!r}; it has {', '.join(map(str, adata.obs))}")
    # latent: the model's embedding of the cells, in adata.obsm["X_canal"]
    options = canal.Options(latent=True, effort="fast" if effort == "fast" else "full")
    table = canal.annotate(adata, model, write=True, options=options)  # columns canal_... in adata.obs
    for cell_type, number in table["canal_cell_type"].value_counts().items():
        print(f"{number:>7,}  {cell_type}")

    out.mkdir(parents=True, exist_ok=True)
    adata.write_h5ad(labelled)
    if "X_umap" not in adata.obsm:
        adata.obsm["X_umap"] = canal.pl.layout(adata)
        adata.write_h5ad(labelled)
    canal.pl.umap(adata, save=out / "umap.png")
    if own_labels is not None:
        canal.pl.dotplot(adata, own_labels, save=out / "dotplot.png")


def main() -> int:
    """Read the arguments; a refusal of canal's is one message and exit code 1."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cells", type=Path, help="h5ad file with counts or log-normalised values")
    parser.add_argument("--model", required=True, help="file of `canal export`, or a name of `canal models`")
    parser.add_argument("--own-labels", help="column of obs with your own labels or clusters")
    parser.add_argument("--out", type=Path, default=Path("figures"), help="folder to write into")
    parser.add_argument("--effort", choices=("full", "fast"), default="full", help="fast: sums, no PyTorch")
    given = parser.parse_args()
    try:
        label_and_plot(given.cells, given.model, given.out, given.own_labels, given.effort)
    except (canal.CanalError, OSError, KeyError) as error:
        print(f"label_and_plot: {error}", file=sys.stderr)
        return 1
    print(f"wrote {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
