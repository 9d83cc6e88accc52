"""Commands about versions: promote, compare, rollback, retire, lineage, unlearn, erase, merge, share."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from canal import app
from canal.cli.parsing import (
    AsJson,
    By,
    DryRun,
    KeyFile,
    Root,
    Why,
    examples,
    note,
    open_project,
    show_result,
    signer,
)
from canal.core.errors import PolicyError, RegistryError
from canal.report.cell_tables import erased_group, forward_group, impact_group, unlearned_group
from canal.report.exchange_tables import merged_group, shared_group
from canal.report.lineage_page import dot as as_dot
from canal.report.lineage_page import lineage_tree, write_lineage
from canal.report.registry_tables import comparison_table, rulings_table

if TYPE_CHECKING:
    from collections.abc import Mapping

OneBatch = Annotated[str | None, typer.Option(help="One batch of it, such as a donor.")]
NamedCells = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Text file with a name of a cell on each line.")
]


def add_to(to: typer.Typer) -> None:
    """Add this module's commands to the command line."""
    to.command(
        epilog=examples(
            "canal promote candidate --dry-run",
            'canal promote candidate --by "A. Person" --why "lung atlas, reviewed"',
        )
    )(promote)
    to.command(epilog=examples("canal compare candidate --file lab.h5ad --stage lung"))(compare)
    to.command(epilog=examples('canal rollback --by "A. Person" --why "T cells of donor 4 look wrong"'))(
        rollback
    )
    to.command(epilog=examples('canal retire 2 --by "A. Person" --why "donor withdrew consent"'))(retire)
    to.command(
        epilog=examples("canal lineage champion --html lineage.html", "canal lineage --data pbmc3k --json")
    )(lineage)
    to.command(epilog=examples("canal impact kang-ctrl", "canal impact kang-ctrl --batch 1015"))(impact)
    withdrawn = '--batch 1015 --by "A. Person" --why "consent withdrawn"'
    to.command(epilog=examples(f"canal unlearn kang-ctrl {withdrawn}"))(unlearn)
    to.command(epilog=examples(f"canal erase kang-ctrl {withdrawn} --dry-run"))(erase)
    to.command(epilog=examples('canal merge champion site-b.canal --by "A. Person" --why "both hospitals"'))(
        merge
    )
    to.command(epilog=examples("canal share champion -o site-b.canal"))(share)


