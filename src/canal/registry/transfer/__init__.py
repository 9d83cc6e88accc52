"""Export and import of a version in one ZIP file, the bundle, with the proof of its ancestry."""
