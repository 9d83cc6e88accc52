"""params.yaml: its sections, how it is read and edited, and where a project's files lie."""