def promote(
    version: Annotated[str, typer.Argument(help="Number or alias.")],
    by: By = "",
    why: Why = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Judge only; change nothing.")] = False,
    override: Annotated[
        list[str] | None,
        typer.Option(help="Let a rule (or a pattern of rules) pass though it fails; on record."),
    ] = None,
    too_few: Annotated[
        str,
        typer.Option(
            metavar="REASON",
            help="Let stages and types with too few test cells to judge pass, for this reason; on record.",
        ),
    ] = "",
    sign: KeyFile = None,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Make a version the champion if it passes the policy.

    Exit code 1 when a rule fails. The page of the decision goes into report/: who serves, or what would have
    to change; `canal report` before the promotion puts genes and a map of cells on it.
    """
    decision = None if dry_run else app.promoting.Decision(by, why, signer(sign, by))
    project = open_project(root)
    judgement = app.promoting.judge_version(project, version, override or (), too_few)
    document = judgement.to_json()
    if decision is None:
        show_result(document if as_json else rulings_table(document), as_json)
        if not judgement.passed:
            raise typer.Exit(1)
        return
    if not as_json:
        show_result(rulings_table(document), as_json=False)
    try:
        entry = app.promoting.promote(project, judgement, decision)
    except PolicyError:
        page = _page(project, judgement)
        if as_json:
            show_result({**document, "page": page}, as_json)
        raise
    page = _page(project, judgement)
    if as_json:
        show_result({**document, "entry": entry.document, "page": page}, as_json)
    note(
        _ledger_message(
            f"version {judgement.version.number} ({judgement.version.stage}) is the champion", entry.seq
        )
    )


def _page(project: "app.promoting.Project", judgement: "app.promoting.Judgement") -> str | None:
    """Write the page of a decision, say where it is, and return its path."""
    page = app.reviewing.write_decision(project, judgement)
    if page is not None:
        note(f"the page of this decision: {page}")
    return None if page is None else str(page)


def compare(
    version: Annotated[str, typer.Argument(help="Number or alias.")],
    against: Annotated[str, typer.Option("--with", help="The other version.")] = "champion",
    file: Annotated[Path | None, typer.Option(help="Score both on this labelled h5ad file, too.")] = None,
    stage: Annotated[
        str | None, typer.Option(help="Whose declaration to read the file with; by default the last.")
    ] = None,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Score a version and the champion on the same cells.

    With intervals, McNemar's test and the types lost.
    """
    document = app.promoting.compare(open_project(root), version, against, file, stage).to_json()
    show_result(document if as_json else comparison_table(document), as_json)


def rollback(
    by: By,
    why: Why,
    to: Annotated[
        str | None, typer.Option(help="Number or alias; by default the champion before this one.")
    ] = None,
    dry_run: DryRun = False,
    sign: KeyFile = None,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Make the previous champion, or another version, serve again.

    Any ready version may be named; the ledger records who and why.
    """
    decision = app.promoting.Decision(by, why, signer(sign, by))
    if dry_run:
        _plan_move(root, "rollback", to, decision, as_json)
        return
    entry = app.promoting.rollback(open_project(root), to, decision)
    if as_json:
        show_result(_moved(entry.kind, entry.version, entry.aliases, entry.document), as_json)
    note(_ledger_message(f"version {entry.version} is the champion again", entry.seq))
    if (left := entry.aliases.get("previous")) is not None:
        note(f"version {left} is `previous` now: `canal rollback` would bring it back")
    note("a new stage is learned on the last one all the same, unless `canal stage add` names a --parent")


def retire(
    version: Annotated[str, typer.Argument(help="Number or alias.")],
    by: By,
    why: Why,
    dry_run: DryRun = False,
    sign: KeyFile = None,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Retire a version: it never serves again; its artifacts are kept."""
    decision = app.promoting.Decision(by, why, signer(sign, by))
    if dry_run:
        _plan_move(root, "retire", version, decision, as_json)
        return
    entry = app.promoting.retire(open_project(root), version, decision)
    if as_json:
        show_result(_moved(entry.kind, entry.version, entry.aliases, entry.document), as_json)
    note(_ledger_message(f"version {entry.version} is retired", entry.seq))


def _plan_move(
    root: Path | None,
    action: Literal["rollback", "retire"],
    wanted: str | None,
    decision: "app.promoting.Decision",
    as_json: bool,
) -> None:
    """Say what a decision would record; nothing is moved."""
    draft = app.promoting.planned_move(open_project(root), action, wanted, decision)
    if as_json:
        show_result(_moved(draft.kind, draft.version, draft.aliases, None), as_json)
        return
    moves = ", ".join(
        f"{alias} would be taken away" if number is None else f"{alias} would point to version {number}"
        for alias, number in draft.aliases.items()
    )
    note(f"{draft.kind} of version {draft.version}: {moves or 'no alias would move'}; nothing was changed")


def _moved(
    kind: str, version: int, aliases: "Mapping[str, int | None]", entry: dict[str, Any] | None
) -> dict[str, Any]:
    """Return a move as a JSON document; without an entry of the ledger it was not made (``--dry-run``)."""
    return {
        "kind": kind, "version": version, "aliases": dict(aliases), "dry_run": entry is None, "entry": entry,
    }  # fmt: skip


def _ledger_message(what: str, seq: int) -> str:
    return f"{what}; entry {seq} of ledger.jsonl says who and why (commit it: git add ledger.jsonl)"


Cell = Annotated[str | None, typer.Option(help="One cell: SOURCE:NAME, as versions know it.")]


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
    """Show what a version learned from, or who learned from a cell.

    Back from a version to its data; forward from a data set (--data) or a cell (--cell) to versions.
    """
    given = [one for one in (version, data, cell) if one is not None]
    if len(given) != 1:
        raise RegistryError("give exactly one of: a version, --data NAME, --cell ID")
    if version is None:
        if dot or html is not None:
            raise RegistryError("--dot and --html draw the lineage of a version: name a version")
        document = app.versions.forward(open_project(root), app.versions.CellQuery(source=data, cell=cell))
        show_result(document if as_json else forward_group(document), as_json)
        return
    graph = app.versions.backward(open_project(root), version)
    if html is not None:
        note(f"wrote {write_lineage(graph, html)}")
    if dot:
        sys.stdout.write(as_dot(graph))
    elif as_json:
        show_result(graph.to_json(), as_json)
    elif html is None:
        show_result(lineage_tree(graph), as_json)


def impact(
    source: Annotated[str, typer.Argument(help="A source, by name or by the SHA-256 of its file.")],
    batch: OneBatch = None,
    cell: Cell = None,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """List what learned from a data set, a donor or a cell.

    With the commands that learn again without it.
    """
    document = app.impact.impact(open_project(root), app.impact.CellQuery(source, batch, cell)).to_json()
    show_result(document if as_json else impact_group(document), as_json)


def unlearn(
    source: Annotated[str, typer.Argument(help="The source of params.yaml that the cells are of.")],
    by: By,
    why: Why,
    batch: OneBatch = None,
    cells: NamedCells = None,
    retire: Annotated[
        bool, typer.Option("--retire", help="Also retire the versions that hold the cells, but the champion.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be made; change nothing.")
    ] = False,
    sign: KeyFile = None,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Register versions without a source, a batch or some cells.

    Made from the sums of what remains; nothing is trained.
    """
    decision = app.unlearning.Decision(by, why, signer(sign, by))
    withdrawal = app.unlearning.Withdrawal(source, batch, app.unlearning.read_names_of_cells(cells))
    project = open_project(root)
    made = app.unlearning.unlearn(project, withdrawal, decision, note, dry_run)
    retired = app.unlearning.retire_holding(project, made, decision) if retire and not dry_run else ()
    document = made.to_json() | {"retired": list(retired)}
    show_result(document if as_json else unlearned_group(document, dry_run), as_json)


def erase(
    source: Annotated[str, typer.Argument(help="The source that the cells are of.")],
    by: By,
    why: Why,
    batch: OneBatch = None,
    cells: NamedCells = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List every file that would go, and the token; change nothing.")
    ] = False,
    confirm: Annotated[
        str | None, typer.Option(metavar="TOKEN", help="The token of the plan that --dry-run showed.")
    ] = None,
    remote: Annotated[
        bool, typer.Option("--remote", help="Also remove the objects from DVC's default remote.")
    ] = False,
    sign: KeyFile = None,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Remove the bytes of cells from all that canal knows.

    Refused while a version that is to stay has learned from them.
    """
    if batch is not None and cells is not None:
        raise typer.BadParameter("give --batch or --cells, as to canal unlearn")
    if dry_run == (confirm is not None):
        raise typer.BadParameter("look at the plan with --dry-run, then confirm it with --confirm TOKEN")
    erasing = app.erasing
    decision = erasing.Decision(by, why, signer(sign, by))
    withdrawal = erasing.Withdrawal(source, batch, erasing.read_names_of_cells(cells))
    confirmation = erasing.Confirmation(None if dry_run else confirm, remote)
    document = erasing.erase(open_project(root), withdrawal, decision, confirmation, note).to_json()
    show_result(document if as_json else erased_group(document), as_json)


OverlapKeyFile = Annotated[
    Path | None,
    typer.Option("--overlap-key", metavar="FILE", help="Secret of the sites, to find common cells."),
]


def merge(
    first: Annotated[str, typer.Argument(metavar="A", help="Number or alias.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Number or alias, or a file of canal share.")],
    by: By,
    why: Why,
    names: Annotated[
        Path | None, typer.Option("--map", metavar="FILE", help="Table: their cell type, ours (CSV or YAML).")
    ] = None,
    same: Annotated[
        list[str] | None, typer.Option(help="A type that is the same though its centroids are far apart.")
    ] = None,
    network: Annotated[
        str | None, typer.Option(metavar="A", help="Keep this version's network beside the sums.")
    ] = None,
    overlap: Annotated[str, typer.Option(help="Cells of both: refuse, or count once.")] = "refuse",
    overlap_key: OverlapKeyFile = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be made; change nothing.")
    ] = False,
    sign: KeyFile = None,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Register a version with the sums of two lineages.

    The same as if one lineage had learned from the cells of both.
    """
    joining = app.joining_lineages
    decision = joining.Decision(by, why, signer(sign, by))
    key = None if overlap_key is None else joining.OverlapKey.read(overlap_key)
    wanted = joining.Joining(first, second, names, tuple(same or ()), joining.Overlap(overlap, key), network)
    document = joining.merge(open_project(root), wanted, decision, note, dry_run).to_json()
    show_result(document if as_json else merged_group(document), as_json)


def share(
    version: Annotated[str, typer.Argument(help="Number or alias.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="File to write.")],
    min_cells: Annotated[
        int | None, typer.Option(help="Leave out types of fewer cells; by default share.min_cells.")
    ] = None,
    overlap_key: OverlapKeyFile = None,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Write a version's sums, without any cell, for canal merge.

    One file with basis, labels and sums.
    """
    document = app.sharing.share(open_project(root), version, output, min_cells, overlap_key).to_json()
    show_result(document if as_json else shared_group(document), as_json)
