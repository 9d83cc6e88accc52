"""Numbers as a reader wants them: percent, points, decimals; what was not measured says so."""

NOT_MEASURED = "–"


def percent(value: float | None) -> str:
    """Return a share as percent with one decimal."""
    return NOT_MEASURED if value is None else f"{100 * value:.1f}\u00a0%"


def points(value: float | None) -> str:
    """Return a difference of shares as percentage points with one decimal."""
    return NOT_MEASURED if value is None else f"{100 * value:.1f}\u00a0points".replace("-", "−")


def decimal(value: float | None) -> str:
    """Return a number with three decimals."""
    return NOT_MEASURED if value is None else f"{value:.3f}".replace("-", "−")


def count(value: int | None) -> str:
    """Return a whole number with a thin space between thousands."""
    return NOT_MEASURED if value is None else f"{value:,}".replace(",", "\u202f")
