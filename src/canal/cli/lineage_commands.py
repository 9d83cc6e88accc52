"""lineage, impact, diff, who: where a version comes from, and what came of what."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from canal.cli.parsing import AsJson, Root, note, show_result

if TYPE_CHECKING:
    from canal.app.project import Project

Cell = Annotated[str | None, typer.Option(help="One cell: SOURCE:NAME, as versions know it.")]


def add_to(app: typer.Typer) -> None:
    """Add this module's commands to the command line."""
    example = "Example: canal"
    app.command(epilog=f"{example} lineage champion --html lineage.html    canal lineage --data pbmc3k")(
        lineage
    )
    app.command(epilog=f"{example} impact kang-ctrl")(impact)
    app.command(epilog=f"{example} diff 2 3 lab.h5ad --cells changed.csv")(diff)
    app.command(epilog=f"{example} who labelled.h5ad")(who)


def lineage(
    version: Annotated[str | None, typer.Argument(help="Number or alias: back to the raw bytes.")] = None,
    data: Annotated[
        str | None, typer.Option(help="Forward from a source, by name or SHA-256: who learned from it?")
    ] = None,
    cell: Cell = None,
    dot: Annotated[bool, typer.Option("--dot", help="Print the graph as Graphviz text.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write the graph as one offline page.")] = None,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Show where a version comes from, or which versions learned from a data set or a cell."""
    from canal.app.project import Project
    from canal.core.errors import RegistryError

    asked = [one for one in (version, data, cell) if one is not None]
    if len(asked) != 1:
        raise RegistryError("ask one thing: a version, --data NAME or --cell ID")
    if version is None:
        if dot or html is not None:
            raise RegistryError("--dot and --html draw the lineage of a version: name one")
        _forward(Project.open(root), data, cell, as_json)
        return
    from canal.app.impact import backward

    graph = backward(Project.open(root), version)
    if html is not None:
        from canal.report.lineage_page import write_lineage

        note(f"wrote {write_lineage(graph, html)}")
    if dot:
        from canal.report.lineage_tree import dot as as_dot

        sys.stdout.write(as_dot(graph))
    elif as_json:
        show_result(graph.to_json(), as_json)
    elif html is None:
        from canal.report.lineage_tree import lineage_tree

        show_result(lineage_tree(graph), as_json)


def impact(
    source: Annotated[str, typer.Argument(help="A source, by name or by the SHA-256 of its file.")],
    batch: Annotated[str | None, typer.Option(help="One batch of it, such as a donor.")] = None,
    cell: Cell = None,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """List everything that a data set, a donor or a cell touched, and the commands that learn without it."""
    from canal.app.impact import impact as found
    from canal.app.project import Project
    from canal.registry.provenance.exposure import Chosen
    from canal.report.trace_tables import impact_group

    document = found(Project.open(root), Chosen(source, batch, cell)).to_json()
    show_result(document if as_json else impact_group(document), as_json)


def diff(
    before: Annotated[str, typer.Argument(metavar="V1", help="Number or alias.")],
    after: Annotated[str, typer.Argument(metavar="V2", help="Number or alias.")],
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE.h5ad]", help="Cells that both are to label.")
    ] = None,
    cells: Annotated[
        Path | None, typer.Option(help="Write the file's cells whose label changes, as CSV.")
    ] = None,
    layer: Annotated[str, typer.Option(help="X, raw or a layer's name.")] = "X",
    values: Annotated[str, typer.Option(help="auto, counts, log1p_10k or log2p_10k.")] = "auto",
    gene_column: Annotated[str | None, typer.Option(help="var column with gene symbols.")] = None,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Show what differs between two versions, and which labels of a file change, by old and new type."""
    from canal.app.differing import diff as compared
    from canal.app.project import Project
    from canal.core.errors import RegistryError
    from canal.report.difference_tables import difference_group

    if cells is not None and file is None:
        raise RegistryError("--cells lists the cells of a file: name one")
    options = None
    if file is not None:
        from canal.annotation.options import Options

        options = Options(layer=layer, values=values, gene_column=gene_column)
    found = compared(Project.open(root), before, after, file, options, note)
    if cells is not None and found.cells is not None:
        found.cells.write(cells)
        note(f"wrote {cells}: {len(found.cells.table)} cells")
    document = found.to_json()
    show_result(document if as_json else difference_group(document), as_json)


def who(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="What `canal annotate` wrote: .h5ad, .zarr, .parquet or .csv."),
    ],
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Say which version labelled a file, when and how; and, in a project, how that version stands today."""
    from canal.app.who import who as asked
    from canal.report.cell_tables import who_group

    document = asked(file, root)
    show_result(document if as_json else who_group(document), as_json)


def _forward(project: "Project", data: str | None, cell: str | None, as_json: bool) -> None:
    from canal.app.impact import forward
    from canal.registry.provenance.exposure import Chosen
    from canal.report.trace_tables import forward_group

    document = forward(project, Chosen(source=data, cell=cell))
    show_result(document if as_json else forward_group(document), as_json)
