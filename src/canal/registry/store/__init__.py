"""The MLflow store of a project: its database, the connection, versions and runs."""
