"""How a process of canal begins and ends, and how steps share one that has imported its libraries."""
