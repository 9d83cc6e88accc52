"""Tables on a terminal: names stand whole at every width, prose wraps, what finds no room goes below its row.

A name is what a person may have to type: a stage, a version's number, an alias, a key, a cell type, a file, a
source, a batch. It is never broken and never shortened; where it is longer than the terminal is wide, its
line is longer, too.
"""

import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.containers import Lines
from rich.text import Text

from canal.core.errors import visible

PIPE_WIDTH = 110
"""Columns of what goes into a pipe or a file, if COLUMNS does not say otherwise."""

_HEIGHT = 25
"""Of no effect but this: rich takes a width alone for a wish, which a terminal without colours overrules."""
_GAP, _INDENT = 2, 2
_PROSE = 16
"""Columns that prose gets at least in a table; where there are fewer, it goes below its row."""
_LONGEST_WORD = 24
"""Most columns that a word of prose claims; one that is longer takes its cell below the row."""
_BLANKS = re.compile(r"(?<! ) (?! )")
"""Where lines may break: not at two blanks, which part columns."""

Kind = Literal["name", "names", "number", "prose"]
Cell = Text | str | Sequence[str | tuple[str, ...]]
"""A cell; a sequence of names is parted by commas, and breaks between them alone."""


class _Words(Text):
    """A text of which lines break at blanks alone, never within a word."""

    def wrap(self, console: Console, width: int, **_: Any) -> Lines:
        """Return the lines; one with a word longer than ``width`` is longer, too."""
        return Lines(
            one
            for line in self.split(allow_blank=True)
            for one in _wrapped(_at_blanks(line), width, len(line.plain) - len(line.plain.lstrip(" ")))
        )


def text(value: object, style: str = "") -> Any:
    """Return a value as text, whatever characters it holds; one that would steer the terminal shows as �."""
    return _Words(visible(value), style=style)


def show(what: RenderableType) -> None:
    """Print what this room makes: as wide as COLUMNS says, in colours as NO_COLOR and FORCE_COLOR say."""
    columns = os.environ.get("COLUMNS", "")
    width = int(columns) if columns.isdecimal() and int(columns) else None
    if width is None and not sys.stdout.isatty():
        width = PIPE_WIDTH
    Console(width=width, height=None if width is None else _HEIGHT).print(Group(what), crop=False)


@dataclass(frozen=True)
class Column:
    """A column: its heading, the kind of its cells, and a style of rich."""

    heading: str
    kind: Kind = "name"
    style: str = ""


def figures(*headings: str) -> tuple[Column, ...]:
    """Return a column of numbers for each heading."""
    return tuple(Column(heading, "number") for heading in headings)


