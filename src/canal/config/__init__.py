"""Configuration: the sections of params.yaml, reading and editing the file, and the paths of a project."""
