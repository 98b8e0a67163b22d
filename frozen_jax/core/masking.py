"""The score of what a softmax must not weigh."""

# Finite, so that a row of which everything is masked has a softmax, not NaN.
MASKED_SCORE = -1e30
