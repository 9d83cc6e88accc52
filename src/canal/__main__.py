"""`python -m canal` is `canal`."""

from canal.cli import main

main()
