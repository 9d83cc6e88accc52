"""A fixed colour for each cell type: the same for the same name in every file and project."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import sha256

from canal.annotation.columns import MIXED, UNASSIGNED

PALETTE = (
    *("#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#f0e442", "#1010fe", "#1e2caa"),
    *("#80101e", "#10f080", "#b848fe", "#562c64", "#64f0f0", "#f01e56", "#3af0b8", "#8e4810", "#c69c48"),
    *("#1e56b8", "#8e2c56", "#9c80f0", "#641080", "#2c10c6", "#8ef064", "#647248", "#fe728e", "#aa1e8e"),
    *("#48b8c6", "#64c6aa", "#b8aa72", "#10562c", "#1048f0", "#c62c80", "#8e80b8", "#aad4fe", "#10d41e"),
    *("#723ad4", "#109c10", "#107272", "#9ce29c", "#b81e3a", "#e210d4", "#9ce2d4", "#642c3a", "#b8c664"),
    *("#b87264", "#f0c648", "#80aafe", "#483a9c", "#fe80c6", "#8e722c", "#b8569c", "#e27256", "#802c10"),
    *("#9c48aa", "#3a80d4", "#8e3a48", "#72aa8e", "#b88ed4", "#aa72fe", "#d4568e", "#48568e", "#fec680"),
    "#c6802c",
)
"""64 colours, none of them grey: the seven of Okabe and Ito, then each time the colour that lies farthest
from all before it, to people who see all colours and to those without red or green (Machado et al. 2009), in
CIELAB. Any two differ by at least 14, and by 8 without red or green."""

OF_NO_TYPE = {UNASSIGNED: "#bdbdbd", MIXED: "#595959"}
"""The greys of what is no type."""


def type_colours(types: Sequence[str]) -> dict[str, str]:
    """Return a colour for each type of a model, and the greys of what is no type.

    A type's colour is drawn by a digest of its name, so it does not depend on the file, the project, or which
    types a file holds. Where two types of one model would have the same colour, the later of them has the
    next that its digest draws; types that a model learns later therefore never change the colours of earlier
    ones. Beyond 64 types colours repeat.

    Parameters
    ----------
    types
        The model's cell types, in its own order.
    """
    colours: dict[str, str] = {}
    free = set(PALETTE)
    for name in (name for name in dict.fromkeys(types) if name not in OF_NO_TYPE):
        free = free or set(PALETTE)
        colours[name] = next(colour for colour in _draws(name) if colour in free)
        free.discard(colours[name])
    return {**colours, **OF_NO_TYPE}


def _draws(name: str) -> Iterable[str]:
    """Yield every colour in an order of the name's own."""
    return sorted(PALETTE, key=lambda colour: sha256(f"{name}\0{colour}".encode()).digest())
