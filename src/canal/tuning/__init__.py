"""The study over lambda and L: its search space, its trials, and the choice among them."""
