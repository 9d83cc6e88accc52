"""What a version's own folder says of it: key, record, request, and what MLflow's pages show of that."""
