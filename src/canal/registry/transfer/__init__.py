"""A version in one ZIP file, with the proof of where it comes from: written, read safely, proven."""
