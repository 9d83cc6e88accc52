"""Terminal tables about versions, evaluations and annotation, for any width, with or without colour."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from canal.core.progress import OnCells, count, doing, first_names, percent
from canal.report.documents import Document, accuracy_matrix, before_learning, method_lines
from canal.report.listing import Column, Listing, facts, figures, text

_SHORT_KEY = 8
_ROOM_FOR_NAMES = 56
_RULES = 4
"""Rules of the policy that are named beside a version; `canal show` names all."""


def summary(evaluations: Sequence[Document], versions: Sequence[Mapping[str, Any]]) -> Group:
    """Return the R matrix, average accuracy, forgetting and the registered versions.

    Parameters
    ----------
    evaluations
        evaluation.json of every stage, oldest first; the sums are those of the last.
    versions
        One mapping a version: ``version``, ``stage``, ``aliases``, ``accuracy`` (on its own stage),
        ``average_accuracy``, ``types`` (a number), ``parent`` (a version's number or None), ``key``,
        ``overrides``, ``not_judged`` and ``retired``.
    """
    parts = [matrix_table(evaluations), _sums(evaluations[-1])] if evaluations else []
    return Group(*parts, *([Text()] if parts else []), versions_table(versions))


def lineage_report(evaluations: Sequence[Document], versions: Sequence[Mapping[str, Any]]) -> Group:
    """Return `summary` with suggestions of commands to run next."""
    if not versions:
        return Group(summary(evaluations, versions))
    return Group(summary(evaluations, versions), Text(), next_commands(versions[-1]["version"]))


def matrix_table(evaluations: Sequence[Document]) -> Listing:
    """Return R as a table: a row for each model, a column for each stage's test cells, in percent.

    Where the stages' names are too many or too long for columns, there is a row a stage instead: its
    accuracy when it was learned, and now.
    """
    stages, matrix = accuracy_matrix(evaluations)
    before = before_learning(evaluations)
    title = "Accuracy on each stage's test cells, %"
    if sum(len(stage) + 2 for stage in stages) > _ROOM_FOR_NAMES:
        now = Column("now", "number", "bold")
        found = Listing(title, (Column("test cells of"), *figures("when learned"), now))
        for index, stage in enumerate(stages):
            found.add(stage, _square(matrix[index][index], True), _square(matrix[-1][index], True))
        return found
    found = Listing(title, (Column("model after"), *figures(*stages), Column("mean", "number", "bold")))
    for number, (stage, row) in enumerate(zip(stages, matrix, strict=True), start=1):
        squares = [_square(value, index < number) for index, value in enumerate(row)]
        for index, later in enumerate(stages):
            if (stage, later) in before:
                squares[index] = text(f"({percent(before[stage, later], '')})", "dim")
        found.add(stage, *squares, percent(_mean(row), ""))
    if before:
        found.note = "(…): the next stage's cells of known types, before they were learned"
    return found


def versions_table(versions: Sequence[Mapping[str, Any]]) -> Any:
    """Return the registered versions, the newest first, or a line that says how to get some."""
    if not versions:
        return text(
            "No version is registered yet. `canal run` learns the stages, and registers them at its end."
        )
    columns = (
        Column("no.", "number", "bold"),
        Column("stage"),
        Column("aliases", "names", "cyan"),
        *figures("new", "mean", "types", "parent"),
        Column("key", style="dim"),
    )
    found = Listing("Registered versions", columns)
    for one in sorted(versions, key=lambda version: -int(version["version"])):
        found.add(*_version_row(one))
    found.note = "new: accuracy (%) on its own stage's cells; mean: on all stages so far"
    if any({"candidate", "champion"} <= {*(one.get("aliases") or ())} for one in versions):
        found.note += ". candidate is the newest version, and stays so once it serves (champion)"
    return found


def version_panel(view: Mapping[str, Any]) -> Group:
    """Return one version: its provenance, its parts, and its accuracy on every stage.

    Parameters
    ----------
    view
        What `canal.app.versions.version_view` gives: a row of `versions_table` with ``model``, ``created``,
        ``branch``, ``parent_key``, ``run``, ``git_commit``, ``dirty``, ``artifacts``, ``served``,
        ``retirement`` and ``evaluation``.
    """
    heading = text(f"{view['model']} version {view['version']}", "bold")
    matrix = matrix_table([view["evaluation"]])
    return Group(heading, facts(_facts(view)), Text(), matrix, _sums(view["evaluation"]))


def annotation_table(summary: Mapping[str, Any]) -> Group:
    """Return the summary of `canal annotate`: cells of each type, units and genes, warnings."""
    n_cells = summary["n_cells"]
    columns = (Column("cell type"), *figures("cells"), Column("share", "number", "dim"))
    rows = Listing(f"{count(n_cells)} labelled", columns)
    for name, number in summary["cell_types"].items():
        rows.add(name, f"{number:,}", percent(number / max(1, n_cells)))
    genes = summary["genes"]
    found = "detected" if summary["values_detected"] else "declared"
    told = f"values {summary['values']} ({found}), {genes['found']:,} of {genes['panel']:,} panel genes found"
    by = {how: n for how, n in genes.get("renamed", {}).items() if isinstance(n, int)}
    told += f", by another name: {', '.join(f'{n:,} ({how})' for how, n in by.items())}" if by else ""
    warnings = [text(f"warning: {one}", "yellow") for one in summary["warnings"]]
    by_reason = summary.get("unassigned_by", {})
    cut = sum(n for name, n in by_reason.items() if name not in _BY_THE_VERSION)
    share = (summary["cell_types"].get("Unassigned", 0) - cut) / max(1, n_cells)
    study = [text(line, "dim") for line in _study(summary.get("study", {}), share)]
    study = study or [text(_NO_STUDY, "dim")]
    if coarse := summary.get("coarse_types", {}):
        most = ", ".join(f"{name} {n:,}" for name, n in list(coarse.items())[:_MOST_COARSE])
        study.insert(0, text(f"coarse types: {most}{', ...' if len(coarse) > _MOST_COARSE else ''}", "dim"))
    if by_reason:
        shown = ", ".join(f"{n:,} {_REASONS[name]}" for name, n in by_reason.items())
        study.insert(0, text(f"Unassigned: {shown}", "dim"))
    return Group(rows, text(told, "dim"), *study, *warnings)


def partitions_table(parts: Mapping[str, Any]) -> Group:
    """Return what `canal annotate` of several files and `canal collect` did: the cells of each file."""
    done = f"{count(parts['labelled'], 'partition')} of {parts['partitions']:,} labelled by this run"
    if (inputs := parts.get("inputs")) is None:
        left = parts["missing"]
        lacks = f"{left:,} {'is' if left == 1 else 'are'} missing. Once all are there"
        rest = lacks if left else "all are there"
        return Group(text(f"{done}; {rest}: canal collect {parts['folder']}"))
    columns = (
        Column("file"),
        *figures("cells"),
        Column("Unassigned", "number"),
        Column("commonest types", "prose", "dim"),
    )
    rows = Listing(f"{count(sum(one['n_cells'] for one in inputs.values()))} labelled", columns)
    rows.note = f"{done}: pandas.read_parquet({parts['folder']!r})"
    for name, one in inputs.items():
        unassigned = one["cell_types"].get("Unassigned", 0)
        most = [each for each in one["cell_types"] if each != "Unassigned"][:3]
        rows.add(name, f"{one['n_cells']:,}", percent(unassigned / max(1, one["n_cells"])), ", ".join(most))
    told = dict.fromkeys(warning for one in inputs.values() for warning in one["warnings"])
    return Group(rows, *(text(f"warning: {one}", "yellow") for one in told))


_MOST_COARSE = 8
_BY_THE_VERSION = ("low_quality", "is_novel")
_REASONS = {
    "low_quality": "express no gene of the model",
    "is_novel": "novel by the version's rule",
    "max_novelty": "above --max-novelty",
    "min_confidence": "below --min-confidence",
}


_NO_STUDY = "whether these cells are like the learned ones was not measured: that takes two data sets"
"""What is said of a version that one study was taught, or that has a network alone."""

_CLEARLY = 1.5
"""How much more must be Unassigned than of any study left out, before other types are spoken of."""


def _study(study: Mapping[str, Any], unassigned: float) -> Iterator[str]:
    """Yield how similar a file is to the learned studies, and what share of known cells may be Unassigned.

    That is an estimate about cells of known types: of a file with more Unassigned it says that others are
    there, and of one that lies mostly elsewhere nothing; a warning speaks of that.
    """
    if study:
        from canal.annotation.summary import MOST_LIKE  # brings numpy, which `canal --help` does without

        expected, like = study["known_unassigned"], study["like_learned"]
        names = ("lowest", "usual", "highest")
        lowest, usual, highest = (percent(expected[name], digits=0) for name in names)
        span = "" if lowest == highest else f" ({lowest} to {highest})"
        beyond = unassigned > expected["highest"]
        clearly = unassigned > _CLEARLY * expected["highest"]
        told = f"{percent(like, digits=0)} of the cells lie among those of the learned studies"
        if beyond and like < MOST_LIKE:
            yield told
            return
        yield f"{told}; were all of known types, some {usual} would be Unassigned{span}" + (
            f": {percent(unassigned)} are, so some are likely unlike all types and donors that it learned"
            if clearly
            else f": {percent(unassigned)} are"
        )


def next_commands(version: int | str = "champion") -> Group:
    """Return the commands a person may want to try next.

    Parameters
    ----------
    version
        Number or alias put into the example of ``canal show``.
    """
    rows = Listing("", (Column("", style="bold"), Column("", "prose", "dim")))
    for command, purpose in _commands(version):
        rows.add(f"  {command}", purpose)
    return Group(text("Next", "bold"), rows)


def _commands(version: int | str) -> list[tuple[str, str]]:
    """Return each command with what it does."""
    return [
        ("canal versions", "every version and alias"),
        (f"canal show {version}", "one version, its ancestry"),
        ("canal promote candidate --by YOU --why WHY", "let it serve, if it passes the policy"),
        ("canal annotate your.h5ad -o labelled.h5ad", "name your cells' types"),
        ("canal stage add NAME --file F ...", "teach it another data set"),
        ("canal report", "all of this on one page"),
        ("canal registry ui", "runs, curves, registry as MLflow shows them"),
    ]


def _facts(view: Mapping[str, Any]) -> list[tuple[str, str | list[str]]]:
    """Return what `version_panel` says of a version, line by line."""
    parent = "the backbone" if view["parent"] is None else f"version {view['parent']}"
    if view.get("imported"):
        parent = f"elsewhere: it was imported ({view['imported']})"
    dirty = ", with uncommitted changes" if view["dirty"] else ""
    labels = view["evaluation"]["labels"] or ["none"]
    return [
        ("stage", f"{view['stage']}, branch {view['branch']}"),
        ("aliases", list(view["aliases"]) or "none"),
        *_decisions(view),
        ("learned on", parent),
        ("cell types", [f"{view['types']:,}: {labels[0]}", *labels[1:]]),
        *method_lines(view.get("method", {"name": "published"})),
        ("key", view["key"]),
        ("parent's key", view["parent_key"] or "none"),
        ("made", f"{view['created']} by run {view['run']}"),
        ("git commit", f"{view['git_commit'] or 'none'}{dirty}"),
        ("artifacts", view["artifacts"]),
    ]


def _decisions(view: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield who promoted a version and why, with which overrides, and who retired it."""
    for one in view.get("served", ()):
        word = "promoted" if one["kind"] == "promote" else "rolled back to"
        few = one.get("not_judged", ())
        failed = [rule for rule in one["overrides"] if rule not in few]
        despite = f"; overridden: {', '.join(failed)}" if failed else ""
        if few:
            because = f" ({one['too_few']})" if one.get("too_few") else ""
            despite += f"; too few test cells to judge, let pass{because}: {', '.join(few)}"
        yield word, f"{_decision(one)}{despite}"
        if until := one.get("until"):
            yield ("rolled back" if until["kind"] == "rollback" else "served until"), _decision(until)
    if view.get("retirement"):
        yield "retired", _decision(view["retirement"])
    elif view.get("retired"):
        yield "retired", "the ledger does not say by whom; `canal audit` looks into it"


def _decision(one: Mapping[str, Any]) -> str:
    return f"{one['time']} by {one['who']}: {one['why']} (ledger entry {one['entry']})"


def _sums(evaluation: Document) -> Any:
    """Return average accuracy, forgetting and, where it was measured, H-score on one line."""
    novelty = evaluation.get("novelty") or {}
    facts = {
        "average accuracy": percent(evaluation["average_accuracy"]),
        "forgetting": percent(evaluation.get("forgetting"), " points"),
        "novel cells, H-score": percent(novelty.get("h_score")),
    }
    line = text("\n")
    for name, value in facts.items():
        line.append(f"{name} ", style="dim").append(value, style="bold").append("   ")
    line.rstrip()
    for name, by_stage in (evaluation.get("alone") or {}).items():
        measured = [by_stage[stage] for stage in evaluation["stages"] if stage in by_stage]
        shares = [*measured, sum(measured) / len(measured)]
        description = "the network alone (published method)" if name == "network" else f"the {name} alone"
        line.append(f"\n{description}: {' '.join(percent(one, '') for one in shares[:-1])}", style="dim")
        line.append(", on average ", style="dim").append(percent(shares[-1]), style="bold")
    return line


def _version_row(one: Mapping[str, Any]) -> list[Any]:
    """Return the cells of a version's row, never read as rich's markup."""
    parent = one.get("parent")
    return [
        str(one["version"]),
        one["stage"],
        _names(one),
        percent(one.get("accuracy"), ""),
        percent(one.get("average_accuracy"), ""),
        "-" if one.get("types") is None else str(one["types"]),
        "-" if parent is None or parent == "" else str(parent),
        str(one.get("key") or "-")[:_SHORT_KEY],
    ]


def _names(one: Mapping[str, Any]) -> Any:
    """Return a version's aliases, and beside them for ever what was overridden and that it was retired."""
    names = text(", ".join(one.get("aliases") or ()))
    gone = "erased" if one.get("erased") else "retired" if one.get("retired") else ""
    marks = [(gone, "red")] if gone else []
    few = one.get("not_judged", ())
    if failed := [rule for rule in one.get("overrides") or () if rule not in few]:
        marks.append((f"promoted despite {first_names(failed, _RULES)}", "yellow"))
    if few:
        marks.append((f"promoted with {count(len(few), 'rule')} not judged: too few cells", "yellow"))
    for mark, style in marks:
        names.append("; " if names.plain else "").append_text(text(mark, style))
    return names


def _square(value: float | None, is_due: bool) -> Any:
    """Return one square of R: its number, '-' where it could not be measured, nothing for the future."""
    if value is None:
        return text("-" if is_due else "")
    style = "green" if value >= 0.85 else "" if value >= 0.7 else "yellow"
    return text(percent(value, ""), style)


def _mean(row: Sequence[float | None]) -> float | None:
    """Return the average accuracy of a row of R, over the stages that could be measured."""
    measured = [value for value in row if value is not None]
    return sum(measured) / len(measured) if measured else None


@contextmanager
def cells_progress() -> Iterator[OnCells | None]:
    """Yield what shows (cells done, cells in all) as a bar with cells a second and the time left.

    Yields None where the error stream is no terminal: lines tell it there.
    """
    if not sys.stderr.isatty():
        yield None
        return
    with doing(""), _bar() as bar:
        task = bar.add_task("labelling", total=None)

        def tell(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield tell


@contextmanager
def learning_progress(what: str, total: int) -> Iterator[tuple[Progress, TaskID]]:
    """Yield a bar of epochs or trials, and its task; where nobody sees a terminal, lines tell them."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with (
        doing("" if console.is_terminal else what),
        Progress(*columns, console=console, disable=not console.is_terminal) as bar,
    ):
        yield bar, bar.add_task(what, total=total)


def _bar() -> Progress:
    class Rate(ProgressColumn):
        """Cells a second."""

        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:,.0f} cells/s" if task.speed else "", style="dim")

    columns = ("[progress.description]{task.description}", BarColumn(), MofNCompleteColumn())
    return Progress(*columns, Rate(), TimeRemainingColumn(), console=Console(stderr=True), transient=True)
