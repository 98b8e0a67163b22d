"""Pytree paths, the glossary of shapes, the method protocol, errors, files, devices."""
