"""How far a labelling is, as a bar on a terminal."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, Task
    from rich.text import Text

OnCells = Callable[[int, int], None]


@contextmanager
def cells_told() -> Iterator[OnCells | None]:
    """Yield what shows (cells done, cells in all) as a bar with cells a second and the time left.

    Yields None where the error stream is no terminal: lines tell it there.
    """
    if not sys.stderr.isatty():
        yield None
        return
    with _bar() as bar:
        task = bar.add_task("labelling", total=None)

        def tell(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield tell


def _bar() -> "Progress":
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        """Cells a second."""

        def render(self, task: "Task") -> "Text":
            return Text(f"{task.speed:,.0f} cells/s" if task.speed else "", style="dim")

    columns = ("[progress.description]{task.description}", BarColumn(), MofNCompleteColumn())
    return Progress(*columns, Rate(), TimeRemainingColumn(), console=Console(stderr=True), transient=True)
