"""`python -m canal.cli` is `canal`."""

from canal.cli import main

main()
