"""Output for people: figures, static HTML pages, and tables on the terminal."""
