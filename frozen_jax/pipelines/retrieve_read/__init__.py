"""Frozen readers (docs/paper.md, 3): retrieve, re-rank, pack, and let the frozen LM read."""
