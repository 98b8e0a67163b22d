"""Floor 5: what runs before and around the stages of a run, behind one protocol (`pipeline.py`)."""
