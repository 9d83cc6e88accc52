"""Tests of what the registry stands on: sqlite, MLflow servers, PostgreSQL."""
