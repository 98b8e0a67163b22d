"""Floor 2: the small trained networks (Flax NNX), float32, thousands to millions of numbers."""
