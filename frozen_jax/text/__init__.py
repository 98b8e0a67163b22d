"""Floor 1: tokenizers, question templates and the comparison of answers."""
