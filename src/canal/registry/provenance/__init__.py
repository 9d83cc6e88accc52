"""Where a version comes from, which cells it met, how it differs from another."""
