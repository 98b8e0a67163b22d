"""Floor 2: the frozen giants and how their weights are loaded."""
