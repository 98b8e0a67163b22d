"""Floor 4: scores of a method, by its predict functions and its loss alone."""
