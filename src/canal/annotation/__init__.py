"""Annotation: label the cells of a file or AnnData with a given model; no training, no registry."""
