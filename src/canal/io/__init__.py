"""Files of cells, read and written: h5ad, zarr, 10x and loom, matrices by cells or by genes."""
