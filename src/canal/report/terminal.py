"""What a run looks like on a terminal of 80 columns, with colour or without."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from canal.report.documents import Document, accuracy_matrix

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

_SHORT_KEY = 8
_ROOM_FOR_NAMES = 56


def summary(evaluations: Sequence[Document], versions: Sequence[Mapping[str, Any]]) -> "Group":
    """Return the R matrix, average accuracy, forgetting and the registered versions.

    Parameters
    ----------
    evaluations
        evaluation.json of every stage, oldest first; the sums are those of the last.
    versions
        One mapping a version: ``version``, ``stage``, ``aliases``, ``accuracy`` (on its own stage),
        ``average_accuracy``, ``types`` (a number), ``parent`` (a version's number or None), ``key``.
    """
    from rich.console import Group
    from rich.text import Text

    parts = [matrix_table(evaluations), _sums(evaluations[-1])] if evaluations else []
    table = versions_table(versions) if versions else Text("No version is registered yet.")
    return Group(*parts, *([Text()] if parts else []), table)


def matrix_table(evaluations: Sequence[Document]) -> "Table":
    """Return R as a table: a row a model, a column a stage's test cells, accuracy in percent."""
    stages, matrix = accuracy_matrix(evaluations)
    averages = {one["stage"]: one["average_accuracy"] for one in evaluations}
    named = sum(len(stage) + 2 for stage in stages) <= _ROOM_FOR_NAMES
    table = _table("Accuracy on each stage's test cells, %")
    table.add_column("model after", overflow="fold")
    for number, stage in enumerate(stages, start=1):
        table.add_column(stage if named else str(number), justify="right", no_wrap=True)
    table.add_column("mean", justify="right", style="bold")
    for number, (stage, row) in enumerate(zip(stages, matrix, strict=True), start=1):
        name = stage if named else f"{number} {stage}"
        squares = [_square(value, index < number) for index, value in enumerate(row)]
        table.add_row(_text(name), *squares, _percent(averages.get(stage)))
    return table


def versions_table(versions: Sequence[Mapping[str, Any]]) -> "Table":
    """Return the registered versions, the newest first."""
    table = _table("Registered versions")
    table.add_column("no.", justify="right", style="bold")
    table.add_column("stage", overflow="fold")
    table.add_column("aliases", overflow="fold", style="cyan")
    for name in ("new", "mean", "types", "parent"):
        table.add_column(name, justify="right")
    table.add_column("key", no_wrap=True, style="dim")
    for one in sorted(versions, key=lambda version: -int(version["version"])):
        table.add_row(*_version_row(one))
    table.caption = "new, mean: accuracy in % on the cells of its own stage, and on all stages so far"
    table.caption_justify = "left"
    return table


def next_commands(
    version: int | str = "champion", tracking_uri: str = "sqlite:///mlflow.db", report: bool = True
) -> "Group":
    """Return the commands a person may want to try next.

    Parameters
    ----------
    version
        Number or alias put into the example of ``canal show``.
    tracking_uri
        The store that ``mlflow ui`` should open.
    report
        Whether to name ``canal report``; not where the reader comes from it.
    """
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True, overflow="fold")
    grid.add_column(style="dim", overflow="fold")
    for command, purpose in _commands(version, tracking_uri, report):
        grid.add_row(_text(f"  {command}"), _text(purpose))
    return Group(Text("Next", style="bold"), grid)


def _commands(version: int | str, tracking_uri: str, report: bool) -> list[tuple[str, str]]:
    """Return each command with what it does."""
    commands = [
        ("canal versions", "every version and alias"),
        (f"canal show {version}", "one version, its ancestry"),
        ("canal annotate your.h5ad -o labelled.h5ad", "name your cells' types"),
        ("canal stage add NAME --file F ...", "teach it another data set"),
        ("canal report", "all of this on one page"),
        (f"mlflow ui --backend-store-uri {tracking_uri}", "runs, curves, registry"),
    ]
    return [one for one in commands if report or one[0] != "canal report"]


def _table(title: str) -> "Table":
    from rich import box
    from rich.table import Table

    return Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False,
        header_style="", padding=(0, 1), collapse_padding=True, show_edge=False,
    )  # fmt: skip


def _sums(evaluation: Document) -> Any:
    """Return average accuracy, forgetting and, where it was measured, H-score on one line."""
    from rich.text import Text

    novelty = evaluation.get("novelty") or {}
    facts = {
        "average accuracy": _percent(evaluation["average_accuracy"], " %"),
        "forgetting": _percent(evaluation.get("forgetting"), " points"),
        "novel cells, H-score": _percent(novelty.get("h_score"), " %"),
    }
    line = Text("\n")
    for name, value in facts.items():
        line.append(f"{name} ", style="dim").append(value, style="bold").append("   ")
    line.rstrip()
    return line


def _version_row(one: Mapping[str, Any]) -> list[Any]:
    """Return the cells of a version's row, never read as rich's markup."""
    parent = one.get("parent")
    return [
        _text(one["version"]),
        _text(one["stage"]),
        _text(", ".join(one.get("aliases") or ())),
        _percent(one.get("accuracy")),
        _percent(one.get("average_accuracy")),
        _text("-" if one.get("types") is None else one["types"]),
        _text("-" if parent is None or parent == "" else parent),
        _text(str(one.get("key") or "-")[:_SHORT_KEY]),
    ]


def _square(value: float | None, is_due: bool) -> Any:
    """Return one square of R: its number, '-' where it could not be measured, nothing for the future."""
    if value is None:
        return _text("-" if is_due else "")
    style = "green" if value >= 0.85 else "" if value >= 0.7 else "yellow"
    return _text(_percent(value), style)


def _percent(value: float | None, unit: str = "") -> str:
    return "-" if value is None else f"{100 * value:.1f}{unit}"


def _text(value: object, style: str = "") -> Any:
    from rich.text import Text

    return Text(str(value), style=style)
