"""What tests stand on: cells, models, sums, registries and servers made small; nothing here is a test."""
