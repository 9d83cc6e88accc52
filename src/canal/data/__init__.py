"""Data: sources fetched and made canonical, units, expression, gene names, splits, the gene panel."""
