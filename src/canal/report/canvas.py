"""What all figures and pages share: colours, fonts, lines, and writing them as reproducible files."""

import base64
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from canal.core.files import new_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

DPI = 120

# Okabe and Ito (2008): told apart by colour-blind readers; the yellow is left out, too pale on white.
BLUE, ORANGE, GREEN, PINK, SKY, AMBER = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00"
PALETTE = (BLUE, ORANGE, GREEN, PINK, SKY, AMBER)
MARKERS = ("o", "s", "^", "D", "v", "P")
HEAT = ("#f3f7fb", "#c6dcee", "#7fb3d8", "#2f7fbc", "#0b4a85")

INK, MUTED, GRID, SURFACE = "#1d2730", "#5c6873", "#dbe1e6", "#fefefe"
_DARK = {INK: "#e4e8ec", MUTED: "#9aa5b0", GRID: "#38424c", SURFACE: "#171c22"}

_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.titlecolor": INK,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 9,
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "legend.facecolor": SURFACE,
    "legend.edgecolor": "none",
    "legend.framealpha": 0.85,
    "legend.borderpad": 0.2,
    "legend.fontsize": 8.5,
    "figure.facecolor": SURFACE,
    "savefig.facecolor": SURFACE,
    "svg.hashsalt": "canal",
    "svg.fonttype": "path",
}

P = ParamSpec("P")
R = TypeVar("R")


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Decorate ``draw`` to run in canal's style and leave matplotlib's settings unchanged."""

    @functools.wraps(draw)
    def inner(*args: P.args, **kwargs: P.kwargs) -> R:
        import matplotlib

        with matplotlib.rc_context(_STYLE):
            return draw(*args, **kwargs)

    return inner


def new_figure(width: float, height: float, by_pyplot: bool = False) -> "Figure":
    """Return an empty figure of ``width`` by ``height`` inches that keeps its labels inside.

    It is a plain Figure, unknown to pyplot, so nothing has to be closed; ``by_pyplot`` for one that is to be
    shown in a window or notebook.
    """
    from matplotlib.figure import Figure

    make: Callable[..., Figure] = pyplot().figure if by_pyplot else Figure
    return make(figsize=(width, height), dpi=DPI, layout="constrained")


def pyplot() -> Any:
    """Return matplotlib's pyplot, which looks for a display."""
    from matplotlib import pyplot

    return pyplot


def heat_colours(colours: Sequence[str] = HEAT) -> "LinearSegmentedColormap":
    """Return the colours of values from the smallest to the greatest."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("canal", list(colours))


def heat_map(axes: "Axes", values: Any, shape: tuple[int, int]) -> None:
    """Fill ``axes`` with a square for each value in [0, 1], NaN left blank, row 0 on top; vector graphics."""
    import numpy as np

    masked = np.ma.masked_invalid(np.asarray(values, dtype=float).reshape(shape))
    axes.pcolormesh(masked, cmap=heat_colours(), vmin=0, vmax=1, edgecolors=SURFACE, linewidth=1.2)
    axes.set_xlim(0, shape[1])
    axes.set_ylim(shape[0], 0)
    axes.set_aspect("equal")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def ink_on(share: float) -> str:
    """Return the text colour of a number on a heat map's square of this value."""
    return "#ffffff" if share > 0.55 else "#1c2833"


def number_or_gap(value: float | None) -> float:
    """Return ``value``, or NaN for None, which plots leave blank."""
    return math.nan if value is None else float(value)


def short(name: str, longest: int = 24) -> str:
    """Return a name shortened in the middle for an axis; '$', which would start mathematics, is escaped."""
    half = (longest - 1) // 2
    cut = name if len(name) <= longest else f"{name[: longest - half]}…{name[len(name) - half + 1 :]}"
    return cut.replace("$", r"\$")


def named(name: str) -> str:
    """Return the name of a cell type or column for a figure of cells, where long names have room."""
    return short(name, 40)


@styled
def save(figure: "Figure", path: Path) -> Path:
    """Write ``figure`` to ``path``, as its suffix says (.png, .svg or .pdf): same figure, same bytes."""
    kind = path.suffix.removeprefix(".")
    _lay_out(figure)
    with new_file(path) as temporary:
        figure.savefig(temporary, format=kind, dpi=DPI, metadata=_no_metadata(kind))
    return path


@styled
def svg_uri(figure: "Figure") -> str:
    """Return ``figure`` as a data URI that follows the reader's light or dark setting."""
    buffer = BytesIO()
    _lay_out(figure)
    figure.savefig(buffer, format="svg", facecolor="none", metadata=_no_metadata("svg"))
    text = _follow_scheme(buffer.getvalue().decode())
    return "data:image/svg+xml;base64," + base64.b64encode(text.encode()).decode()


def write_html(
    template: str,
    out: Path,
    values: Mapping[str, Any],
    filters: Mapping[str, Callable[..., str]] | None = None,
) -> Path:
    """Write a page of this room's ``template`` to ``out``, and return it; what people wrote is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("canal", "report"),
        autoescape=True,  # labels, stages, aliases, reasons and names are whatever somebody wrote
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters or {})
    with new_file(out) as temporary:
        temporary.write_text(environment.get_template(template).render(values), encoding="utf-8")
    return out


def _lay_out(figure: "Figure") -> None:
    """Compute the layout once, instead of at every `savefig`."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        figure.set_layout_engine(None)  # not "none": its placeholder would have the figure drawn twice, too


def _no_metadata(kind: str) -> dict[str, None]:
    """Return metadata that keep versions and times out of a file of this kind."""
    names = {"png": ("Software",), "pdf": ("Creator", "Producer", "CreationDate")}
    return dict.fromkeys(names.get(kind, ("Creator", "Date", "Format", "Type")))


def _follow_scheme(svg: str) -> str:
    """Replace the neutral colours of an SVG by CSS variables, which follow the page's dark mode."""
    light, dark = [], []
    for number, (colour, at_night) in enumerate(_DARK.items()):
        svg = svg.replace(colour, f"var(--c{number})")
        light.append(f"--c{number}:{colour}")
        dark.append(f"--c{number}:{at_night}")
    rules = (
        f":root{{{';'.join(light)}}}"
        f"@media screen and (prefers-color-scheme:dark){{:root{{{';'.join(dark)}}}}}"
    )
    head, opening, rest = svg.partition("<defs>")
    return f"{head}<style>{rules}</style>{opening}{rest}"
