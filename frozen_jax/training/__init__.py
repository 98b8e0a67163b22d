"""Floor 4: the training state, the optimizer, one jitted step, checkpoints, metrics, the loop."""
