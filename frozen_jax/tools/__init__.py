"""Floor 6: small commands that look at one thing each."""
