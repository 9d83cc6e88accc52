"""The documents in a version's folder (key, record, request), and what MLflow's pages show of them."""
