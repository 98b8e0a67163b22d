"""Floor 0: pytree paths, the shape glossary, the method protocol and the user's error."""
