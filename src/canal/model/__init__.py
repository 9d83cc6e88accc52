"""The annotator: a frozen Performer backbone with a trained head, its labels and its genes."""

from typing import Literal, get_args

Precision = Literal["float32", "bfloat16"]
Device = Literal["auto", "cpu", "cuda"]
DEVICES: tuple[str, ...] = get_args(Device)
"""How and where a network computes; ``auto`` is a GPU where there is one."""

COMBINATION, EXACT = "combination.json", "exact"
"""In a model folder: how network and sums are combined, and the folder of the sums' own answer."""
