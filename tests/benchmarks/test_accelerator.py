"""The sides of `accelerator` do the same work on a tiny model."""

import math

import pytest

from benchmarks import accelerator_side as sides

ROWS, LENGTH = 2, 16


@pytest.mark.parametrize("method", sides.METHODS)
def test_both_sides_train_as_much_of_the_same_sizes(method):
  ours, peer = (side("tiny", method, ROWS, LENGTH) for side in (sides.ours, sides.peer))
  assert ours.parameters == peer.parameters
  assert ours.parameters[1] > 0
  for side in (ours, peer):
    losses = [side.step() for _ in range(6)]
    assert losses[0] == pytest.approx(math.log(sides.TINY["vocab_size"]), rel=0.15)
    assert losses[-1] < losses[0], "it learns"
    assert side.matrix_seconds(32) > 0
