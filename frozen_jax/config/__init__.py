"""Floor 1: what a config is made of: typed sections, presets, overrides and config files."""
