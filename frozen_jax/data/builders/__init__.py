"""Data sets that the package builds by itself, from packages that it depends on."""
