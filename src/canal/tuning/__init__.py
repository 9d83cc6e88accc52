"""The study over lambda and L: what is tried, how it is judged, and which attempt is taken."""
