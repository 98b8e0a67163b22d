"""Text: tokenizers, prompt templates, padding, and the comparison of answers."""
