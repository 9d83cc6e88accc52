"""What a run looks like: figures, one static page, and the tables on the terminal."""
