"""The MLflow store of a project: database, connection, versions, runs."""
