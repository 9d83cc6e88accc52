"""Data: fetching and reading h5ad files, canonical cells, gene panel, tokens, splits."""
