"""Two passes as a cascade (docs/paper.md, 5): the second one only where the first is unsure."""
