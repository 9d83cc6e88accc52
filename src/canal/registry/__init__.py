"""What a version is, and the MLflow registry that holds them."""
