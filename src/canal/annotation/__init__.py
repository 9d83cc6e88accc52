"""Labelling cells of any number with a model that is handed in: no training, no registry."""
