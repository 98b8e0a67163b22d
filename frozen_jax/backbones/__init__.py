"""Floor 2: the frozen backbones and how their weights are loaded."""
