"""Textual recursion (docs/paper.md, 4.1): sample answers out of fold, let pass two select one."""
