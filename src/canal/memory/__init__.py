"""The exact memory: stages added up in whole numbers, solved in closed form, without any network."""

NETWORK, SUMS = "network", "sums"
"""The two sides of an annotator."""
