"""Data: where examples come from, how they become token ids, and batches of them."""
