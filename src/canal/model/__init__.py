"""The annotator: a frozen Performer backbone with a trained head, its labels and its genes."""

COMBINATION, EXACT = "combination.json", "exact"
"""In a model folder: how network and sums are combined, and the folder of the sums' own answer."""
