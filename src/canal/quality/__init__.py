"""The gate: what a stage's cells must be like before anything learns from them."""
