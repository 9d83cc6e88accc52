"""The ancestry of a version, the cells that it has seen, its difference from another version."""
