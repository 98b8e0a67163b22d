"""Floor 2: corpora of passages, and the retrievers that find the best passages for a question.

Encoders are passed in as functions; nothing here depends on a particular model. Letters of shapes,
in addition to those of core/types.py: Q questions, N passages of a corpus, k retrieved passages,
d the width of a vector.
"""
