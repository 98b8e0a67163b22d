"""Floor 4: scores of tuned models, by their predict functions and their loss alone."""
