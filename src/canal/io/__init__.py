"""Input and output of cell files: h5ad, zarr, 10x and loom, in blocks of cells."""
