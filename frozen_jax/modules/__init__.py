"""Floor 2: the small trained networks (Flax NNX); float32, a few thousand to a few million numbers."""
