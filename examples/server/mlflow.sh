#!/bin/bash
# The registry of a team: MLflow with accounts, its tables in PostgreSQL, its files in an object store.
# systemd (canal-mlflow.service) and compose.yaml both run this; server.env says which variables it reads.
# Secrets are in the environment alone: not among the arguments, which every user of a machine can list.
set -euo pipefail
: "${MLFLOW_BACKEND_STORE_URI:?which database? see examples/server/server.env}"
: "${MLFLOW_ARTIFACTS_DESTINATION:?which bucket? see examples/server/server.env}"
: "${MLFLOW_AUTH_ADMIN_PASSWORD:?choose a password for the first account, admin}"
: "${MLFLOW_FLASK_SERVER_SECRET_KEY:?choose a long random text: it signs forms}"
# canal has no jobs for the eight processes (1.9 GB) that MLflow would start for them.
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_DISABLE_TELEMETRY=true
# Files go through the server, so that who works with canal has an account here, and none of the bucket: MLflow
# would hand out addresses of the bucket, which clients may not reach.
export MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD=false MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD=false
exec mlflow server --app-name basic-auth --serve-artifacts \
  --host "${CANAL_SERVER_HOST:-127.0.0.1}" --port "${CANAL_SERVER_PORT:-5000}" --workers "${CANAL_SERVER_WORKERS:-2}"
