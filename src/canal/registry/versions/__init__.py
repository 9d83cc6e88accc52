"""Publication, restoring and rebuilding of versions."""
