"""Floor 4: what leaves a run: the adapter as a folder, and a tuned prompt in the format of PEFT."""