@dataclass
class Listing:
    """A table with a title above it and a note below; rich prints it.

    Attributes
    ----------
    title
        What the rows are; empty for none.
    columns
        The first one stays in its row at every width. Of the others prose leaves first, from the right, then
        lists of names, numbers, and names.
    note
        What the headings mean.
    """

    title: str
    columns: Sequence[Column]
    note: str = ""
    _rows: list[list[list[Text]]] = field(default_factory=list)

    def add(self, *cells: Cell) -> None:
        """Add a row; cells that are missing at its end are empty."""
        padded = [*cells, *[""] * (len(self.columns) - len(cells))]
        self._rows.append([_words(cell, one.kind) for one, cell in zip(self.columns, padded, strict=True)])

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the lines for the width that there is."""
        width = options.max_width
        if self.title:
            yield text(self.title, "bold")
        widths = self._widths(width)
        if any(one.heading for one in self.columns) and self._rows:
            headings = {number: Text(self.columns[number].heading) for number in widths}
            yield self._line(headings, widths)
            rule = "-" if options.ascii_only else "─"
            yield Text(rule * (sum(widths.values()) + _GAP * (len(widths) - 1)), no_wrap=True)
        for row in self._rows:
            yield from self._lines_of(row, widths, width)
        if self.note:
            yield text(self.note, "dim")

    def _widths(self, width: int) -> dict[int, int]:
        """Return the width of each column that finds room, by its number; the others go below."""
        claims = {}
        for number, one in enumerate(self.columns):
            cells = [row[number] for row in self._rows]
            longest = max((word.cell_len for words in cells for word in words), default=0)
            natural = max([len(one.heading), *map(_length, cells)])
            if one.kind == "prose":
                longest = max(min(longest, _LONGEST_WORD), min(natural, _PROSE))
            least = max(longest, len(one.heading))
            claims[number] = (least if number else min(least, width), natural)
        leaving = [
            number
            for kind in ("prose", "names", "number", "name")
            for number in reversed(range(1, len(self.columns)))
            if self.columns[number].kind == kind
        ]
        while leaving and sum(least + _GAP for least, _ in claims.values()) - _GAP > width:
            del claims[leaving.pop(0)]
        widths = {number: least for number, (least, _) in claims.items()}
        left = width - sum(widths.values()) - _GAP * (len(widths) - 1)
        wanting = sorted(claims, key=lambda number: claims[number][1] - claims[number][0])
        for place, number in enumerate(wanting):  # those that want least first, so that all is handed out
            more = max(0, min(claims[number][1] - claims[number][0], left // (len(wanting) - place)))
            widths[number] += more
            left -= more
        return widths

    def _lines_of(self, row: list[list[Text]], widths: Mapping[int, int], width: int) -> Iterator[Text]:
        """Yield the lines of a row: what finds room beside the first cell, and below it all else."""
        beside = {
            number: _wrapped(row[number], room)
            for number, room in widths.items()
            if number == 0 or all(word.cell_len <= room for word in row[number])
        }
        for at in range(max(len(lines) for lines in beside.values())):
            yield self._line({n: lines[at] for n, lines in beside.items() if at < len(lines)}, widths)
        below: list[Text] = []
        for number, one in enumerate(self.columns):
            if number in beside or not _length(row[number]):
                continue
            if one.kind == "number":
                below.append(Text(f"{one.heading} ", "dim").append_text(row[number][0]))
                continue
            heading = [Text(f"{one.heading}:", "dim")] if one.heading else []
            yield from _indented(
                [*heading, *(Text(style=one.style).append_text(w) for w in row[number])], width
            )
        if below:
            yield from _indented([*(one.append(",") for one in below[:-1]), below[-1]], width)

    def _line(self, cells: Mapping[int, Text], widths: Mapping[int, int]) -> Text:
        line = Text(no_wrap=True, overflow="ignore")
        for number, room in widths.items():
            one, cell = self.columns[number], cells.get(number, Text())
            blanks = " " * max(0, room - cell.cell_len)
            styled = Text(style=one.style if _length([cell]) else "").append_text(cell)
            line.append_text(
                Text(blanks).append_text(styled) if one.kind == "number" else styled.append(blanks)
            )
            line.append(" " * _GAP)
        line.rstrip()
        return line


def facts(pairs: Iterable[tuple[str, Cell]]) -> Listing:
    """Return names of facts, with the values beside them; a value with a very long word stands below."""
    found = Listing("", (Column("", "name", "dim"), Column("", "prose")))
    for name, value in pairs:
        found.add(name, value)
    return found


def named(lead: str, names: Sequence[str | tuple[str, ...]], style: str = "") -> Listing:
    """Return a sentence that ends in names, which are not broken, such as "1 type appears: CD14 Mono".

    A name with what is said about it is a tuple, between whose parts lines may break.
    """
    found = Listing("", (Column("", "names", style),))
    found._rows.append([[*_at_blanks(text(lead)), *_words(names, "names")]])
    return found


def lines(told: Iterable[str | Listing]) -> list[RenderableType]:
    """Return sentences as rich prints them here; those that end in names are made already."""
    return [text(one) if isinstance(one, str) else one for one in told]


@dataclass
class Branch:
    """A node of a tree, with the nodes below it; rich prints it, and breaks its lines at blanks alone."""

    line: Text
    below: list["Branch"] = field(default_factory=list)

    def add(self, line: Text) -> "Branch":
        """Add a node below this one, and return it."""
        self.below.append(Branch(line))
        return self.below[-1]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the lines of the node and of all below it, with guides where they belong to."""
        marks = ("|-- ", "`-- ", "|   ") if options.ascii_only else ("├── ", "└── ", "│   ")
        yield from self._lines("", "", marks, options.max_width)

    def _lines(self, first: str, rest: str, marks: tuple[str, ...], width: int) -> Iterator[Text]:
        for number, line in enumerate(_wrapped(_at_blanks(self.line), width - len(first))):
            guide = first if number == 0 else rest + (marks[2] if self.below else "    ")
            yield Text.assemble((guide, "dim"), line, no_wrap=True, overflow="ignore")
        for one in self.below:
            is_last = one is self.below[-1]
            yield from one._lines(
                rest + marks[is_last], rest + ("    " if is_last else marks[2]), marks, width
            )


def _words(cell: Cell, kind: Kind) -> list[Text]:
    """Return the parts of a cell between which its lines may break."""
    if isinstance(cell, Text):
        return _at_blanks(cell) if kind in ("prose", "names") else [cell]
    if isinstance(cell, str):
        return _at_blanks(text(cell)) if kind == "prose" else [text(cell)]
    words: list[Text] = []
    for number, item in enumerate(cell):
        parts = [text(one) for one in ((item,) if isinstance(item, str) else item)]
        words += [*parts[:-1], parts[-1].append("," if number < len(cell) - 1 else "")]
    return words


def _at_blanks(line: Text) -> list[Text]:
    """Return the words of a text with their styles; blanks at its beginning belong to the first one."""
    ends = [match.span() for match in _BLANKS.finditer(line.plain.rstrip()) if match.start()]
    starts = [0, *(end for _, end in ends)]
    stops = [*(start for start, _ in ends), len(line.plain.rstrip())]
    return [line[start:stop] for start, stop in zip(starts, stops, strict=True)]


def _wrapped(words: Sequence[Text], width: int, margin: int = 0) -> list[Text]:
    """Return lines of at most ``width`` columns, unless one word is longer; further lines have a margin."""
    lines: list[Text] = []
    for word in words:
        if lines and lines[-1].cell_len + 1 + word.cell_len <= width:
            lines[-1].append(" ").append_text(word)
        else:
            lines.append(
                Text(" " * (margin if lines else 0), no_wrap=True, overflow="ignore").append_text(word)
            )
    return lines


def _indented(words: Sequence[Text], width: int) -> list[Text]:
    """Return the lines of a cell below its row; a name that is too long begins further left."""
    margin = max(0, min(_INDENT, width - max(word.cell_len for word in words)))
    first = Text(" " * margin).append_text(words[0])
    return _wrapped([first, *words[1:]], width, margin)


def _length(words: Sequence[Text]) -> int:
    return sum(word.cell_len for word in words) + max(0, len(words) - 1)
