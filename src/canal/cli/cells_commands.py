"""novel, explain: looking into a labelled file with the version that labelled it."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from canal.cli.parsing import AsJson, Root, note, show_result

File = Annotated[
    Path, typer.Argument(metavar="LABELLED.h5ad", help="What `canal annotate` wrote; .zarr, too.")
]
Seed = Annotated[int, typer.Option(min=0, help="Of whatever is drawn.")]
GeneMap = Annotated[Path | None, typer.Option(help="The table the file was labelled with, if any.")]
Aliases = Annotated[Path | None, typer.Option(help="The table the file was labelled with, if any.")]
Orthologs = Annotated[Path | None, typer.Option(help="The table the file was labelled with, if any.")]
Chunk = Annotated[int, typer.Option(min=1, help="Cells held in memory at a time.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]


def add_to(app: typer.Typer) -> None:
    """Add this module's commands to the command line."""
    app.command(epilog="Example: canal novel labelled.h5ad -o novel.csv --batch donor")(novel)
    app.command(epilog="Example: canal explain labelled.h5ad -o genes.csv --top 10")(explain)


def novel(
    file: File,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The labelling sheet (.csv), to be filled in.")
    ] = None,
    batch: Annotated[
        str | None, typer.Option(help="obs column with batches; by default batch, donor, sample or the like.")
    ] = None,
    min_cells: Annotated[int, typer.Option(min=1, help="Smaller groups are left out.")] = 10,
    resolution: Annotated[float, typer.Option(min=0.0, help="Higher: more and smaller groups.")] = 1.0,
    top: Annotated[int, typer.Option(min=1, help="Genes shown of a group.")] = 10,
    seed: Seed = 0,
    gene_map: GeneMap = None,
    aliases: Aliases = None,
    orthologs: Orthologs = None,
    chunk_cells: Chunk = 2000,
    device: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option(help="auto is a GPU where there is one.")
    ] = "auto",
    overwrite: Overwrite = False,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Group the novel cells of a labelled file, and write a sheet in which a person names the groups."""
    from canal.annotation.clusters import Machine
    from canal.annotation.naming import Naming
    from canal.annotation.novel import Wishes
    from canal.app.discovering import novel as find

    naming = Naming(orthologs=orthologs, aliases=aliases, gene_map=gene_map)
    wishes = Wishes(batch, min_cells, resolution, seed, top, naming, Machine(chunk_cells, device))
    found = find(file, output, wishes, overwrite, note, root)
    if as_json:
        show_result(found.to_json(), as_json)
    else:
        from canal.report.cell_tables import novel_table

        show_result(novel_table(found.to_json()), as_json=False)
    if output is not None:
        note(
            f"wrote {output}: fill in the column cell_type of the groups that you know, then "
            f"`canal stage add NAME --from-novel {output}`"
        )


def explain(
    file: File,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="A CSV file of types and genes.")
    ] = None,
    cells: Annotated[int, typer.Option(min=1, help="Cells of a type that are looked at, at most.")] = 100,
    top: Annotated[int, typer.Option(min=1, help="Genes told of a type.")] = 20,
    seed: Seed = 0,
    gene_map: GeneMap = None,
    aliases: Aliases = None,
    orthologs: Orthologs = None,
    chunk_cells: Chunk = 2000,
    overwrite: Overwrite = False,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Show for each type in a labelled file the genes that carry it: gradient times input, averaged."""
    from canal.annotation.markers import Asked
    from canal.annotation.naming import Naming
    from canal.app.discovering import explain as look

    naming = Naming(orthologs=orthologs, aliases=aliases, gene_map=gene_map)
    asked = Asked(cells, top, seed, naming, chunk_cells)
    found = [one.to_json() for one in look(file, output, asked, overwrite, note, root)]
    if as_json:
        show_result(found, as_json)
    else:
        from canal.report.cell_tables import explanation_table

        show_result(explanation_table(found), as_json=False)
    if output is not None:
        note(f"wrote {output}")
