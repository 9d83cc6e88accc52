"""The gate: rules that a stage's cells must fulfil before anything learns from them."""
