"""Floor 7: small commands that look at one thing each."""
