"""Text: tokenizers, prompt templates, padding, and the comparison of answers."""

import logging

# transformers advises to install PyTorch when it is imported; here only its tokenizers are used.
logging.getLogger("transformers").addFilter(
  lambda record: "PyTorch was not found" not in record.getMessage()
)
