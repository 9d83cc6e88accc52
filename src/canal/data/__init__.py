"""Preparation of data: sources, canonical files, units, expression, gene names, splits, gene panel."""
