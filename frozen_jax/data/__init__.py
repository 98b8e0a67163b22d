"""Floor 2: where examples come from, how they become token ids, and the batches made of them."""
