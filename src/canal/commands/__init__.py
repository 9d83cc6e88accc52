"""The command line's commands of the registry, a module a subject; `canal.cli` gathers them."""
